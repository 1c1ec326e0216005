"""A folder of weights written anew, under other names: all is known from the headers first, then file by file."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlspeech.errors import UserError
from rlspeech.students._checkpoint import told

log = logging.getLogger(__name__)

DTYPES = {  # integers count batches; quantised weights are of other types
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
}
INDEX = "model.safetensors.index.json"
GIB = 2**30


@dataclass(frozen=True)
class Conversion:
    """A way to write a folder of a family anew. `base`: what the second folder has to be; None: there is none.

    `run` takes the folder, the new folder, and the second one as `base`. It raises UserError before it writes.
    """

    run: Callable[..., None]
    base: str | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor of a file, by the file's header; `dtype` is the one it is read as."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        with safe_open(self.file, framework="pt") as tensors:
            return tensors.get_tensor(self.name).to(self.dtype)


def stored(folder: Path, pattern: str = "model*.safetensors") -> dict[str, Stored]:
    """What the files of weights of a folder hold. Raises UserError where there are none, or one cannot be read."""
    files = sorted(folder.glob(pattern))
    if not files:
        raise UserError(f"{folder}: no {pattern}")
    return {name: found for file in files for name, found in _header(file)}


def check_tensors(folder: Path, found: Mapping[str, Stored], wanted: Mapping[str, Sequence[int]], what: str) -> None:
    """Raises UserError that lists the tensors which the folder lacks, has too many of, or has in another shape."""
    both = found.keys() & wanted.keys()
    wrong = told(
        {
            "missing": wanted.keys() - both,
            "unexpected": found.keys() - both,
            "of another shape": {name for name in both if found[name].shape != tuple(wanted[name])},
        }
    )
    if wrong:
        raise UserError(f"{folder}: not the weights of {what}; tensors {wrong}")


@contextmanager
def new_folder(target: Path, tensors: Iterable[Stored]) -> Iterator[Path]:
    """A folder beside `target` that takes its name when the block is through; where it is not, nothing is left.

    Raises UserError where `target` is there, where the `tensors` would not fit, and where writing fails.
    """
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: exists already; nothing is written over it, so give another --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        wanted, free = sum(one.size_bytes for one in tensors), shutil.disk_usage(beside).free
        if wanted > free:
            raise UserError(f"{target}: {wanted / GIB:.2f} GiB are to be written, {free / GIB:.2f} GiB are free there")
        yield beside
        beside.chmod(0o755)
        beside.rename(target)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target}: cannot be written, and nothing is left of it: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_weights(folder: Path, parts: Sequence[Mapping[str, Stored]]) -> None:
    """Each part as a file of its own, the tensors under the names given; with an index where there are several."""
    parts = [part for part in parts if part]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = "model.safetensors" if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({new: one.read() for new, one in part.items()}, folder / name, metadata={"format": "pt"})
        log.info("%s, file %d of %d: %.2f GiB", name, number, len(parts), size_bytes(part) / GIB)
        index |= dict.fromkeys(part, name)
    if len(parts) > 1:
        size = {"total_size": sum(map(size_bytes, parts))}
        (folder / INDEX).write_text(json.dumps({"metadata": size, "weight_map": index}, indent=1), encoding="utf-8")


def by_file(tensors: Mapping[str, Stored]) -> list[dict[str, Stored]]:
    """Parted as the files are that they come from."""
    files = sorted({one.file for one in tensors.values()})
    return [{name: one for name, one in tensors.items() if one.file == file} for file in files]


def size_bytes(part: Mapping[str, Stored]) -> int:
    return sum(one.size_bytes for one in part.values())


def _header(file: Path) -> Iterator[tuple[str, Stored]]:
    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            found = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors: {error}") from error
    for name, (shape, dtype) in found.items():
        if dtype not in DTYPES:
            raise UserError(f"{file}: {name} is of type {dtype}; weights of {', '.join(DTYPES)} are converted")
        yield name, Stored(file, name, shape, DTYPES[dtype])
