"""Workers of one role that share a queue. One that dies or hangs is replaced, and its piece goes to the others."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlspeech.engines.cluster import Actor, Cluster, Lost
from rlspeech.errors import RunFailed

log = logging.getLogger(__name__)


class RoleLost(RunFailed):
    """No worker of a role is left, and no restart."""


@dataclass
class Pool:
    """`make` builds the worker of a place (light); its method `start` loads what it works with.

    `ready` is called with each worker that was started again, before it gets work: it gives it the current weights.
    """

    role: str
    cluster: Cluster
    make: Callable[[int], Actor]
    ready: Callable[[Actor], None] | None = None
    workers: dict[int, Actor] = field(default_factory=dict)  # by place; those that can work
    starting: dict[Any, tuple[int, Actor]] = field(default_factory=dict)  # by start call: those that load
    restarts: int = 0

    @classmethod
    def begin(cls, role: str, cluster: Cluster, make: Callable[[int], Actor], size: int) -> Pool:
        """Makes the workers; `await_start` waits for them, so that all roles load side by side."""
        pool = cls(role, cluster, make)
        for place in range(size):
            pool._start(place)
        return pool

    def await_start(self) -> None:
        """Raises what a start raised itself; a worker that dies while it starts is tried again."""
        while self.starting:
            self._next({}, _as_it_is)

    def run(self, pieces: Sequence[Any], call: Callable[[Actor, Any], Any]) -> list[Any]:
        """Results of all pieces in their order, each worked on by one worker and counted once.

        `call(worker, piece)` gives the object reference of a piece's result.
        """
        waiting = deque(range(len(pieces)))
        results: dict[int, Any] = {}
        under_way: dict[Any, tuple[int, int]] = {}  # call: place, piece
        while len(results) < len(pieces):
            busy = {place for place, _ in under_way.values()}
            for place, actor in self.workers.items():
                if place not in busy and waiting:
                    piece = waiting.popleft()
                    under_way[call(actor, pieces[piece])] = (place, piece)
            done = self._next(
                {reference: place for reference, (place, _) in under_way.items()}, self.ready or _as_it_is
            )
            for reference in done.lost:
                waiting.appendleft(under_way.pop(reference)[1])
            for reference, result in done.results.items():
                results[under_way.pop(reference)[1]] = result
        return [results[index] for index in range(len(pieces))]

    def tell_all(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of every worker that can work; one that is lost meanwhile is replaced."""
        under_way = {actor.call(method, *args): place for place, actor in self.workers.items()}
        results = []
        while under_way:
            done = self._next(under_way, ready=None)
            results += done.results.values()
            under_way = {call: place for call, place in under_way.items() if call not in {*done.lost, *done.results}}
        return results

    def _next(self, under_way: Mapping[Any, int], ready: Callable[[Actor], None] | None) -> _Done:
        """Waits until a call ends or a worker is lost. Replacements join where `ready` can be called."""
        calls = {reference: self.workers[place] for reference, place in under_way.items()}
        starts = {reference: actor for reference, (_, actor) in self.starting.items()} if ready else {}
        try:
            reference, result = self.cluster.first(calls | starts)
        except Lost as lost:
            return _Done(lost=self._replace(lost, under_way))
        if reference not in self.starting:
            return _Done(results={reference: result})
        assert ready is not None, "starts are waited for only where a worker can be made ready"
        place, actor = self.starting.pop(reference)
        self.workers[place] = actor
        try:
            ready(actor)
        except Lost as lost:
            if lost.actor is not actor:
                raise
            self._replace(lost, {})
        return _Done()

    def _replace(self, lost: Lost, under_way: Mapping[Any, int]) -> list[Any]:
        """A new worker for the lost one; the calls that are lost with it."""
        self._count(lost)
        self.cluster.kill(lost.actor)
        places = {actor: place for place, actor in [*self.workers.items(), *self.starting.values()]}
        place = places[lost.actor]
        self.workers.pop(place, None)
        self.starting = {call: entry for call, entry in self.starting.items() if entry[1] is not lost.actor}
        self._start(place)
        return [reference for reference, owner in under_way.items() if owner == place]

    def _count(self, lost: Lost) -> None:
        self.restarts += 1
        if self.restarts > self.cluster.settings.max_restarts:
            raise RoleLost(
                f"{lost}; {self.role} workers were lost {self.restarts} times, cluster.max_restarts is "
                f"{self.cluster.settings.max_restarts}"
            ) from lost
        log.warning("%s; started again, its work goes to the others (%d of %d restarts)", lost, *self._counts())

    def _counts(self) -> tuple[int, int]:
        return self.restarts, self.cluster.settings.max_restarts

    def _start(self, place: int) -> None:
        actor = self.make(place)
        self.starting[actor.call("start", patience_s=self.cluster.settings.start_s)] = (place, actor)


def _as_it_is(actor: Actor) -> None:
    """A worker that needs nothing before it works."""


@dataclass(frozen=True)
class _Done:
    results: dict[Any, Any] = field(default_factory=dict)
    lost: Sequence[Any] = ()
