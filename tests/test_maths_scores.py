"""Held-out numbers by hand."""

import pytest

from rlspeech.maths.scores import is_right, score
from rlspeech.types import Sample


def asked(kind: str, reference: str | None, key: str | None = None) -> Sample:
    return Sample(kind, "?", reference=reference, tags={"kind": kind, **({"key": key} if key else {})})


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
