"""Rollouts by vLLM engines in Ray actors: they share the prompts of a step, and one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rlspeech.engines.cluster import Actor
from rlspeech.engines.cluster_learner import ClusterLearner, Samplers
from rlspeech.engines.pool import Pool
from rlspeech.engines.weight_transfer import Backend
from rlspeech.protocols import Sampling
from rlspeech.types import Prompt, Rollout, Sample


@dataclass
class ClusterRollouts:
    """`pool`'s workers are workers.RolloutWorker."""

    pool: Pool
    max_num_seqs: int  # sequences that one engine decodes at once
    bucket_mib: int
    adapter_only: bool = False
    colocated: bool = False
    tensor_parallel: int = 1
    transfer: Backend = "shared_memory"
    learner: ClusterLearner | None = None  # whose weights they have
    awake: bool = True

    def __post_init__(self) -> None:
        self.pool.ready = self._bring_up_to_date

    def generate(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Prompts of one audio go to one worker together; the replies come in the order of the prompts."""
        self._wake()
        size = piece_size(len(prompts), sampling.n, workers=len(self.pool.workers) or 1, at_once=self.max_num_seqs)
        pieces = list(by_audio(prompts, size))

        def call(worker: Actor, piece: Sequence[int]) -> Any:
            # What a worker needs of a sample is who it is: its seed hangs on it.
            asked = [Sample(id=samples[index].id, instruction=samples[index].instruction) for index in piece]
            return worker.call("generate", asked, [prompts[index] for index in piece], sampling)

        found: dict[int, Sequence[Any]] = {}
        for piece, packed in zip(pieces, self.pool.run(pieces, call), strict=True):
            replies = packed.replies()
            for place, index in enumerate(piece):
                found[index] = replies[place * sampling.n : (place + 1) * sampling.n]
        self._sleep()
        return [
            Rollout(sample, prompt, completion)
            for index, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
            for completion in found[index]
        ]

    def load_weights(self, learner: ClusterLearner, version: int) -> None:
        """A worker that is lost meanwhile is replaced, and gets the weights when it is ready."""
        self._wake()
        self.learner = learner
        if self.transfer == "shared_memory" or self.adapter_only:
            self._send(learner, version, self.pool.tell_all)
        else:
            learner.send(self._samplers(self.transfer), version)

    def _bring_up_to_date(self, worker: Actor) -> None:
        """The learner's newest weights for a worker that was started again: they may be newer than the others have."""
        if self.learner is not None:
            cluster = self.pool.cluster
            with self.learner.turn:
                version = self.learner.steps_done
                if self.transfer != "shared_memory" and not self.adapter_only:
                    self.learner.send(self._samplers(self.transfer), version)  # all of them meet anew
                    return
                self._send(self.learner, version, lambda name, *args: cluster.all({worker.call(name, *args): worker}))

    def _send(self, learner: ClusterLearner, version: int, tell: Callable[..., Any]) -> None:
        """On a CPU one bucket at a time through shared memory: written by the learner, read by workers, then gone."""
        with shared_folder() as folder:
            if self.adapter_only:
                learner.export_adapter(folder)
                tell("load_adapter", folder, version)
                return
            tell("begin_update")
            for bucket in learner.publish(folder, self.bucket_mib * 2**20):
                tell("update", bucket)
                bucket.unlink()
            tell("end_update", version)

    def _samplers(self, transfer: Literal["nccl", "ipc"]) -> Samplers:
        handles = tuple(self.pool.workers[place].handle for place in sorted(self.pool.workers))
        return Samplers(handles, self.tensor_parallel, transfer, self.bucket_mib * 2**20)

    def _sleep(self) -> None:
        """Colocated engines leave the GPU to the learner."""
        if self.colocated and self.awake:
            self.pool.tell_all("sleep")
            self.awake = False

    def _wake(self) -> None:
        if not self.awake:
            self.pool.tell_all("wake")
            self.awake = True


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder of this machine's shared memory, gone with the block."""
    base = Path("/dev/shm")
    with TemporaryDirectory(prefix="rlspeech-", dir=base if base.is_dir() else None) as folder:
        yield Path(folder)


def piece_size(prompts: int, n: int, *, workers: int, at_once: int) -> int:
    """Prompts of one piece: equal pieces, at least one for each worker, none with more sequences than fit at once.

    >>> piece_size(16, 4, workers=2, at_once=64), piece_size(100, 4, workers=2, at_once=64)
    (8, 13)
    """
    rounds = ceil(prompts * n / (workers * at_once))
    return max(1, ceil(prompts / (workers * rounds)))


def by_audio(prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    """Indices in pieces of about `size` prompts; prompts of one audio are in one piece.

    >>> list(by_audio([Prompt((1,), audio_key=key) for key in "abab"], 1))
    [[0, 2], [1, 3]]
    """
    groups: dict[Any, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.audio_key or index, []).append(index)
    piece: list[int] = []
    for group in groups.values():
        piece += group
        if len(piece) >= size:
            yield piece
            piece = []
    if piece:
        yield piece
