"""Held-out numbers by hand."""

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.maths.scores import is_right, score, word_errors
from rlspeech.types import Sample


def asked(kind: str, reference: str | None, key: str | None = None) -> Sample:
    return Sample(kind, "?", reference=reference, tags={"kind": kind, **({"key": key} if key else {})})


SENTENCE = st.lists(st.sampled_from(["b", "c", "d"]), max_size=8)
WHEN = asked("when", "Anna will buy towels on Saturday.", "Saturday")


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Saturday.", True),
        ("Anna buys them on Saturday", True),
        ("On Sunday.", False),
        ("", False),
        ("Anna will buy eleven towels and eleven boxes at the airport in the town on Saturday.", False),  # all of it
    ],
)
def test_a_right_answer_holds_the_key_and_is_brief(reply: str, right: bool) -> None:
    assert is_right(WHEN, reply) == right


def test_numbers_in_a_key_are_compared_by_value() -> None:
    assert is_right(asked("how_much", "The chairs cost ninety dollars.", "ninety dollars"), "They cost 90 dollars.")
    assert not is_right(asked("how_much", "The chairs cost ninety dollars.", "ninety dollars"), "They cost 19 dollars.")


def test_transcripts_count_for_the_error_rate_and_answers_for_accuracy() -> None:
    samples = [asked("transcribe", "we meet at noon"), asked("transcribe", "so long"), WHEN, asked("who", "Anna.")]
    found = score(samples, ["we meet at", "so long then", "Saturday.", "Peter."])
    assert found.wer == pytest.approx(2 / 6)
    assert (found.fuzzy, found.exact, found.by_kind) == (0.5, 0.0, {"when": 1.0, "who": 0.0})


def test_what_has_no_reference_counts_for_repetition_alone() -> None:
    found = score([asked("other", None)], ["ha ha ha ha"])
    assert (found.wer, found.exact, found.fuzzy, found.repetition) == (None, None, None, 1.0)


def errors(*pairs: tuple[str, str]) -> float | None:
    return word_errors([(asked("transcribe", reference), said) for reference, said in pairs])["wer"]


def test_the_rate_of_a_corpus_is_not_the_mean_of_the_rates() -> None:
    assert errors(("a", "b"), ("d e f", "d e f")) == 0.25


def test_no_reference_words_have_no_rate_but_add_their_insertions_to_others() -> None:
    assert errors() is None
    assert errors(("", "a")) is None
    assert errors(("", "a"), ("b c", "b c")) == 0.5


@given(st.lists(st.tuples(SENTENCE.filter(bool), SENTENCE), min_size=1, max_size=4))
def test_jiwer_counts_no_more_errors(pairs: list[tuple[list[str], list[str]]]) -> None:
    """Its alignment is that of the fewest errors; where ours has more, a substitution was dearer than what it has."""
    theirs = jiwer.process_words([" ".join(one) for one, _ in pairs], [" ".join(other) for _, other in pairs])
    ours = errors(*((" ".join(one), " ".join(other)) for one, other in pairs))
    fewest = theirs.substitutions + theirs.insertions + theirs.deletions
    total = sum(len(one) for one, _ in pairs)
    assert ours is not None
    assert fewest <= round(ours * total)
    assert (fewest == 0) == (ours == 0)
