"""Errors of a transcript against its reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from rlspeech.maths.biasing import Unit, biased_edits
from rlspeech.maths.marks import unmarked
from rlspeech.maths.text import words
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Reward:
    """Minus the errors of the reply, as a count or over the reference's length, at least -cap.

    Texts are normalised and *marks* left out. None where the sample has no reference, and of a rate where the
    reference is empty. An empty reply has one deletion a word; one that was cut is judged by what is there.
    """

    unit: Unit = "words"
    rate: bool = False  # over the units of the reference
    cap: float = 20.0  # > 0: a ramble is no worse than this

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit must be words or characters, got {self.unit!r}")
        if self.cap <= 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        known = [one for one in rollouts if one.sample.reference is not None]
        references = [words(unmarked(one.sample.reference or ""), one.sample.lang) for one in known]
        replies = [words(unmarked(one.completion.text), one.sample.lang) for one in known]
        found = biased_edits(references, replies, [()] * len(known), unit=self.unit)
        values = iter([self._value(edits.total.errors, edits.total.words) for edits in found])
        return [None if one.sample.reference is None else next(values) for one in rollouts]

    def _value(self, errors: int, length: int) -> float | None:
        if not self.rate:
            return -min(float(errors), self.cap)
        return -min(errors / length, self.cap) if length else None
