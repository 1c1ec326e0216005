"""A guard: a reply that is far longer or shorter than the reference."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlspeech.maths.marks import unmarked
from rlspeech.maths.text import words
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Reward:
    """0 within the limits, else minus how far outside, in lengths of the reference, at least -1.

    A reply of `longest` times the reference's words is within, and one of `shortest` times them. One that was cut at
    its length limit has -1: nobody knows how long it is. None where the sample has no reference, or one without words.
    """

    longest: float = 1.5  # >= 1
    shortest: float = 0.5  # in 0..1

    def __post_init__(self) -> None:
        if self.longest < 1 or not 0 <= self.shortest <= 1:
            raise ValueError(f"longest must be >= 1 and shortest in 0..1, got {self.longest} and {self.shortest}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [self._value(rollout) for rollout in rollouts]

    def _value(self, rollout: Rollout) -> float | None:
        sample = rollout.sample
        told = len(words(unmarked(sample.reference or ""), sample.lang))
        if not told:
            return None
        if rollout.completion.finish == "length":
            return -1.0
        share = len(words(unmarked(rollout.completion.text), sample.lang)) / told
        return -min(1.0, max(0.0, share - self.longest, self.shortest - share))
