"""Held-out numbers of replies to instructions with known answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlspeech.maths.answers import exact, holds, right
from rlspeech.maths.biasing import biased_edits
from rlspeech.maths.detect import repetition_share
from rlspeech.maths.edits import Edits
from rlspeech.maths.marks import unmarked
from rlspeech.maths.text import words
from rlspeech.types import Sample

LONGEST = 2  # times as many words as the reference, at most, in a right answer
TRANSCRIBE = "transcribe"  # the kind that is scored by its word error rate; every other kind by its answers


@dataclass(frozen=True)
class Scores:
    """Rates are in 0..1 (the word error rate may pass 1); None where no sample counts towards one."""

    samples: int
    wer: float | None  # of the replies to `transcribe`, over all their words
    u_wer: float | None  # of the words that are not the sample's rare ones
    b_wer: float | None  # of the sample's rare words, and of those inserted
    exact: float | None  # share of the other replies that are the reference, normalised
    fuzzy: float | None  # share that are right: they hold the answer's key words, or are like it where it has none
    repetition: float  # mean share of a reply that loops
    by_kind: dict[str, float]  # share right of each kind


def score(samples: Sequence[Sample], replies: Sequence[str]) -> Scores:
    """Samples without a reference count towards repetition alone."""
    spoken, answered = [], []
    for sample, reply in zip(samples, replies, strict=True):
        if sample.reference is not None:
            (spoken if sample.tags.get("kind") == TRANSCRIBE else answered).append((sample, reply))
    right_by_kind: dict[str, list[bool]] = {}
    for sample, reply in answered:
        right_by_kind.setdefault(sample.tags.get("kind", ""), []).append(is_right(sample, reply))
    all_right = [value for values in right_by_kind.values() for value in values]
    same = [exact(sample.reference or "", reply, sample.lang) for sample, reply in answered]
    return Scores(
        samples=len(samples),
        **word_errors(spoken),
        exact=_mean(same),
        fuzzy=_mean(all_right),
        repetition=sum(map(repetition_share, replies)) / max(1, len(replies)),
        by_kind={kind: sum(values) / len(values) for kind, values in sorted(right_by_kind.items())},
    )


def word_errors(spoken: Sequence[tuple[Sample, str]]) -> dict[str, float | None]:
    """`wer`, `u_wer`, `b_wer` of transcripts, *marks* apart; the last two are None where no sample has rare words."""
    found = biased_edits(
        [words(unmarked(sample.reference or ""), sample.lang) for sample, _ in spoken],
        [words(unmarked(reply), sample.lang) for sample, reply in spoken],
        [[tuple(words(phrase, sample.lang)) for phrase in sample.rare_words] for sample, _ in spoken],
    )
    any_rare = any(sample.rare_words for sample, _ in spoken)
    parts = {"wer": [one.total for one in found]}
    parts |= {"u_wer": [one.unbiased for one in found], "b_wer": [one.biased for one in found]}
    return {name: _rate(counts) if any_rare or name == "wer" else None for name, counts in parts.items()}


def _rate(counts: Sequence[Edits]) -> float | None:
    total = sum(count.words for count in counts)
    return sum(count.errors for count in counts) / total if total else None


def is_right(sample: Sample, reply: str) -> bool:
    """Holds the key words in at most LONGEST times the reference's words; without a key, is like the reference.

    The limit is there because the whole transcript holds every answer.
    """
    reference = sample.reference or ""
    if key := sample.tags.get("key"):
        brief = len(words(reply, sample.lang)) <= LONGEST * len(words(reference, sample.lang))
        return brief and holds(key, reply, sample.lang)
    return right(reference, reply, sample.lang)


def _mean(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None
