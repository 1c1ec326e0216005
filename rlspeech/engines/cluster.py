"""Ray as the engines use it: a cluster of this run's own on loopback, or one by address; its actors; who still lives.

An actor is a `Worker`. It is built light and does its heavy work in methods that are called with `Actor.call`, all of
them one after the other in one thread; `pulse` answers beside them, so that a busy actor can be told from a dead one.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspeech.config_engines import ClusterConfig
from rlspeech.errors import RunFailed, UserError

log = logging.getLogger(__name__)

LOCAL_HOST = "127.0.0.1"
PULSE = "pulse"  # the concurrency group that answers while the actor works


class Lost(RunFailed):
    """An actor died, or has not got on for too long."""

    def __init__(self, actor: Actor, why: str) -> None:
        super().__init__(f"{actor.name}: {why}")
        self.actor = actor


@dataclass(frozen=True)
class Pulse:
    progress: int  # grows with every piece of work that is done
    pid: int
    host: str


class Worker:
    """Base of every actor: it tells how far it has got."""

    progress = 0

    def moved(self) -> None:
        self.progress += 1

    def pulse(self) -> Pulse:
        return Pulse(self.progress, os.getpid(), socket.gethostname())


@dataclass(eq=False)
class Actor:
    name: str  # for people: "rollout 0"
    handle: Any
    pulse: Pulse | None = None
    moved_s: float = field(default_factory=time.monotonic)  # when it was last seen to get on
    patience_s: float | None = None  # of the call under way; default: cluster.hang_s

    def call(self, method: str, *args: Any, patience_s: float | None = None) -> Any:
        """An object reference of the method's result."""
        self.moved_s, self.patience_s = time.monotonic(), patience_s
        return getattr(self.handle, method).remote(*args)


@dataclass
class Cluster:
    """`start` it, then `close` it: nothing of this run is left behind."""

    settings: ClusterConfig
    started: bool  # by us: then it is stopped at the end
    gpus: int
    threads: int
    bundles: Any = None  # placement group of the GPUs
    actors: list[Actor] = field(default_factory=list)
    interrupted: bool = False  # set from another thread: whoever waits gives up

    @classmethod
    def start(cls, settings: ClusterConfig, *, threads: int) -> Cluster:
        """`threads`: CPU threads of one actor. Raises UserError where no cluster answers at the address."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        with _our_sigterm():
            if settings.address is None:
                _start_here(settings, quiet)
            else:
                _join(settings.address, quiet)
        import ray

        gpus = int(ray.cluster_resources().get("GPU", 0))
        return cls(settings, settings.address is None, gpus, threads)

    def place(self, bundles: Sequence[int]) -> None:
        """Reserves groups of GPUs, each group on one machine; without GPUs there is nothing to reserve.

        Raises UserError where the cluster has not got them free.
        """
        if not self.gpus:
            return
        from ray.util.placement_group import placement_group

        wanted = sum(bundles)
        if wanted > self.gpus:
            raise UserError(f"cluster: {wanted} GPUs wanted, {self.gpus} there: {wanted - self.gpus} too many")
        self.bundles = placement_group([{"GPU": count, "CPU": 1} for count in bundles], strategy="PACK")
        if not self.bundles.wait(timeout_seconds=60):
            raise UserError(f"cluster: {wanted} GPUs are there and are not free; another run holds them")

    def actor(
        self, kind: type[Worker], *args: Any, name: str, gpus: float = 0, bundle: int = 0, env: Mapping[str, str] = {}
    ) -> Actor:
        """A new actor. With GPUs it sits in the `bundle` that `place` has reserved."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0}
        if self.bundles is not None:
            strategy = PlacementGroupSchedulingStrategy(self.bundles, placement_group_bundle_index=bundle)
            options |= {"num_gpus": gpus, "scheduling_strategy": strategy}
        options["runtime_env"] = {"env_vars": self._environment() | dict(env)}
        handle = _remote(kind).options(**options).remote(*args)
        actor = Actor(name, handle)
        self.actors.append(actor)
        return actor

    def _environment(self) -> dict[str, str]:
        """What an actor finds: the threads it may use and, on a cluster of our own, our modules and programs.

        A program is ninja, which DeepSpeed calls by name.
        """
        found = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        # Roles take turns on the same cores: threads that wait do not spin.
        found["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        if self.started:
            found["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
            found["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        return found

    def first(self, calls: Mapping[Any, Actor]) -> tuple[Any, Any]:
        """The first call that ends, as (reference, result). Raises Lost of an actor, and what a call raised itself.

        An actor is given up when its progress has stood still for the patience that its call came with.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        while True:
            ready, _ = ray.wait(list(calls), num_returns=1, timeout=self.settings.heartbeat_s)
            if ready:
                try:
                    return ready[0], ray.get(ready[0])
                except RayActorError as error:
                    raise Lost(calls[ready[0]], _why(error)) from error
                except RayTaskError as error:
                    raise error.cause from error
            if self.interrupted:
                raise RunFailed("interrupted")
            for actor in set(calls.values()):
                self._look_at(actor)

    def all(self, calls: Mapping[Any, Actor]) -> list[Any]:
        """The results of all calls in their order. Raises as `first` does, as soon as one of them is lost."""
        left, results = dict(calls), {}
        while left:
            reference, result = self.first(left)
            results[reference] = result
            del left[reference]
        return [results[reference] for reference in calls]

    def _look_at(self, actor: Actor) -> None:
        """Raises Lost where the actor is dead, or stands still for too long."""
        import ray
        from ray.exceptions import GetTimeoutError, RayActorError

        try:
            pulse = ray.get(actor.handle.pulse.remote(), timeout=self.settings.heartbeat_s)
        except RayActorError as error:
            raise Lost(actor, _why(error)) from error
        except GetTimeoutError:
            pulse = None
        if pulse is not None and (actor.pulse is None or pulse.progress != actor.pulse.progress):
            actor.pulse, actor.moved_s = pulse, time.monotonic()
        elif time.monotonic() - actor.moved_s > (patience_s := actor.patience_s or self.settings.hang_s):
            raise Lost(actor, f"has not got on for {patience_s:.0f} s")

    def interrupt(self) -> None:
        """Whoever waits for an actor gives up, within a heartbeat."""
        self.interrupted = True

    def kill(self, actor: Actor) -> None:
        """Ends an actor, a stopped one too."""
        import ray

        with suppress(ValueError):
            self.actors.remove(actor)
        with suppress(Exception):  # it is dead, or its node is
            ray.kill(actor.handle)
        if actor.pulse is not None and actor.pulse.host == socket.gethostname():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(actor.pulse.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends our actors; of a cluster that was started here, all its processes."""
        import ray

        if not ray.is_initialized():
            return
        for actor in list(self.actors):
            self.kill(actor)
        if self.bundles is not None:
            ray.util.remove_placement_group(self.bundles)
            self.bundles = None
        ray.shutdown()


@contextmanager
def _our_sigterm() -> Iterator[None]:
    """Ray puts a handler of its own in place of the command's, which exits with another status: ours comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _join(address: str, quiet: Mapping[str, Any]) -> None:
    import ray

    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cluster.address = {address!r}: no Ray cluster answers ({reason})") from error


def _start_here(settings: ClusterConfig, quiet: Mapping[str, Any]) -> None:
    """A cluster on this machine; on loopback every port of it is bound there."""
    import ray
    from ray._private import ray_constants

    if settings.host == LOCAL_HOST:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's switch for: this node's address is loopback
    ray_constants.ENABLE_RAY_CLUSTER = settings.host != LOCAL_HOST  # the same switch, read when Ray was imported
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 1),
        include_dashboard=settings.dashboard,
        dashboard_host=settings.host,
        object_store_memory=settings.object_store_mib * 2**20,
        _node_ip_address=settings.host,
        **quiet,
    )


def _knock(address: str) -> None:
    """Raises OSError where nothing listens at host:port: Ray would ask there for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _why(error: Exception) -> str:
    """An actor that failed to be built tells its error in the last line; of a killed one there is nothing to tell."""
    last = str(error).strip().splitlines()[-1].strip()
    return f"died ({last[:200]})" if re.match(r"[\w.]+(Error|Exception): ", last) else "died"


def _remote(kind: type[Worker]) -> Any:
    """The worker's class as Ray's, its pulse in a thread of its own: Ray's mark goes on a method of the class."""
    import ray

    class Marked(kind):  # type: ignore[misc, valid-type]
        @ray.method(concurrency_group=PULSE)
        def pulse(self) -> Pulse:
            return super().pulse()

    Marked.__name__ = Marked.__qualname__ = kind.__name__
    return ray.remote(num_cpus=0, concurrency_groups={PULSE: 1})(Marked)
