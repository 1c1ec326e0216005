"""A learner whose DeepSpeed ranks are Ray actors: the driver hands them their batches and passes their weights on."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

from safetensors import safe_open
from torch import Tensor

from rlspeech.config import OptimConfig
from rlspeech.config_engines import DeepspeedConfig
from rlspeech.engines.cluster import LOCAL_HOST, Actor, Cluster, Lost, Worker
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import PLAIN, Objective
from rlspeech.engines.reply_logprobs import bare
from rlspeech.protocols import Learned, Loss, Student
from rlspeech.types import TokenBatch

LATE_S = 10.0  # after which Ray has surely noticed that an actor is dead
READ_BYTES = 64 * 2**20  # of weights that are read on the driver at a time
Known = TypeVar("Known")
USER_MODULES = "rlspeech_user_"  # names that plugins.py gives to the modules of users' files


@dataclass(frozen=True)
class Task:
    """What a rank learns and how: small enough to hand to another process."""

    place: StudentPlace
    prepare: Mapping[str, Any]  # arguments of Student.prepare
    optim: OptimConfig
    settings: DeepspeedConfig
    objective: Objective = PLAIN
    seed: int = 0
    threads: int = 1  # of each rank on a CPU
    small: int | None = None  # see learner_deepspeed.SMALL


@dataclass(frozen=True)
class Samplers:
    """vLLM workers on GPUs, as rank 0 of the learner reaches them."""

    handles: tuple[Any, ...]
    tensor_parallel: int
    transfer: Literal["nccl", "ipc"]
    bucket_bytes: int

    def tell(self, method: str, *args: Any) -> None:
        """Calls a method of all workers and waits. In NCCL's group a worker has its place behind those before it."""
        import ray

        calls = []
        for number, handle in enumerate(self.handles):
            given = args
            if args and isinstance(args[0], dict) and "rank_offset" in args[0]:
                given = ({**args[0], "rank_offset": args[0]["rank_offset"] + number * self.tensor_parallel},)
            calls.append(getattr(handle, method).remote(*given))
        ray.get(calls)


class LearnerRank(Worker):
    """One DeepSpeed rank. All ranks are called with the same method at the same time."""

    def __init__(self, task: Task, rank: int, ranks: int) -> None:
        self.task, self.rank, self.ranks = task, rank, ranks
        self.buckets: Iterator[Path] = iter(())

    def address(self) -> tuple[str, int]:
        """Where the others can find this rank: the machine's address and a free port."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as found:
            found.bind((host, 0))
            return host, found.getsockname()[1]

    def start(self, address: tuple[str, int]) -> None:
        import torch

        from rlspeech.engines.learner_deepspeed import SMALL, DeepspeedRank

        host, port = address
        os.environ |= {"RANK": str(self.rank), "WORLD_SIZE": str(self.ranks), "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
        if host == LOCAL_HOST:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # else gloo takes the interface that the machine's name stands for
        task = self.task
        torch.set_num_threads(task.threads)
        torch.manual_seed(task.seed)  # the adapter begins with the same values on every rank
        student = task.place.load(dtype=_dtype(task.settings))
        student.prepare(**task.prepare)
        self.moved()
        torch.manual_seed(task.seed * 1_000_003 + self.rank)
        self.learner = DeepspeedRank.start(
            student,
            task.optim,
            task.settings,
            objective=task.objective,
            on_progress=self.moved,
            small=SMALL if task.small is None else task.small,
        )

    def step(
        self, batches: Sequence[TokenBatch], head: Tensor | None, loss: Loss, temperature: float
    ) -> Learned | None:
        return self._first(self.learner.step(_headed(batches, head), loss, temperature=temperature))

    def evaluate(
        self, batches: Sequence[TokenBatch], head: Tensor | None, loss: Loss, temperature: float
    ) -> Learned | None:
        return self._first(self.learner.evaluate(_headed(batches, head), loss, temperature=temperature))

    def keep_reference(self) -> None:
        self.learner.keep_reference()

    def logprobs(
        self, batches: Sequence[TokenBatch], temperature: float, reference: bool
    ) -> dict[int, list[float]] | None:
        return self._first(self.learner.logprobs(batches, temperature=temperature, reference=reference))

    def begin_publishing(self, folder: Path, bucket_bytes: int) -> None:
        self.buckets = self.learner.publish(folder, bucket_bytes)

    def next_bucket(self) -> Path | None:
        """None when all is written."""
        self.moved()
        return next(self.buckets, None)

    def join_samplers(self, samplers: Samplers, address: tuple[str, int]) -> None:
        """Between GPUs: the sender of this rank, of which rank 0 talks to the workers."""
        from rlspeech.engines import weight_transfer

        self.client = weight_transfer.Client(samplers.tell)
        self.sender = weight_transfer.sender(
            samplers.transfer,
            client=self.client,
            source=weight_transfer.Source(self.learner.weights, self.task.place.folder, self.learner.engine.device),
            rank=self.rank,
            workers=len(samplers.handles) * samplers.tensor_parallel,
            bucket_bytes=samplers.bucket_bytes,
            address=address[0],
            port=address[1],
        )

    def send_weights(self, version: int) -> None:
        self.client.version = version
        self.sender.send_weights()

    def export(self, folder: Path) -> None:
        self.learner.export(folder)

    def export_adapter(self, folder: Path) -> None:
        self.learner.export_adapter(folder)

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def restore(self, folder: Path) -> None:
        self.learner.restore(folder)

    def _first(self, known: Known) -> Known | None:
        """Every rank knows the same; one of them tells it."""
        return known if self.rank == 0 else None


@dataclass
class ClusterLearner:
    """A rank that dies or hangs raises `Lost`: `restart`, then `restore` the newest state.

    The folders that are given lie where all ranks can reach them. Methods may be called from several threads: `turn`
    lets one at a time through.
    """

    cluster: Cluster
    task: Task
    ranks: int
    gpus: float
    first_bundle: int
    student: Student  # without its weights
    steps_done: int = 0
    turn: threading.RLock = field(default_factory=threading.RLock)
    actors: list[Actor] = field(default_factory=list)
    has_reference: bool = False  # new ranks are to keep one, too
    _starting: dict[Any, Actor] = field(default_factory=dict)
    _samplers: Samplers | None = None  # those that have met the ranks
    _head: tuple[Any, Any] = (None, None)  # the teacher's head as it was given, and where Ray keeps it

    @classmethod
    def begin(
        cls, cluster: Cluster, ranks: int, task: Task, *, gpus: float = 1, first_bundle: int = 0
    ) -> ClusterLearner:
        """Ranks that load in the background; rank i sits in bundle `first_bundle + i`. `await_start` waits for them."""
        learner = cls(cluster, task, ranks, gpus, first_bundle, task.place.load(weights=False))
        learner._start()
        return learner

    @classmethod
    def start(
        cls, cluster: Cluster, ranks: int, task: Task, *, gpus: float = 1, first_bundle: int = 0
    ) -> ClusterLearner:
        """Ranks that are ready to learn."""
        learner = cls.begin(cluster, ranks, task, gpus=gpus, first_bundle=first_bundle)
        learner.await_start()
        return learner

    def await_start(self) -> None:
        with self.turn:
            self.cluster.all(self._starting)
            self._starting = {}

    def step(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        with self.turn:
            learned = self._learn("step", batches, loss, temperature)
            self.steps_done += 1
            return learned

    def evaluate(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        with self.turn:
            return self._learn("evaluate", batches, loss, temperature)

    def keep_reference(self) -> None:
        """It has to come before the first step and the first `restore`: new ranks keep what they begin with."""
        with self.turn:
            self._tell("keep_reference")
            self.has_reference = True

    def logprobs(
        self, batches: Sequence[TokenBatch], *, temperature: float = 1.0, reference: bool = False
    ) -> dict[int, list[float]]:
        with self.turn:
            given = [bare(batch) for batch in batches]
            calls = {
                actor.call("logprobs", given[rank :: self.ranks], temperature, reference): actor
                for rank, actor in enumerate(self.actors)
            }
            return self._all(calls)[0]

    def publish(self, folder: Path, bucket_bytes: int) -> Iterator[Path]:
        """The weights as safetensors files, each written when it is asked for: the one before may be gone by then."""
        with self.turn:
            self._tell("begin_publishing", folder, bucket_bytes)
            while (bucket := self._tell("next_bucket")[0]) is not None:
                yield bucket

    def send(self, samplers: Samplers, version: int) -> None:
        """Weights from GPU to GPU, to these samplers and no others; they meet anew when one of them is a new one."""
        with self.turn:
            if samplers != self._samplers:
                (address,) = self.cluster.all({self.actors[0].call("address"): self.actors[0]})
                self._tell("join_samplers", samplers, address)
                self._samplers = samplers
            self._tell("send_weights", version)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        with TemporaryDirectory(prefix="rlspeech-", dir=_shared_memory()) as folder:
            for bucket in self.publish(Path(folder), READ_BYTES):
                with safe_open(bucket, "pt") as file:
                    yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
                bucket.unlink()

    def export(self, folder: Path) -> None:
        with self.turn:
            self._tell("export", folder)

    def export_adapter(self, folder: Path) -> None:
        """The adapter alone, as PEFT and vLLM load it."""
        with self.turn:
            self._tell("export_adapter", folder)

    def save(self, folder: Path) -> None:
        with self.turn:
            self._tell("save", folder)

    def restore(self, folder: Path) -> None:
        from rlspeech.engines.learner_state import read

        with self.turn:
            self._tell("restore", folder)
            self.steps_done = read(folder).steps_done

    def restart(self) -> None:
        """New ranks with the weights they first began with, whatever has become of the old ones."""
        with self.turn:
            self.close()
            self.steps_done = 0
            self._start()
            self.await_start()
            if self.has_reference:
                self._tell("keep_reference")

    def close(self) -> None:
        for actor in self.actors:
            self.cluster.kill(actor)
        self.actors, self._starting, self._samplers = [], {}, None

    def _start(self) -> None:
        self.actors = [
            self.cluster.actor(
                LearnerRank,
                self.task,
                rank,
                self.ranks,
                name=f"learner {rank}",
                gpus=self.gpus,
                bundle=self.first_bundle + rank,
            )
            for rank in range(self.ranks)
        ]
        first, patience_s = self.actors[0], self.cluster.settings.start_s
        address = first.call("address", patience_s=patience_s)  # a reference: Ray hands its value to the ranks
        self._starting = {actor.call("start", address, patience_s=patience_s): actor for actor in self.actors}

    def _tell(self, method: str, *args: Any) -> list[Any]:
        return self._all({actor.call(method, *args): actor for actor in self.actors})

    def _all(self, calls: Mapping[Any, Actor]) -> list[Any]:
        """As Cluster.all. Where a rank dies, another may be the first to tell, by the failure of what both were at."""
        import ray
        from ray.exceptions import RayActorError

        try:
            return self.cluster.all(calls)
        except Lost:
            raise
        except Exception as error:
            ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=LATE_S)
            for reference in ended:
                try:
                    ray.get(reference)
                except RayActorError:
                    raise Lost(calls[reference], "died") from error
                except Exception:
                    continue
            raise

    def _learn(self, method: str, batches: Sequence[TokenBatch], loss: Loss, temperature: float) -> Learned:
        import ray

        _send_with_its_module(loss)
        given = batches[0].teacher_head if batches else None
        if given is not self._head[0]:
            self._head = (given, ray.put(given))
        bare = [replace(batch, teacher_head=None) for batch in batches]
        calls = {
            actor.call(method, bare[rank :: self.ranks], self._head[1], loss, temperature): actor
            for rank, actor in enumerate(self.actors)
        }
        return self._all(calls)[0]


def _headed(batches: Sequence[TokenBatch], head: Tensor | None) -> list[TokenBatch]:
    """The teacher's head comes once for all batches."""
    return [replace(batch, teacher_head=head) for batch in batches]


def _dtype(settings: DeepspeedConfig) -> Any:
    import torch

    name = settings.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    return getattr(torch, name)


def _send_with_its_module(loss: Loss) -> None:
    """A loss from a user's file goes with its code: the actors cannot import that file by its name."""
    from ray import cloudpickle

    module = sys.modules[type(loss).__module__]
    if module.__name__.startswith(USER_MODULES):
        cloudpickle.register_pickle_by_value(module)


def _shared_memory() -> Path | None:
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None
