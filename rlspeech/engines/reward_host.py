"""Rewards outside the learner's process: each in one of its own, with a time-out, so that none can harm a run."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from rlspeech.config_rewards import RewardConfig
from rlspeech.engines.reward_functions import load_reward
from rlspeech.errors import RunFailed, UserError
from rlspeech.types import Rollout

GONE_S = 5.0  # after which a process whose pipe is closed has surely ended
START_S = 120.0  # longest start of a worker: it imports what the reward imports


@dataclass(frozen=True)
class Rewarded:
    """Of each rollout: every reward's own value by its name in the recipe, and the weighted sum.

    None: a reward does not apply, and is left out of the sum; a sum of nothing is None.
    """

    parts: Mapping[str, list[float | None]]
    total: list[float | None]


@dataclass
class Worker:
    """One reward in a process of its own."""

    name: str
    settings: RewardConfig
    process: Any = None
    pipe: Connection | None = None
    began: bool = False  # the process has told that it is ready

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.settings.reward, dict(self.settings.options))
        self.process = context.Process(target=serve, args=arguments, name=f"reward {self.name}", daemon=True)
        self.process.start()
        theirs.close()
        self.began = False

    def send(self, rollouts: Sequence[Rollout]) -> None:
        if self.process is None:
            self.start()
        assert self.pipe is not None
        self.pipe.send(list(rollouts))

    def receive(self, count: int) -> list[float | None] | str:
        """The values, or what is wrong with them."""
        assert self.pipe is not None
        try:
            if not self.began:
                if not self.pipe.poll(START_S):
                    return self._gone(f"was not ready within {START_S:g} s")
                self.pipe.recv()
                self.began = True
            if not self.pipe.poll(self.settings.timeout_s):
                return self._gone(f"took more than timeout_s = {self.settings.timeout_s:g} s")
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(GONE_S)
            code = self.process.exitcode
            return self._gone(f"ended its process (status {code})" if code is not None else "ended its process")
        return found if isinstance(found, str) else _checked(found, count)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process.close()
            self.process = None
        if self.pipe is not None:
            self.pipe.close()

    def _gone(self, why: str) -> str:
        self.stop()
        return why


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
        for worker in self.workers:
            worker.send(bare)
        parts = {}
        for worker in self.workers:
            found = worker.receive(len(bare))
            if isinstance(found, str):
                raise RunFailed(f"reward {worker.name!r} ({worker.settings.reward}): {_where(worker, bare, found)}")
            parts[worker.name] = found
        weights = {worker.name: worker.settings.weight for worker in self.workers}
        return Rewarded(parts, [_sum(weights, parts, index) for index in range(len(bare))])


def _sum(weights: Mapping[str, float], parts: Mapping[str, Sequence[float | None]], index: int) -> float | None:
    known = [(weights[name], values[index]) for name, values in parts.items()]
    known = [(weight, value) for weight, value in known if value is not None]
    return sum(weight * value for weight, value in known) if known else None


def _where(worker: Worker, rollouts: Sequence[Rollout], fault: str) -> str:
    """The fault with the sample that causes it, found by halving; of several, the first."""
    while len(rollouts) > 1:
        middle = len(rollouts) // 2
        for half in (rollouts[:middle], rollouts[middle:]):
            worker.send(half)
            found = worker.receive(len(half))
            if isinstance(found, str):
                rollouts, fault = half, found
                break
        else:
            return f"{fault}, for {len(rollouts)} replies together (the first: {rollouts[0].sample.id})"
    return f"{fault}, for a reply to {rollouts[0].sample.id}"


def _checked(found: Any, count: int) -> list[float | None] | str:
    if not isinstance(found, list | tuple):
        return f"gave {type(found).__name__}, not a list of numbers"
    if len(found) != count:
        return f"gave {len(found)} values for {count} replies"
    for value in found:
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"gave {value!r}, which is no number"
        if not math.isfinite(value):
            return f"gave {value}"
    return [None if value is None else float(value) for value in found]


def serve(pipe: Connection, name: str, options: Mapping[str, Any]) -> None:
    """What a worker's process runs: rollouts in, values or a line about a failure out."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage ends its workers itself
    reward = load_reward(name, options)
    pipe.send("ready")
    while True:
        try:
            rollouts = pipe.recv()
        except EOFError:
            return
        try:
            found = reward(rollouts)
            pipe.send(found if isinstance(found, list) else _plain(found))
        except Exception as error:  # whatever a user's reward may raise
            first = str(error).partition("\n")[0]
            pipe.send(f"raised {type(error).__name__}: {first}" if first else f"raised {type(error).__name__}")


def _plain(found: Any) -> Any:
    """A list of an array or tensor; a string would be read as a failure."""
    return found.tolist() if hasattr(found, "tolist") else (found,) if isinstance(found, str) else found
