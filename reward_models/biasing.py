"""RLBR's reward: errors of the whole transcript, and those of its rare words once more, with a weight of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from rlspeech.maths.biasing import BiasedEdits, Unit, biased_edits, phrase_runs
from rlspeech.maths.marks import unmarked
from rlspeech.maths.text import words
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Reward:
    """-(whole * errors + biasing * errors of rare words + false_insertion * listed phrases not said), at least -cap.

    arXiv 2601.13409: minus counts, 1 for the whole and 5 for biasing words. Rare words are the sample's `rare_words`,
    found as runs of words, never within one. Texts are normalised; *marks* are left out, so that one that is missing is
    no error of content (see the reward `marks`). None where the sample has no reference, and of a rate where it is
    empty. An empty reply has one deletion a word; one that was cut is judged by what is there.
    """

    whole: float = 1.0
    biasing: float = 5.0
    false_insertion: float = 1.0  # for each listed phrase that is in the reply and not in the reference
    unit: Unit = "words"
    rate: bool = False  # each count over the units that it is of: the reference's, its rare words'
    cap: float = 50.0  # > 0: a ramble is no worse than this

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit must be words or characters, got {self.unit!r}")
        if min(self.whole, self.biasing, self.false_insertion) < 0:
            raise ValueError("weights must not be negative")
        if self.cap <= 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        known = [one for one in rollouts if one.sample.reference is not None]
        references = [_words(one.sample.reference or "", one) for one in known]
        replies = [_words(one.completion.text, one) for one in known]
        rare = [[tuple(words(phrase, one.sample.lang)) for phrase in one.sample.rare_words] for one in known]
        found = biased_edits(references, replies, rare, unit=self.unit)
        values = iter(
            self._value(edits, _false_insertions(one, reference, reply))
            for edits, one, reference, reply in zip(found, known, references, replies, strict=True)
        )
        return [None if one.sample.reference is None else next(values) for one in rollouts]

    def _value(self, edits: BiasedEdits, false_insertions: int) -> float | None:
        total, rare = edits.total, edits.biased
        if not self.rate:
            cost = self.whole * total.errors + self.biasing * rare.errors
        elif total.words:
            cost = self.whole * total.errors / total.words + self.biasing * rare.errors / max(1, rare.words)
        else:
            return None
        return -min(cost + self.false_insertion * false_insertions, self.cap)


def _words(text: str, rollout: Rollout) -> list[str]:
    return words(unmarked(text), rollout.sample.lang)


def _false_insertions(rollout: Rollout, reference: list[str], reply: list[str]) -> int:
    """Listed phrases that are heard more often than they are said."""
    lang = rollout.sample.lang
    listed = {tuple(words(phrase, lang)) for phrase in rollout.sample.biasing_words}
    said = [tuple(reference[start:end]) for start, end in phrase_runs(reference, listed)]
    heard = [tuple(reply[start:end]) for start, end in phrase_runs(reply, listed)]
    return sum(max(0, heard.count(phrase) - said.count(phrase)) for phrase in set(heard))
