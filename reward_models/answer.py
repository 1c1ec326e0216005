"""Spoken question answering: is the reply the right answer?"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlspeech.maths.scores import is_right
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Reward:
    """1 for a right answer, else 0: it holds the tag `key` in few words, or, without a key, is like the reference.

    See maths.scores.is_right and maths.answers.right. None where the sample has no reference. An empty reply is wrong,
    unless the reference is empty, too.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [
            None if one.sample.reference is None else float(is_right(one.sample, one.completion.text))
            for one in rollouts
        ]
