"""The whole suite in three processes of one thread each: `make test` without ARGS. Lines begin with the part's number.

A file is in one part, so that what its tests share is made once: files about student families, which share models;
files that share engines and servers of the tiny pair; and the rest. Three, because engines wait while they start.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

TESTS = Path(__file__).resolve().parent
FAMILIES = (
    "test_families",
    "test_meeting",
    "test_phi4mm",
    "test_granite",
    "test_learner",
    "test_mixed",
    "test_parameters",
    "test_reply_logprobs",
)
ENGINES = (
    "test_cluster",
    "test_dpo_cluster",
    "test_judge",
    "test_pairs_cluster",
    "test_parity",
    "test_pool",
    "test_rlbr_cluster",
    "test_serve",
    "test_teacher_http",
    "test_teacher_prompts",
    "test_vllm_engines",
    "test_weight_sync",
)


def parts() -> list[list[str]]:
    files = sorted(path.name for path in TESTS.glob("test_*.py"))
    shared = [[name for name in files if name.startswith(part)] for part in (FAMILIES, ENGINES)]
    rest = [name for name in files if not any(name in part for part in shared)]
    named = [[f"tests/{name}" for name in part] for part in (*shared, rest)]
    return [*named[:-1], [*named[-1], "rlspeech", "reward_models", "data_synth"]]


def tell(number: int, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def main() -> int:
    # All parts want the tiny pair: it is assembled before they begin.
    made = "from rlspeech.catalog import fetch, resolve; fetch(resolve('tiny')); fetch(resolve('tiny-llm'))"
    subprocess.run([sys.executable, "-c", made], check=True, cwd=TESTS.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *part, *sys.argv[1:]],
            cwd=TESTS.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in parts()
    ]
    readers = [threading.Thread(target=tell, args=(i, process)) for i, process in enumerate(running, 1)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return max(process.wait() for process in running)


if __name__ == "__main__":
    sys.exit(main())
