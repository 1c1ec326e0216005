"""Advantages of the rollouts of a group: what each reward is above what was to be expected of the prompt.

G rollouts of one prompt make a group; a reward of None or NaN means that nothing can be said of that rollout.
"""

from collections.abc import Sequence
from math import isinf, isnan
from statistics import mean, stdev
from typing import Literal, get_args

Baseline = Literal["group", "leave_one_out"]
Scale = Literal["group", "batch", "none"]
Rewards = Sequence[float | None]

EPSILON = 1e-4  # added to a standard deviation before it divides, as in TRL


def advantages(
    groups: Sequence[Rewards],
    counts: Sequence[Sequence[bool]] | None = None,
    *,
    baseline: Baseline = "group",
    scale: Scale = "group",
) -> list[list[float]]:
    """(reward - baseline) / (std + 1e-4) of each rollout of each group.

    `baseline` group: the mean of the group (GRPO, arXiv 2402.03300); leave_one_out: that of the others (RLOO, arXiv
    2402.14740). `scale`: the standard deviation, with Bessel's correction, of the group, of the batch, or none (Dr.
    GRPO, arXiv 2503.20783): TRL's `scale_rewards`. `counts`: who counts in means and deviations (a reference that
    joined the group need not); by default all. Where those that count are alike, the deviation is that of all.

    0 for a rollout without a reward, or with nobody to be compared to, and throughout a group without spread. Exact in
    rational arithmetic before the division. Raises ValueError where a setting is unknown or a reward infinite.

    >>> advantages([[1.0, 0.0, None]], scale="none")
    [[0.5, -0.5, 0.0]]
    """
    if baseline not in get_args(Baseline) or scale not in get_args(Scale):
        raise ValueError(f"baseline is group or leave_one_out, scale group, batch or none: got {baseline!r}, {scale!r}")
    rewards = [_known(group) for group in groups]
    counted = [_counted(group, None if counts is None else counts[number]) for number, group in enumerate(rewards)]
    of_batch = _deviation(_flat(counted), _flat(rewards)) if scale == "batch" else None
    found = []
    for group, marks in zip(rewards, counted, strict=True):
        deviation = _deviation(marks, group) if scale == "group" else of_batch
        divisor = 1.0 if deviation is None else deviation + EPSILON
        found.append([above / divisor for above in _above(group, marks, baseline)])
    return found


def has_spread(rewards: Rewards) -> bool:
    """Whether the rewards of a group differ: without that, nothing can be learned from it."""
    return len({reward for reward in _known(rewards) if reward is not None}) > 1


def _known(rewards: Rewards) -> list[float | None]:
    known = [None if reward is None or isnan(reward) else float(reward) for reward in rewards]
    if any(reward is not None and isinf(reward) for reward in known):
        raise ValueError(f"a reward is infinite: {known}")
    return known


def _counted(rewards: Rewards, counts: Sequence[bool] | None) -> list[float | None]:
    """The rewards of those that count, None in the place of the others."""
    if counts is None:
        return list(rewards)
    return [reward if counted else None for reward, counted in zip(rewards, counts, strict=True)]


def _above(rewards: Rewards, counted: Rewards, baseline: Baseline) -> list[float]:
    """Of each reward what it is above its baseline."""
    found = []
    for index, reward in enumerate(rewards):
        left_out = index if baseline == "leave_one_out" else None
        others = [other for place, other in enumerate(counted) if other is not None and place != left_out]
        found.append(0.0 if reward is None or not others else reward - mean(others))
    return found


def _deviation(counted: Rewards, rewards: Rewards) -> float:
    """0 where nothing differs."""
    for group in (counted, rewards):
        known = [reward for reward in group if reward is not None]
        if len(known) > 1 and (found := stdev(known)) > 0:
            return found
    return 0.0


def _flat(groups: Sequence[Rewards]) -> list[float | None]:
    return [reward for group in groups for reward in group]
