"""A real `rlspeech serve` on loopback, a network that fails before it, and questions to it."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx

START_S = 400.0
KEY = "the-key-of-these-tests"


@dataclass
class Server:
    url: str
    log: Path
    process: subprocess.Popen[bytes]

    def family(self) -> list[int]:
        return family_of(self.process.pid)


def family_of(pid: int) -> list[int]:
    """The process and all that it has started, and what those have."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with_stat(folder, parents)
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def with_stat(folder: Path, parents: dict[int, int]) -> None:
    try:
        parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return


@contextmanager
def served(model: Path | str, folder: Path, *flags: str, key: str | None = None) -> Iterator[Server]:
    """`rlspeech serve` of a model, ready; its log is under `folder`. After the block none of its processes is left."""
    port = free_port()
    log = folder / "serve.log"
    env = {name: value for name, value in os.environ.items() if name != "RLSPEECH_TEACHER_KEY"}
    env |= {"RLSPEECH_TEACHER_KEY": key} if key else {}
    command = [sys.executable, "-m", "rlspeech", "serve", f"--model={model}", f"--port={port}", *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    server = Server(f"http://127.0.0.1:{port}", log, process)
    family = [process.pid]
    try:
        end = time.monotonic() + START_S
        while "ready: model" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.3)
        family = server.family()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        left = await_end(family)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []


def await_end(pids: Sequence[int], within_s: float = 20.0) -> list[int]:
    """Those that are still there when the time is over."""
    end = time.monotonic() + within_s
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask_about_audio(url: str, wav: Path, instruction: str, *, max_tokens: int = 40) -> str:
    """The greedy reply of the model served at `url` to an OpenAI chat request with a WAV file in it."""
    (model,) = httpx.get(f"{url}/v1/models").raise_for_status().json()["data"]
    sound = {"data": base64.b64encode(wav.read_bytes()).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": instruction}]
    body = {"model": model["id"], "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens}
    answer = httpx.post(f"{url}/v1/chat/completions", json={**body, "temperature": 0.0}, timeout=300.0)
    assert answer.is_success, answer.text
    return answer.json()["choices"][0]["message"]["content"]


@dataclass
class Network:
    """What lies before a server: each request meets the next trouble, and when there is none left it is passed on.

    A trouble is a status, a status with headers and a text, "drop" (the connection is closed) or "hang".
    """

    url: str
    troubles: list
    headers: list[dict[str, str]] = field(default_factory=list)  # of the requests that came


@contextmanager
def network(target: str, *troubles: object) -> Iterator[Network]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.headers.append(dict(self.headers))
            trouble = found.troubles.pop(0) if found.troubles else None
            if trouble == "drop":
                self.close_connection = True
            elif trouble == "hang":
                time.sleep(2.0)
                self.close_connection = True
            elif trouble is not None:
                status, headers, text = trouble if isinstance(trouble, tuple) else (trouble, {}, "")
                self.answer(status, text.encode(), headers)
            else:
                kept = {
                    name: value for name, value in self.headers.items() if name in ("Authorization", "Content-Type")
                }
                passed = httpx.request(self.command, target + self.path, content=body, headers=kept, timeout=120.0)
                self.answer(passed.status_code, passed.content, {"Content-Type": "application/json"})

        do_POST = do_GET

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    found = Network(f"http://127.0.0.1:{listener.server_port}", list(troubles))
    Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        listener.shutdown()
        listener.server_close()
