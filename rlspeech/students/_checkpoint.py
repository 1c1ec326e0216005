"""A family's folder: its model, whole or refused, and what a trained model is saved as.

The processor's files are copied as they are, so that a family's processor need not be loadable where it is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from rlspeech.errors import UserError

WEIGHTS = "model.safetensors"
STACKING = "automatic conversion of the weights"  # in what transformers says where experts cannot be stacked
SHOWN = 12  # names of tensors in one line
COPIED = {".json", ".jinja", ".txt", ".model"}
OWN = ("adapter_config.json", "sha256.json")  # speak of the weights that lie beside them


def read_model(
    kind: type[PreTrainedModel], folder: Path, dtype: torch.dtype, *, weights: bool, unread: tuple[str, ...] = ()
) -> Any:
    """The model of a folder; without weights, on the meta device. `unread`: beginnings of names that it passes over.

    Raises UserError that lists the tensors which the folder lacks, has too many of, or has in another shape.
    """
    if not weights:
        with torch.device("meta"):
            return kind(kind.config_class.from_pretrained(folder)).to(dtype)
    try:
        model, found = kind.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
        )
    except RuntimeError as error:
        if STACKING not in str(error):
            raise
        raise UserError(
            f"{folder}: not the weights of a whole {kind.__name__}; "
            "an expert lacks a matrix, or has one of another shape"
        ) from error
    wrong = {
        "missing": found["missing_keys"],
        "unexpected": [name for name in found["unexpected_keys"] if not name.startswith(unread)],
        "of another shape": [name for name, *_ in found["mismatched_keys"]],
    }
    if names := told(wrong):
        raise UserError(f"{folder}: not the weights of a whole {kind.__name__}; tensors {names}")
    return model


def told(wrong: Mapping[str, Collection[str]]) -> str:
    """Names of tensors by what is wrong with them, for one line.

    >>> told({"missing": {"b", "a"}, "unexpected": []})
    'missing: 2 (a, b)'
    """
    return "; ".join(f"{what}: {_names(sorted(names))}" for what, names in wrong.items() if names)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} ({', '.join(names[:SHOWN])}{more})"


def write_model(folder: Path, source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Weights under published names into an existing folder, with the files beside the weights of `source`."""
    for file in sorted(source.iterdir()):
        if file.suffix in COPIED and not file.name.endswith(".index.json") and file.name not in OWN:
            shutil.copyfile(file, folder / file.name)
    set_in_config(folder, dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."))
    whole = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})


def set_in_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the older name of dtype
    file.write_text(json.dumps(config | settings, indent=2), encoding="utf-8")
