"""Weights into a live vLLM engine without CUDA: a backend of vLLM's weight-transfer API, and what rounds off an update.

vLLM's own backends (nccl, ipc) move tensors between GPUs. This one takes them from this process, or from safetensors
files in shared memory that another process wrote: they are mapped, so that only what a worker keeps is copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

NAME = "shared_memory"


def register() -> None:
    """Makes the backend known to vLLM in this process; once is enough, and more does no harm."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(NAME, _backend())


def read(file: Path, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a safetensors file, mapped; `names` None: all of them."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        for name in names if names is not None else tensors.keys():
            yield name, tensors.get_tensor(name)


def beside(sent: Iterable[str], folder: Path) -> dict[Path, list[str]]:
    """Names in a checkpoint that must be sent with what learns, by file, though they stay as they are.

    vLLM fuses projections (q, k, v into one) and loads such a layer whole: of one that gets a part alone, the rest
    would become arbitrary numbers in silence. So all parameters under the parent of one that was sent are sent too.

    For instance `self_attn.k_proj.weight` with `self_attn.q_proj.weight`, where an adapter is on q and v alone.
    """
    known = set(sent)
    parents = {_parent(name) for name in known}
    files: dict[Path, list[str]] = {}
    for name, file in checkpoint_files(folder).items():
        if name not in known and _parent(name) in parents:
            files.setdefault(file, []).append(name)
    return files


@cache
def checkpoint_files(folder: Path) -> dict[str, Path]:
    """The file of every tensor of a checkpoint."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def _parent(name: str) -> str:
    """
    >>> _parent("language_model.model.layers.3.self_attn.q_proj.weight")
    'language_model.model.layers.3.self_attn'
    """
    return name.rsplit(".", 2)[0]


@cache
def _backend() -> type:
    """The class is made where vLLM is imported."""
    from dataclasses import dataclass

    import torch
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    @dataclass
    class InitInfo(WeightTransferInitInfo):
        """There is nothing to agree on."""

    @dataclass
    class UpdateInfo(WeightTransferUpdateInfo):
        """Tensors of this process under published names, or a safetensors file and the names to take from it."""

        tensors: list[tuple[str, Tensor]] | None = None
        file: str | None = None
        names: list[str] | None = None

    class SharedMemoryEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
        init_info_cls, update_info_cls = InitInfo, UpdateInfo

        def init_transfer_engine(self, init_info: InitInfo) -> None:
            return

        def start_weight_update(self) -> None:
            initialize_layerwise_reload(self.model)
            self.kernels = _unpacked_experts(self.model) if self.device.type == "cpu" else {}

        def update_weights(self, update_info: dict) -> None:
            # vLLM's own waits for an accelerator, which a CPU has not.
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":
                torch.accelerator.synchronize()

        def receive_weights(self, update_info: UpdateInfo) -> None:
            given = update_info.tensors if update_info.file is None else read(Path(update_info.file), update_info.names)
            with torch.no_grad():
                self.model.load_weights(iter(given))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            for method, kernel in self.kernels.items():
                method.moe_kernel = kernel
            if self.device.type == "cpu":
                _repack_tied_heads(self.model)

        def shutdown(self) -> None:
            return

    return SharedMemoryEngine


def _unpacked_experts(model: nn.Module) -> dict[Any, Any]:
    """What multiplies the experts of each layer, and its kernel, which is taken from it until all weights have come.

    On a CPU, vLLM (0.32) packs experts where there is no kernel yet, and would multiply by what comes later as it is.
    To be removed when its UnquantizedFusedMoEMethod packs whatever is loaded.
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    methods = [getattr(module, "quant_method", None) for module in model.modules()]
    kernels = {method: method.moe_kernel for method in methods if isinstance(method, UnquantizedFusedMoEMethod)}
    for method in kernels:
        method.moe_kernel = None
    return kernels


def _repack_tied_heads(model: nn.Module) -> None:
    """On a CPU, vLLM (0.32) multiplies by a packed copy, and packs that of an output projection for itself alone.

    One that is tied to the embedding gets no weights of its own, so its copy would stay as it was: it is packed anew.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    held = [module for module in model.modules() if isinstance(module, VocabParallelEmbedding)]
    embeddings = {id(module.weight) for module in held if not isinstance(module, ParallelLMHead)}
    for module in held:
        if isinstance(module, ParallelLMHead) and id(module.weight) in embeddings:
            module.quant_method.process_weights_after_loading(module)
