"""*Marks* round biasing words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        ("c++x or xc++", ["c++"], "c++x or xc++"),
        ("用语音API吧", ["语音", "api"], "用*语音**API*吧"),
        ("我叫Ann了", ["Ann"], "我叫*Ann*了"),
        ("北京上海和南京", ["北京", "上海"], "*北京**上海*和南京"),
        ("art\nfair, art  fair", ["art fair"], "art\nfair, *art  fair*"),
        ("a (Bo) 'Ann'", ["Bo", "Ann"], "a (*Bo*) '*Ann*'"),
        ("Ann*, Bo", ["Ann*", "Bo"], "Ann*, *Bo*"),
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


WORDS = [
    "Ann",
    "art",
    "2",
    "*",
    "* ",
    "**",
    " ",
    ", ",
    "'s",
    "O'Neil",
    "北京",
    "去",
    "-",
    "é",
    "\n",
    "*Bo*",
    "c++",
    '"',
    "(",
    "Ç",
]
PHRASES = ["ann", "art", "art fair", "O'Neil", "北京", "c++", "2", "去", "*", "Ann*", "é", "art\n", ""]


@given(st.lists(st.sampled_from(WORDS), max_size=9).map("".join), st.lists(st.sampled_from(PHRASES), max_size=4))
def test_marks_that_were_put_can_be_taken_away_and_are_put_once(text: str, phrases: list[str]) -> None:
    assert unmarked(marked(text, phrases)) == unmarked(text)
    assert marked(marked(text, phrases), phrases) == marked(text, phrases)


def test_marks_are_told_in_their_order() -> None:
    assert marked_phrases('"*Bo*," said *Ann Lee*; *Bo*.') == ["Bo", "Ann Lee", "Bo"]
    assert marked_phrases("*北京**上海*和*Bo*") == ["北京", "上海", "Bo"]
