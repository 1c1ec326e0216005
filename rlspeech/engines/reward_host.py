"""Rewards outside the learner's process: each in one of its own, with a time-out, so that none can harm a run."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from numbers import Real
from threading import Thread
from types import TracebackType
from typing import Any

from rlspeech.config_rewards import RewardConfig
from rlspeech.engines.reward_functions import awaited, load_reward
from rlspeech.errors import RunFailed, UserError
from rlspeech.types import Rollout

GONE_S = 5.0  # after which a process whose pipe is closed has surely ended
START_S = 120.0  # longest start of a worker: it imports what the reward imports
LONGEST = 80  # characters of a value that is told


@dataclass(frozen=True)
class Rewarded:
    """Of each rollout: every reward's own value by its name in the recipe, and the weighted sum.

    None: a reward does not apply, and is left out of the sum; a sum of nothing is None.
    """

    parts: Mapping[str, list[float | None]]
    total: list[float | None]


@dataclass(frozen=True)
class Fault:
    """What a reward did wrong."""

    what: str
    index: int | None = None  # of the rollout whose value it is, where that is known
    by_rollouts: bool = True  # False: it was wrong before it had any


@dataclass
class Worker:
    """One reward in a process of its own."""

    name: str
    settings: RewardConfig
    process: Any = None
    pipe: Connection | None = None
    sender: Thread | None = None
    began: bool = False  # the process has told that it is ready

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.settings.reward, dict(self.settings.options))
        self.process = context.Process(target=serve, args=arguments, name=f"reward {self.name}", daemon=True)
        self.process.start()
        theirs.close()
        self.began = False

    def send(self, pickled: bytes) -> Fault | None:
        """In a thread: a process that reads nothing holds up no more than that, until its time is over."""
        if self.process is None:
            self.start()
        elif self.began and not self.process.is_alive():
            return self._gone(f"ended its process{self._status()} between two steps", by_rollouts=False)
        self.sender = Thread(target=_send, args=(self.pipe, pickled), daemon=True)
        self.sender.start()
        return None

    def ready(self, until_s: float) -> Fault | None:
        """What is wrong before the reward has any rollouts."""
        if self.began:
            return None
        fault = self._read(until_s, f"was not ready within {START_S:g} s", by_rollouts=False)
        self.began = fault is None
        return fault

    def receive(self, until_s: float) -> list[float | None] | Fault:
        """The values, or what is wrong with them."""
        return self._read(until_s, f"took more than timeout_s = {self.settings.timeout_s:g} s")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process.close()
            self.process = None
        if self.sender is not None:
            self.sender.join(GONE_S)
        if self.pipe is not None:
            self.pipe.close()

    def _read(self, until_s: float, late: str, *, by_rollouts: bool = True) -> Any:
        """What the process says; a fault where it says nothing."""
        assert self.pipe is not None
        try:
            if self.pipe.poll(max(0.0, until_s - time.monotonic())):
                return self.pipe.recv()
        except (EOFError, OSError):
            late = f"ended its process{self._status()}{'' if by_rollouts else ' while it was loaded'}"
        return self._gone(late, by_rollouts=by_rollouts)

    def _status(self) -> str:
        self.process.join(GONE_S)
        return "" if self.process.exitcode is None else f" (status {self.process.exitcode})"

    def _gone(self, why: str, *, by_rollouts: bool) -> Fault:
        self.stop()
        return Fault(why, by_rollouts=by_rollouts)


def _send(pipe: Connection, pickled: bytes) -> None:
    with suppress(OSError, TypeError):  # the process has gone, or the pipe is closed: the reader tells
        pipe.send_bytes(pickled)


@dataclass
class RewardHost:
    """All rewards of a recipe; as a context, nothing of them is left after the block."""

    workers: Sequence[Worker] = field(default_factory=list)

    @classmethod
    def of(cls, settings: Mapping[str, RewardConfig]) -> RewardHost:
        """Raises UserError where a reward is not known, or refuses its options: here, before anything starts."""
        if not settings:
            raise UserError("rewards is empty: name one, such as [rewards.biasing]")
        for one in settings.values():
            load_reward(one.reward, one.options)
        return cls([Worker(name, one) for name, one in settings.items()])

    def __enter__(self) -> RewardHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.stop()

    def start(self) -> None:
        """The processes begin to load in the background."""
        for worker in self.workers:
            worker.start()

    def score(self, rollouts: Sequence[Rollout]) -> Rewarded:
        """Every reward of all rollouts. Raises RunFailed in one line with the reward and the sample that it fails on.

        A reward fails that raises, takes too long, ends its process, or gives anything but one finite number or None a
        rollout.
        """
        bare = [replace(one, prompt=replace(one.prompt, features=None)) for one in rollouts]
        parts = {}
        for worker, found in zip(self.workers, _ask(self.workers, bare), strict=True):
            if isinstance(found, Fault):
                raise RunFailed(f"reward {worker.name!r} ({worker.settings.reward}): {_where(worker, bare, found)}")
            parts[worker.name] = found
        weights = {worker.name: worker.settings.weight for worker in self.workers}
        return Rewarded(parts, [_sum(weights, parts, index) for index in range(len(bare))])


def _ask(workers: Sequence[Worker], rollouts: Sequence[Rollout]) -> list[list[float | None] | Fault]:
    """Of each worker. All work at once, and no time-out begins after another's."""
    pickled = pickle.dumps(list(rollouts), pickle.HIGHEST_PROTOCOL)
    sent = [worker.send(pickled) for worker in workers]
    until_s = time.monotonic() + START_S
    faults = [fault or worker.ready(until_s) for worker, fault in zip(workers, sent, strict=True)]
    asked_s = time.monotonic()
    return [
        fault or worker.receive(asked_s + worker.settings.timeout_s)
        for worker, fault in zip(workers, faults, strict=True)
    ]


def _sum(weights: Mapping[str, float], parts: Mapping[str, Sequence[float | None]], index: int) -> float | None:
    known = [(weights[name], values[index]) for name, values in parts.items()]
    known = [(weight, value) for weight, value in known if value is not None]
    return sum(weight * value for weight, value in known) if known else None


def _where(worker: Worker, rollouts: Sequence[Rollout], fault: Fault) -> str:
    """The fault with the sample that causes it, where need be found by halving; of several, the first."""
    while fault.by_rollouts and fault.index is None and len(rollouts) > 1:
        middle = len(rollouts) // 2
        for half in (rollouts[:middle], rollouts[middle:]):
            (found,) = _ask([worker], half)
            if isinstance(found, Fault):
                rollouts, fault = half, found
                break
        else:
            return f"{fault.what}, for {len(rollouts)} replies together (the first: {rollouts[0].sample.id})"
    return f"{fault.what}, for a reply to {rollouts[fault.index or 0].sample.id}" if fault.by_rollouts else fault.what


def serve(pipe: Connection, name: str, options: Mapping[str, Any]) -> None:
    """What a worker's process runs: None once it is ready, then rollouts in and values out; faults in their stead."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage ends its workers itself
    with suppress(EOFError, OSError):  # the run has ended
        try:
            reward = load_reward(name, options)
        except Exception as error:  # whatever a user's file may raise
            pipe.send(Fault(f"{_raised(error)} while it was loaded", by_rollouts=False))
            return
        pipe.send(None)
        while True:
            pipe.send(_values(reward, pipe.recv()))


def _values(reward: Callable[..., Any], rollouts: Sequence[Rollout]) -> list[float | None] | Fault:
    try:
        return _checked(awaited(reward(rollouts)), len(rollouts))
    except Exception as error:  # whatever a user's reward may raise
        return Fault(_raised(error))


def _raised(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return f"raised {type(error).__name__}: {first}" if first else f"raised {type(error).__name__}"


def _checked(found: Any, count: int) -> list[float | None] | Fault:
    """Finite numbers and None, of a list, an array or a tensor."""
    if hasattr(found, "tolist"):
        found = found.tolist()
    if not isinstance(found, list | tuple):
        return Fault(f"gave {type(found).__name__}, not a list of numbers")
    if len(found) != count:
        return Fault(f"gave {len(found)} values for {count} replies")
    values = [None if value is None else _number(value) for value in found]
    for index, (value, given) in enumerate(zip(values, found, strict=True)):
        if value is None and given is not None:
            return Fault(f"gave {' '.join(repr(given).split())[:LONGEST]}, which is no number", index)
        if value is not None and not math.isfinite(value):
            return Fault(f"gave {value}", index)
    return values


def _number(value: Any) -> float | None:
    """None where it is none. NumPy's numbers and tensors of one element are numbers, True and False are not."""
    try:
        value = value.item() if hasattr(value, "item") else value
        return float(value) if isinstance(value, Real) and not isinstance(value, bool) else None
    except OverflowError:
        return math.inf
    except (RuntimeError, ValueError):  # an array or tensor of several elements
        return None
