"""*Marks* round biasing words."""

import pytest

from rlspeech.maths.marks import marked, marked_phrases, unmarked


@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        ("Start the art.", ["art"], "Start the *art*."),
        ("ANN met Ann's ann.", ["Ann"], "*ANN* met *Ann*'s *ann*."),
        ("New York is new.", ["york", "New York"], "*New York* is new."),
        ("call *Ann* and Ann", ["Ann"], "call *Ann* and *Ann*"),
        ("O'Neil left", ["o'neil"], "*O'Neil* left"),
        ("我要去北京路", ["北京"], "我要去*北京*路"),
        ("c++ or c", ["c++"], "*c++* or c"),
        ("nothing", [], "nothing"),
        ("nothing", [" "], "nothing"),
    ],
)
def test_whole_words_are_marked_and_unmarked_again(text: str, phrases: list[str], expected: str) -> None:
    assert marked(text, phrases) == expected
    assert unmarked(expected) == unmarked(text)


@pytest.mark.parametrize("text", ["2 * 3 * 4", "a*b*c", "* item", "**bold**", "5 *", "*open", "line *\n* line"])
def test_a_star_that_is_no_mark_stays(text: str) -> None:
    assert unmarked(text) == text
    assert marked_phrases(text) == []


def test_marks_are_told_in_their_order() -> None:
    assert marked_phrases('"*Bo*," said *Ann Lee*; *Bo*.') == ["Bo", "Ann Lee", "Bo"]
