"""The sender's side of vLLM's weight-transfer API between GPUs: NCCL across devices, CUDA IPC on a shared one.

A sender is made on every learner rank, of which rank 0 talks to the workers; `send_weights()` of it is a collective of
the ranks that hold parts of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rlspeech.engines.vllm_shared_memory import beside, read

Backend = Literal["shared_memory", "nccl", "ipc"]


def backend(*, gpus: int, colocated: bool) -> Backend:
    """What `Layout.transfer` of a sampler is to be.

    >>> backend(gpus=0, colocated=False), backend(gpus=8, colocated=False), backend(gpus=8, colocated=True)
    ('shared_memory', 'nccl', 'ipc')
    """
    if gpus == 0:
        return "shared_memory"
    return "ipc" if colocated else "nccl"


def sender(
    backend: Literal["nccl", "ipc"],
    *,
    client: Client,
    source: Source,
    rank: int,
    workers: int,
    bucket_bytes: int,
    address: str = "127.0.0.1",
    port: int = 0,
) -> Any:
    """vLLM's own engine of a learner's rank. `workers`: GPUs of all samplers; they meet rank 0 at `address:port`."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    packing = {"packed": True, "packed_buffer_size_bytes": bucket_bytes, "rank": rank}
    if backend == "ipc":
        info: Any = IPCTrainerInitInfo(**packing)
    else:
        info = NCCLTrainerInitInfo(master_address=address, master_port=port, world_size=workers + 1, **packing)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


@dataclass
class Client:
    """vLLM's VLLMWeightSyncClient. `tell(method, *arguments)` calls it of every worker's VllmRollouts and waits."""

    tell: Callable[..., Any]
    version: int = 0  # of the weights that are sent next

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.tell("join_transfer", init_info)

    def start_weight_update(self) -> None:
        self.tell("begin_update")

    def update_weights(self, update_info: Any) -> None:
        self.tell("receive", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.tell("end_update", self.version if weight_version is None else int(weight_version))

    def shutdown_weight_transfer_engine(self) -> None:
        self.tell("leave_transfer")


@dataclass
class Source:
    """vLLM's WeightSource: what learns, merged, and what is fused with it in vLLM, from the checkpoint in `folder`.

    `weights` gives a fresh pass of the learner's weights; with sharded parameters that is a collective of all ranks.
    """

    weights: Callable[[], Iterable[tuple[str, Tensor]]]
    folder: Path
    device: torch.device
    _metadata: list[Any] = field(default_factory=list)

    def metadata(self) -> list[Any]:
        """Name, dtype and shape of each tensor, in the order of the passes; the first call makes a pass."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        if not self._metadata:
            self._metadata = [ParamMeta(name, value.dtype, tuple(value.shape)) for name, value in self]
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        sent, dtype = set(), None
        for name, value in self.weights():
            sent.add(name)
            dtype = value.dtype
            yield name, value.to(self.device)
        for file, names in beside(sent, self.folder).items():
            for name, value in read(file, names):
                yield name, value.to(self.device, dtype)
