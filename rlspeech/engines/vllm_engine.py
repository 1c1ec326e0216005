"""A vLLM engine in this process, for a student that writes or a teacher that scores: start, stream of requests."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np
import torch

from rlspeech.config_engines import VllmConfig
from rlspeech.engines import vllm_plugin, vllm_shared_memory
from rlspeech.errors import UserError

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

log = logging.getLogger(__name__)

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # which cores are ours is the caller's business
    "VLLM_NO_USAGE_STATS": "1",
}
OVERRIDES = ("VLLM_CPU_KVCACHE_SPACE",)  # would count more than our settings
CPU_BLOCK_TOKENS = 32  # of the KV cache, the least that its kernels like: shared beginnings are shared to such a block
AUDIOS = 256  # pieces of long audio in one prompt, where a family has it cut
ROUNDS_AHEAD = 2  # requests under way, in multiples of what is decoded at once
LIVING: WeakSet[Any] = WeakSet()  # engines of this process


@dataclass(frozen=True)
class Layout:
    """What an engine is for, and what it may use."""

    tensor_parallel: int = 1  # GPUs
    threads: int | None = None  # CPU threads; None: as torch has it
    teacher: bool = False  # it scores; otherwise it writes, and takes over weights
    adapter_rank: int = 0  # above 0: it applies LoRA factors of up to this rank itself
    colocated: bool = False  # it shares its GPU with a learner, and can sleep
    transfer: Literal["shared_memory", "nccl", "ipc"] = "shared_memory"  # how weights come
    trust_remote_code: bool = False


def on_gpu() -> bool:
    return torch.cuda.is_available()


def start(folder: Path, settings: VllmConfig, layout: Layout) -> LLM:
    """An engine with the model of a folder; any thread may call it.

    Raises UserError where vLLM is not installed, or the model cannot hold sequences of `vllm.max_model_len`.
    """
    if find_spec("vllm") is None:
        raise UserError("vLLM is not installed: install rlspeech[cpu] or rlspeech[gpu], or run without vllm engines")
    if layout.threads is not None:
        torch.set_num_threads(layout.threads)  # before vLLM starts: it allows no change after that
        os.environ["OMP_NUM_THREADS"] = str(layout.threads)
    os.environ.update(ENVIRONMENT)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO" if log.isEnabledFor(logging.DEBUG) else "ERROR")
    with _this_process_as_it_was():
        from vllm import LLM

        vllm_plugin.register()
        _last_one_out()
        no_dict_of_llvmlite()
        try:
            llm = LLM(str(folder), **_arguments(settings, layout))
        except ValueError as error:
            if "max_model_len" in str(error):
                raise UserError(
                    f"vllm.max_model_len = {settings.max_model_len}: the model in {folder} holds no such sequence"
                ) from error
            raise
    LIVING.add(llm)
    return llm


def no_dict_of_llvmlite() -> None:
    """llvmlite's wrapper of its library answers to any name, `__dict__` too; from here on to none of Python's own.

    vLLM (0.32: triton_utils.dispatcher) looks into the `__dict__` of all that modules hold, and does not start in a
    process that numba has compiled in. To be removed when it passes over what is no dict.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None or hasattr(ffi._lib_wrapper.__getattr__, "__wrapped__"):
        return
    answer = ffi._lib_wrapper.__getattr__

    @wraps(answer)
    def plain(library: Any, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return answer(library, name)

    ffi._lib_wrapper.__getattr__ = plain


def _last_one_out() -> None:
    """An engine that ends destroys vLLM's process groups, which all engines of a process share: here, the last does.

    To be removed when vLLM (0.32: EngineCore.shutdown) ends its own alone.
    """
    from vllm.v1.engine import core

    destroy = core.cleanup_dist_env_and_memory
    if not hasattr(destroy, "__wrapped__"):

        @wraps(destroy)
        def when_last() -> None:
            if not LIVING:
                destroy()

        core.cleanup_dist_env_and_memory = when_last


def _arguments(settings: VllmConfig, layout: Layout) -> dict[str, Any]:
    gpu = on_gpu()
    given: dict[str, Any] = {
        "dtype": "float32" if settings.dtype == "auto" and not gpu else settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": layout.tensor_parallel,
        "enforce_eager": settings.enforce_eager or not gpu,
        "enable_prefix_caching": True,
        "trust_remote_code": layout.trust_remote_code,
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if gpu:
        given |= {"gpu_memory_utilization": settings.gpu_memory_utilization, "enable_sleep_mode": layout.colocated}
    else:
        given |= {"kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30), "block_size": CPU_BLOCK_TOKENS}
    if layout.tensor_parallel > 1:
        given["distributed_executor_backend"] = "mp"  # its own processes, also inside a Ray actor
    if layout.teacher:
        return given | {"max_logprobs": -1}
    given |= {
        "logprobs_mode": "processed_logprobs",  # of the distribution that is sampled
        "limit_mm_per_prompt": {"audio": AUDIOS, "image": 0, "video": 0},
        # Adapters, and what learns beside them, come as files.
        "weight_transfer_config": {"backend": vllm_shared_memory.NAME if layout.adapter_rank else layout.transfer},
    }
    if layout.adapter_rank:
        given |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _lora_rank(layout.adapter_rank)}
    return given


def _lora_rank(rank: int) -> int:
    """The least of the ranks that vLLM has kernels for."""
    known = (8, 16, 32, 64, 128, 256, 320, 512)
    fitting = [least for least in known if least >= rank]
    if not fitting:
        raise UserError(
            f"lora.rank = {rank}: vLLM applies adapters of rank {known[-1]} at most; use cluster.sync = merged"
        )
    return fitting[0]


@contextmanager
def _this_process_as_it_was() -> Iterator[None]:
    """vLLM's start seeds every generator, replaces torch.set_num_threads, preloads libraries into later programs."""
    set_threads = torch.set_num_threads
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    overrides = {name: os.environ.pop(name) for name in OVERRIDES if name in os.environ}
    before = dict(os.environ)
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        for name in set(os.environ) - set(before):
            if not name.startswith(("VLLM_", "TORCHINDUCTOR_", "TRITON_")):
                del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if not name.startswith("TORCHINDUCTOR_")})
        os.environ.update(overrides)


@dataclass(frozen=True)
class Request:
    prompt: dict[str, Any]  # as vLLM takes it
    params: SamplingParams
    adapter: LoRARequest | None = None


def stream(
    llm: LLM, requests: Iterable[Request], *, on_progress: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, RequestOutput]]:
    """Finished requests with their index, as they finish. A bounded number of sequences is under way at any time.

    Where the caller stops early or something fails, what is under way is dropped.
    """
    engine = llm.llm_engine
    limit = ROUNDS_AHEAD * engine.vllm_config.scheduler_config.max_num_seqs
    waiting = enumerate(requests)
    under_way: dict[str, tuple[int, int]] = {}  # request id: index, sequences
    more = True
    try:
        while more or under_way:
            while more and (not under_way or sum(count for _, count in under_way.values()) < limit):
                index, request = next(waiting, (-1, None))
                if request is None:
                    more = False
                    break
                name = f"rlspeech-{next(llm.request_counter)}"
                under_way[name] = (index, request.params.n)
                engine.add_request(name, request.prompt, request.params, lora_request=request.adapter)
            for output in _step(engine) if under_way else ():
                if output.finished:
                    yield under_way.pop(output.request_id)[0], output
            on_progress()
    finally:
        if under_way:
            engine.abort_request(list(under_way))


def _step(engine: Any) -> list[RequestOutput]:
    """vLLM's sampler draws from torch's own generator, though every request has its seed: it stays as it was."""
    with torch.random.fork_rng(devices=[]):
        return engine.step()
