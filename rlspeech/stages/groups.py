"""Groups of replies to one prompt, and the right transcript as one of them.

G replies of a group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rlspeech.config_rlbr import GroupsConfig
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Judged:
    """A reply with its rewards, each reward's own and their weighted sum; None where a reward does not apply."""

    rollout: Rollout
    reward: float | None
    parts: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True)
class Group:
    """What the replies to one prompt are compared with: one another, and the reference where it has joined."""

    members: tuple[Judged, ...]
    too_long: bool = False  # the reference would not have been written within the limit, so it stayed out

    @property
    def reference(self) -> int | None:
        """Place of the reference among the members."""
        return next((i for i, one in enumerate(self.members) if one.rollout.origin == "reference"), None)

    @property
    def has_spread(self) -> bool:
        """Whether there is anything to learn from: two rewards that differ."""
        return len({one.reward for one in self.members if one.reward is not None}) > 1


def best_and_worst(members: Sequence[Judged], count: int) -> tuple[Judged, ...]:
    """`count` members, half of them the best (one more where it is odd), half the worst, in the order they came in.

    Those without a reward go first, then those in the middle.
    """
    order = sorted(range(len(members)), key=lambda i: _value(members[i]))
    unjudged = sum(one.reward is None for one in members)
    judged = order[unjudged:]
    best = judged[len(judged) - math.ceil(count / 2) :] if len(judged) > count else judged
    worst = judged[: count - len(best)] if len(judged) > count else order[: min(count, len(order)) - len(best)]
    return tuple(members[i] for i in sorted({*best, *worst}))


def join(members: Sequence[Judged], reference: Judged | None, settings: GroupsConfig, *, max_tokens: int) -> Group:
    """The group with the reference as the setting has it.

    The reference is whole and has its end token, or stays out: one of more than `max_tokens` tokens is never cut.
    `replace_worst`: the first of those with the least reward goes. `replace_duplicate`: the last of the replies that
    an earlier one equals, token for token; where none does, the reference stays out.
    """
    if reference is None or settings.reference == "off":
        return Group(tuple(members))
    if len(reference.rollout.completion.token_ids) > max_tokens:
        return Group(tuple(members), too_long=True)
    if settings.reference == "extra":
        return Group((*members, reference))
    out = _worst(members) if settings.reference == "replace_worst" else _repeated(members)
    if out is None:
        return Group(tuple(members))
    return Group((*members[:out], reference, *members[out + 1 :]))


def group_metrics(groups: Sequence[Group], advantages: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of the groups of a step; `advantages` [G] of each."""
    entered = [(group, found, group.reference) for group, found in zip(groups, advantages, strict=True)]
    inside = [(group, found, place) for group, found, place in entered if place is not None]
    sampled = [one for group in groups for one in group.members if one.rollout.origin == "sampled"]
    metrics = {
        "groups/no_spread_share": sum(not group.has_spread for group in groups) / len(groups),
        "groups/reference_share": len(inside) / len(groups),
        "groups/reference_too_long": float(sum(group.too_long for group in groups)),
        "reward/unjudged_share": sum(one.reward is None for one in sampled) / max(1, len(sampled)),
    }
    if inside:
        metrics["groups/reference_advantage"] = fmean(found[place] for _, found, place in inside)
        metrics["groups/reference_best_share"] = fmean(_is_best(group, place) for group, _, place in inside)
    return metrics | _rewards(sampled)


def _rewards(sampled: Sequence[Judged]) -> dict[str, float]:
    """Means over the student's own replies, each reward's and the sum's."""
    named: dict[str, list[float]] = {}
    for one in sampled:
        for name, value in (("sum", one.reward), *one.parts):
            if value is not None:
                named.setdefault(name, []).append(value)
    found = {f"reward/{name}": fmean(values) for name, values in named.items()}
    if total := named.get("sum"):
        mean = fmean(total)
        found["reward/sum_std"] = math.sqrt(fmean((value - mean) ** 2 for value in total))
    return found


def _is_best(group: Group, place: int) -> bool:
    """Better than every reply of the student."""
    others = [one.reward for i, one in enumerate(group.members) if i != place and one.reward is not None]
    own = group.members[place].reward
    return own is not None and all(own > other for other in others)


def _value(one: Judged) -> float:
    return -math.inf if one.reward is None else one.reward


def _worst(members: Sequence[Judged]) -> int | None:
    return min(range(len(members)), key=lambda i: _value(members[i]), default=None)


def _repeated(members: Sequence[Judged]) -> int | None:
    ids = [one.rollout.completion.token_ids for one in members]
    times = Counter(ids)
    return next((i for i in reversed(range(len(ids))) if times[ids[i]] > 1), None)
