"""The whole suite in two processes, one core each: `make test` without ARGS. Lines begin with the number of the half.

A file is in one half, so that what its tests share is made once; so are all files about student families, which share
models, and in the other half all that start an engine of the tiny pair.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

TESTS = Path(__file__).resolve().parent
FIRST = (
    "test_families",
    "test_meeting",
    "test_phi4mm",
    "test_granite",
    "test_learner",
    "test_mixed",
    "test_parameters",
    "test_reply_logprobs",
    "test_rlbr",
)


def halves() -> list[list[str]]:
    files = sorted(path.name for path in TESTS.glob("test_*.py"))
    first = [name for name in files if name.startswith(FIRST)]
    return [
        [f"tests/{name}" for name in first],
        [*(f"tests/{name}" for name in files if name not in first), "rlspeech", "reward_models", "data_synth"],
    ]


def tell(number: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def main() -> int:
    # Both halves want the tiny pair: it is assembled before they begin.
    made = "from rlspeech.catalog import fetch, resolve; fetch(resolve('tiny')); fetch(resolve('tiny-llm'))"
    subprocess.run([sys.executable, "-c", made], check=True, cwd=TESTS.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *half, *sys.argv[1:]],
            cwd=TESTS.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for half in halves()
    ]
    readers = [threading.Thread(target=tell, args=(i, process)) for i, process in enumerate(running, 1)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main())
