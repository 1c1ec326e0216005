"""The guard warns once of repetition that stays, again after it was gone, and says when a run is to stop."""

import logging

import pytest

from rlspeech.config_objective import GuardConfig
from rlspeech.stages.guard import CHOSEN, PAIRS, UNJUDGED, WATCHED, FallingChosen, Guard, NoPairs, Unjudged, both


def watched(guard: Guard, shares: list[float | None], first: int = 1) -> list[str | None]:
    return [guard(step, {} if s is None else {WATCHED: s}) for step, s in enumerate(shares, first)]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_it_warns_once_and_again_only_after_it_has_recovered(caplog) -> None:
    guard = Guard(GuardConfig(patience=3))
    assert watched(guard, [0.3, 0.3, 0.2, 0.3, 0.3]) == [None] * 5  # 0.2 is not above 0.2
    assert warnings(caplog) == []
    watched(guard, [0.3, 0.9, 0.9, 0.9], first=6)
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].startswith("step 6: 30% of the words of the student's replies lie in loops")
    watched(guard, [0.1, 0.3, 0.3, 0.3, 0.3], first=10)
    assert len(warnings(caplog)) == 2
    assert warnings(caplog)[1].startswith("step 13:")


def test_it_stops_after_its_patience_and_never_without_a_limit() -> None:
    shares = [0.6, 0.6, 0.4, 0.6, 0.7]
    assert watched(Guard(GuardConfig(patience=2)), shares) == [None] * 5
    found = watched(Guard(GuardConfig(patience=2, repetition_stop=0.5)), shares)
    assert found[:1] + found[2:4] == [None] * 3
    for step, why in ((2, found[1]), (5, found[4])):
        assert why is not None
        assert why.startswith(f"step {step}: ")
        assert "above guard.repetition_stop = 0.5 for 2 steps" in why
        assert "\n" not in why


def test_a_step_without_the_students_replies_changes_nothing() -> None:
    found = watched(Guard(GuardConfig(patience=2, repetition_stop=0.5)), [0.6, None, 0.6])
    assert found[:2] == [None, None]
    assert found[2] is not None


def test_steps_that_come_again_are_not_counted_twice() -> None:
    guard = Guard(GuardConfig(patience=3, repetition_stop=0.5))
    assert watched(guard, [0.6, 0.6]) == [None, None]
    assert watched(guard, [0.6, 0.6], first=2) == [None, None]


def test_preferred_replies_that_stay_less_likely_are_warned_of_once(caplog) -> None:
    watch = FallingChosen(GuardConfig(patience=2))
    rewards = [-0.1, 0.0, -0.1, -0.2, -0.3, 0.1, -0.4, -0.5]
    assert [watch(step, {CHOSEN: value}) for step, value in enumerate(rewards, 1)] == [None] * 8
    assert [line[:7] for line in warnings(caplog)] == ["step 4:", "step 8:"]  # again after they had risen
    assert "train/rewards_chosen = -0.2" in warnings(caplog)[0]


def test_a_run_whose_replies_nobody_judges_is_stopped() -> None:
    watch = both(Guard(GuardConfig(patience=2)), Unjudged(GuardConfig(patience=2), ("judge",)))
    told = [watch(step, {UNJUDGED: share}) for step, share in enumerate([1.0, 0.9, 1.0, 1.0], 1)]
    assert told[:3] == [None] * 3
    assert told[3] == "step 4: rewards: judge gave no reply a value for 2 steps"


def test_online_steps_without_a_pair_are_warned_of(caplog) -> None:
    watch = NoPairs(GuardConfig(patience=2))
    for step, count in enumerate([0, 3, 0, 0, 0], 1):
        assert watch(step, {PAIRS: count}) is None
    (line,) = warnings(caplog)
    assert line.startswith("step 4: no pair for 2 steps, so nothing was learned")
