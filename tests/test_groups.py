"""Groups of replies: who stays, and where the right transcript joins."""

import pytest

from rlspeech.config_rlbr import GroupsConfig
from rlspeech.stages.groups import Group, Judged, best_and_worst, group_metrics, join
from rlspeech.types import Completion, Prompt, Rollout, Sample


def judged(reward: float | None, ids: tuple[int, ...] = (1,), origin: str = "sampled", **parts: float) -> Judged:
    rollout = Rollout(Sample("a", "?"), Prompt((9,)), Completion(ids, (), "", "stop"), origin)  # type: ignore[arg-type]
    return Judged(rollout, reward, tuple(parts.items()))


REFERENCE = judged(0.0, (5, 6, 0), origin="reference")


def rewards(members: tuple[Judged, ...]) -> list[float | None]:
    return [one.reward for one in members]


@pytest.mark.parametrize(
    ("given", "count", "kept"),
    [
        ([-1, -5, -3, 0, -2, -4], 4, [-1, -5, 0, -4]),
        ([-1, -5, -3, 0, -2, -4], 3, [-1, -5, 0]),  # one more of the best
        ([-1, -1, -1, -1], 2, [-1, -1]),
        ([None, -2, None, -1, -3], 2, [-1, -3]),  # what has no reward goes first
        ([None, -2, None, -1], 3, [None, -2, -1]),
        ([None, None], 2, [None, None]),
        ([-1, -2], 4, [-1, -2]),
    ],
)
def test_the_best_and_the_worst_are_kept_in_their_order(
    given: list[float | None], count: int, kept: list[float | None]
) -> None:
    members = [judged(reward, (index,)) for index, reward in enumerate(given)]
    found = best_and_worst(members, count)
    assert rewards(found) == kept
    places = [one.rollout.completion.token_ids[0] for one in found]
    assert places == sorted(places)
    assert all(given[place] == one.reward for place, one in zip(places, found, strict=True))  # columns stay together


@pytest.mark.parametrize(
    ("mode", "joined"),
    [
        ("off", [-2, -3, -3, -1]),
        ("extra", [-2, -3, -3, -1, 0]),
        ("replace_worst", [-2, 0, -3, -1]),
        ("replace_duplicate", [-2, -3, -3, 0]),  # the fourth reply is the first one again
    ],
)
def test_the_reference_joins_as_the_setting_has_it(mode: str, joined: list[float]) -> None:
    members = [judged(-2, (1,)), judged(-3, (2,)), judged(-3, (3,)), judged(-1, (1,))]
    group = join(members, REFERENCE, GroupsConfig(reference=mode), max_tokens=3)  # type: ignore[arg-type]
    assert rewards(group.members) == joined
    assert group.reference == (None if mode == "off" else joined.index(0))
    assert not group.too_long


def test_a_reference_that_nothing_repeats_makes_room_for_stays_out() -> None:
    members = [judged(-2, (1,)), judged(-3, (2,))]
    group = join(members, REFERENCE, GroupsConfig(reference="replace_duplicate"), max_tokens=3)
    assert group == Group(tuple(members))


@pytest.mark.parametrize("mode", ["extra", "replace_worst", "replace_duplicate"])
def test_a_reference_longer_than_a_reply_may_be_is_never_cut(mode: str) -> None:
    members = [judged(-2), judged(-2)]
    group = join(members, REFERENCE, GroupsConfig(reference=mode), max_tokens=2)  # type: ignore[arg-type]
    assert group == Group(tuple(members), too_long=True)


def test_a_group_without_a_reward_that_differs_teaches_nothing() -> None:
    assert not Group((judged(-1), judged(-1), judged(None))).has_spread
    assert Group((judged(-1), judged(-2))).has_spread


def test_metrics_tell_how_often_the_reference_entered_led_and_what_it_was_worth() -> None:
    settings = GroupsConfig()
    groups = [
        join([judged(-2, wer=-1.0), judged(0, wer=0.0)], REFERENCE, settings, max_tokens=3),  # a reply is as good
        join([judged(-2, wer=-2.0), judged(-4, wer=-3.0)], REFERENCE, settings, max_tokens=3),
        join([judged(-2), judged(-2)], REFERENCE, settings, max_tokens=1),  # too long
        join([judged(None), judged(-6)], None, settings, max_tokens=3),
    ]
    found = group_metrics(groups, [[-1, 0.5, 0.5], [0, -2, 2.5], [0, 0], [0, 0]])
    assert found["groups/reference_share"] == 0.5
    assert found["groups/reference_too_long"] == 1
    assert found["groups/reference_advantage"] == 1.5
    assert found["groups/reference_best_share"] == 0.5
    assert found["groups/no_spread_share"] == 0.5
    assert found["reward/unjudged_share"] == 1 / 8
    assert found["reward/sum"] == pytest.approx(-18 / 7)  # of the student's own replies alone
    assert found["reward/wer"] == pytest.approx(-6 / 4)
