"""What a reply is worth beside the others to its prompt: rewards of groups -> advantages.

A reward of None is no reward: that reply is out of its group, and its advantage is 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal, get_args

Baseline = Literal["group", "leave_one_out"]
Scale = Literal["group", "batch", "none"]
Rewards = Sequence[Sequence[float | None]]  # of each group, of each reply

STD_MIN = 1e-4  # is added to a standard deviation that is divided by, as TRL does


def group_advantages(
    rewards: Rewards, *, baseline: Baseline = "group", scale: Scale = "none", counted: Sequence[Sequence[bool]] = ()
) -> list[list[float]]:
    """Reward minus the baseline of its group, over a standard deviation where `scale` names one.

    group: the mean of the group (GRPO, arXiv 2402.03300, equation of section 4.1.2). leave_one_out: the mean of the
    others (RLOO, arXiv 2402.14740). scale group or batch: divided by the standard deviation (of n - 1) of the group, or
    of all rewards, plus STD_MIN; none: Dr. GRPO (arXiv 2503.20783). `counted`: who counts in means and deviations,
    default all; one who does not is compared with those who do. A group in which fewer than two replies have a reward,
    or all have the same, has the advantage 0 throughout. Raises ValueError where a setting is unknown.

    >>> group_advantages([[1.0, 0.0, None], [5.0, 5.0]])
    [[0.5, -0.5, 0.0], [0.0, 0.0]]
    """
    if baseline not in get_args(Baseline) or scale not in get_args(Scale):
        raise ValueError(f"unknown baseline {baseline!r} or scale {scale!r}")
    counts = counted or [[True] * len(group) for group in rewards]
    known = [
        [value for value, counts_ in zip(group, flags, strict=True) if counts_ and value is not None]
        for group, flags in zip(rewards, counts, strict=True)
    ]
    batch_std = _std([value for values in known for value in values])
    found = []
    for group, flags, values in zip(rewards, counts, known, strict=True):
        divisor = {"group": _std(values) + STD_MIN, "batch": batch_std + STD_MIN, "none": 1.0}[scale]
        row = [
            0.0 if reward is None else _over_others(reward, values, counts_ and baseline == "leave_one_out") / divisor
            for reward, counts_ in zip(group, flags, strict=True)
        ]
        found.append(row)
    return found


def _over_others(reward: float, values: Sequence[float], without_it: bool) -> float:
    """Reward minus the mean of `values`; `without_it`: of which it is one, and is left out."""
    if not values or (without_it and len(values) < 2):
        return 0.0
    if min(values) == max(values) == reward:  # a mean of equal values can miss them by a rounding
        return 0.0
    if without_it:
        return (reward - fmean(values)) * len(values) / (len(values) - 1)
    return reward - fmean(values)


def _std(values: Sequence[float]) -> float:
    """Of n - 1; 0 of fewer than two values, and of equal ones."""
    if len(values) < 2 or min(values) == max(values):
        return 0.0
    mean = fmean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
