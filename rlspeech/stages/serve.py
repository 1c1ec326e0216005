"""`rlspeech serve`: a model behind an OpenAI-compatible address, by vLLM's own server, until it is stopped."""

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from rlspeech.catalog import fetch, resolve
from rlspeech.config import ServeConfig
from rlspeech.engines.loading import trusted
from rlspeech.engines.vllm_command import is_cpu_build
from rlspeech.errors import UserError

log = logging.getLogger(__name__)

GRACE_S = 20.0  # between asking vLLM to end and ending it
LOOK_S = 0.5
PR_SET_PDEATHSIG = 1  # Linux, prctl(2)
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # where a server that listens there is reached
GIB = 2**30


def run(config: ServeConfig) -> None:
    """Serves until it is interrupted. Raises UserError where model, vLLM or port is not to be had, or vLLM ends."""
    folder = trusted(fetch(resolve(config.model)), config.trust_remote_code)
    on_cpu = is_cpu_build()
    _check_port(config.host, config.port)
    if not _key(config) and config.host not in ("127.0.0.1", "localhost", "::1"):
        log.warning("no key in %s: whoever reaches %s may use this server", config.api_key_env, config.host)
    log.info("%s: vLLM starts, about a minute on a CPU", config.model)
    with _vllm(arguments(config, folder, on_cpu=on_cpu), environment(config, on_cpu=on_cpu)) as process:
        if _is_ready(process, address(config)):
            log.info("ready: model %s at %s/v1; Ctrl-C ends it", config.name or config.model, address(config))
        status = process.wait()
    raise UserError(f"{config.model}: vLLM ended with status {status}; its own lines above say why")


def address(config: ServeConfig) -> str:
    """
    >>> address(ServeConfig(model="tiny-llm", host="0.0.0.0"))
    'http://127.0.0.1:8000'
    """
    host = EVERYWHERE.get(config.host, config.host)
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def arguments(config: ServeConfig, folder: Path, *, on_cpu: bool) -> list[str]:
    """What vLLM's command is given. The key is not among it: the command line of a process can be read by anyone."""
    engine = config.vllm
    given = {
        "served-model-name": config.name or config.model,
        "host": config.host,
        "port": config.port,
        "max-logprobs": config.max_logprobs,
        "max-model-len": engine.max_model_len,
        "max-num-seqs": engine.max_num_seqs,
        "dtype": "float32" if on_cpu and engine.dtype == "auto" else engine.dtype,
        "tensor-parallel-size": config.tensor_parallel,
        "generation-config": "vllm",  # greedy means greedy: no defaults of the checkpoint's own
    }
    if on_cpu:
        given["kv-cache-memory-bytes"] = int(engine.kv_cache_gib * GIB)
    else:
        given["gpu-memory-utilization"] = engine.gpu_memory_utilization
    switches = ["--disable-uvicorn-access-log", "--uvicorn-log-level=warning"]
    switches += ["--enforce-eager"] * (engine.enforce_eager or on_cpu)
    switches += ["--trust-remote-code"] * config.trust_remote_code
    return ["serve", str(folder), *(f"--{name}={value}" for name, value in given.items()), *switches]


def environment(config: ServeConfig, *, on_cpu: bool) -> dict[str, str]:
    """Of vLLM's processes. What the user has set goes before what we would."""
    ours = {"VLLM_NO_USAGE_STATS": "1"}
    if not log.isEnabledFor(logging.DEBUG):
        ours["VLLM_LOGGING_LEVEL"] = "ERROR"
    if on_cpu:
        # vLLM would leave one core to its server and bind its threads to the others: of two cores it would use one.
        # Threads that spin while they wait make it many times slower where the cores are shared with another process.
        ours |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "PASSIVE"}
    result = {**ours, **os.environ}
    if on_cpu:
        result["OMP_NUM_THREADS"] = str(config.threads or len(os.sched_getaffinity(0)))
    if key := _key(config):
        result["VLLM_API_KEY"] = key
    return result


def _key(config: ServeConfig) -> str:
    return os.environ.get(config.api_key_env, "").strip() or os.environ.get("VLLM_API_KEY", "")


@contextmanager
def _vllm(given: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM's server in a process group of its own, of which nothing is left after the block."""
    command = [sys.executable, "-m", "rlspeech.engines.vllm_command", *given]
    process = subprocess.Popen(command, env=env, start_new_session=True, preexec_fn=_end_with_parent)
    try:
        yield process
    finally:
        try:
            process.terminate()
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("vLLM does not end by itself; it is ended")
        finally:  # also after another Ctrl-C
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _end_with_parent() -> None:
    """In the child: it is asked to end where we are killed and cannot ask it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _is_ready(process: subprocess.Popen[bytes], root: str) -> bool:
    """Waits for it; False where the process has ended."""
    with httpx.Client(trust_env=False, timeout=10.0) as client:
        while process.poll() is None:
            with suppress(httpx.TransportError):
                if client.get(f"{root}/health").is_success:
                    return True
            time.sleep(LOOK_S)
    return False


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(f"--host {host} --port {port}: {error.strerror}; give another --port") from error
