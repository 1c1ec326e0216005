"""What this machine has: memory of the host and of its GPUs."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    memory_gib: float
    gpus_gib: tuple[float, ...]

    @property
    def room_gib(self) -> float:
        """Of the largest device: the engines of one process put everything on one."""
        return max(self.memory_gib, *self.gpus_gib, 0.0)

    def __str__(self) -> str:
        """
        >>> str(Machine(16.0, ()))
        'this machine has 16 GiB and no GPU'
        """
        sizes = ", ".join(f"{gib:.0f}" for gib in self.gpus_gib)
        return f"this machine has {self.memory_gib:.0f} GiB and {f'GPUs of {sizes} GiB' if sizes else 'no GPU'}"


def machine() -> Machine:
    """Memory of this machine (of its control group where that is less) and of its NVIDIA GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            memory = min(memory, int(text))
    return Machine(memory / GIB, tuple(_gpus_gib()))


def _gpus_gib() -> Iterator[float]:
    if not shutil.which("nvidia-smi"):
        return
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # the tool is there, the driver is not
        return
    for line in answer.splitlines():
        if line.strip().isdigit():
            yield int(line) / 1024
