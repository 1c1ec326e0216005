"""A guard against loops: the share of a reply that repeats itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlspeech.maths.detect import repetition_share
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Reward:
    """Minus the share of the raw reply's words that lie in loops, in -1..0, beyond `allowed`. An empty reply has 0."""

    allowed: float = 0.0  # in 0..1

    def __post_init__(self) -> None:
        if not 0 <= self.allowed <= 1:
            raise ValueError(f"allowed must be in 0..1, got {self.allowed}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [-max(0.0, repetition_share(one.completion.text) - self.allowed) for one in rollouts]
