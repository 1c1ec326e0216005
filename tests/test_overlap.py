"""Sampling ahead of learning: how old samples may be, and that nothing is sampled twice or lost."""

import threading
from dataclasses import dataclass, field

import pytest

from rlspeech.stages.overlap import Ahead
from rlspeech.stages.training import Prepared


@dataclass
class Samplers:
    """They note which weights each step was sampled with; weights must not change under a sampling."""

    version: int = -1
    sampled: dict[int, int] = field(default_factory=dict)  # step: version
    sampling: threading.Lock = field(default_factory=threading.Lock)
    gate: threading.Event = field(default_factory=threading.Event)
    ever_ahead: bool = False

    def sync(self, step: int) -> None:
        assert not self.sampling.locked(), "weights arrived in the middle of a sampling"
        self.version = step

    def sample(self, step: int) -> Prepared:
        with self.sampling:
            assert self.gate.wait(10)
            assert step not in self.sampled, "sampled twice"
            self.sampled[step] = self.version
            return Prepared((), {"step": float(step)})


def run(lag: int, steps: int = 7, *, first: int = 0) -> dict[int, int]:
    samplers = Samplers()
    samplers.gate.set()
    with Ahead(samplers.sync, samplers.sample, steps=steps, lag=lag) as ahead:
        for step in range(first, steps):
            assert ahead.get(step).metrics["step"] == step
    return samplers.sampled


def test_without_lag_every_step_is_sampled_with_the_weights_it_is_learned_with() -> None:
    assert run(0) == {step: step for step in range(7)}


def test_with_lag_one_each_step_after_the_first_is_one_step_old() -> None:
    assert run(1) == {0: 0, 1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5}


@pytest.mark.parametrize("lag", [2, 3, 10])
def test_no_sample_is_older_than_the_lag_and_every_step_is_sampled(lag: int) -> None:
    sampled = run(lag)
    assert sorted(sampled) == list(range(7))
    assert all(0 <= step - version <= lag for step, version in sampled.items())


def test_a_resumed_run_begins_with_fresh_samples() -> None:
    assert run(1, first=3) == {3: 3, 4: 3, 5: 4, 6: 5}


def test_the_next_step_is_sampled_while_this_one_is_learned() -> None:
    samplers = Samplers()
    samplers.gate.set()
    with Ahead(samplers.sync, samplers.sample, steps=3, lag=1) as ahead:
        ahead.get(0)
        ahead.settle()
        assert sorted(samplers.sampled) == [0, 1]  # step 0 is being learned, step 1 is there
        samplers.gate.clear()
        ahead.get(1)  # comes at once: what it began, step 2, waits at the gate
        assert sorted(samplers.sampled) == [0, 1]
        samplers.gate.set()
        assert ahead.get(2).metrics["step"] == 2


def test_what_a_sampling_raises_is_raised_where_its_step_is_wanted() -> None:
    def fail(step: int) -> Prepared:
        if step == 1:
            raise ValueError("no reply")
        return Prepared((), {})

    with Ahead(lambda step: None, fail, steps=3, lag=1) as ahead:
        ahead.get(0)
        with pytest.raises(ValueError, match="no reply"):
            ahead.get(1)


def test_after_the_learner_went_back_steps_are_sampled_anew() -> None:
    versions = []
    with Ahead(versions.append, lambda step: Prepared((), {}), steps=9, lag=1) as ahead:
        for step in range(4):
            ahead.get(step)
        ahead.forget()
        ahead.get(2)
    assert versions == [0, 0, 1, 2, 3, 2, 2]
