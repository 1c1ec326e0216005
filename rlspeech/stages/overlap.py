"""Sampling ahead of learning: while the learner is at a step, the next ones are sampled with weights a little older."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from types import TracebackType

from rlspeech.stages.training import Prepared

log = logging.getLogger(__name__)


@dataclass
class Ahead:
    """`sync(step)` gives the samplers the weights of `step` steps; `sample(step)` prepares a step with what they have.

    With lag 0 each step is sampled with the weights it is learned with. With lag n: when step k begins to be learned
    and the samplers are idle, they get the weights of k steps and sample up to step k + n. So a step is never learned
    from samples more than n steps old, samplers get weights only while they are idle, and with n = 1 what is sampled
    with which weights does not depend on how fast anything runs.
    """

    sync: Callable[[int], None]
    sample: Callable[[int], Prepared]
    steps: int
    lag: int = 0
    interrupt: Callable[[], None] = lambda: None  # makes a sampling under way end soon, by an error
    _jobs: dict[int, Future[Prepared]] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "rlspeech-sampling"))

    def get(self, step: int) -> Prepared:
        """The batches of a step; raises what the sampling of it raised."""
        if not self.lag:
            self.sync(step)
            return self.sample(step)
        if step not in self._jobs:
            self._begin(step, until=step)
        prepared = self._jobs.pop(step).result()
        if all(job.done() for job in self._jobs.values()):
            self._begin(max([step, *self._jobs]) + 1, until=step + self.lag, weights=step)
        return prepared

    def _begin(self, first: int, *, until: int, weights: int | None = None) -> None:
        self.settle()
        steps = range(first, min(until, self.steps - 1) + 1)
        if steps:
            self.sync(first if weights is None else weights)
        for step in steps:
            self._jobs[step] = self._thread.submit(self.sample, step)

    def settle(self) -> None:
        """Waits until the samplers are idle."""
        wait(self._jobs.values())

    def forget(self) -> None:
        """Drops what has been sampled ahead: the learner goes back to an earlier step."""
        self.settle()
        for step, job in self._jobs.items():
            if error := job.exception():
                log.warning("step %d, sampled ahead and dropped, had failed: %s", step + 1, error)
        self._jobs.clear()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if any(not job.done() for job in self._jobs.values()):
            self.interrupt()
        self._thread.shutdown(cancel_futures=True)
