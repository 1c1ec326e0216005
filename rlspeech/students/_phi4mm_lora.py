"""The adapters that Phi-4-multimodal has beside its weights: their settings, and the two factors of every matrix."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rlspeech.errors import UserError
from rlspeech.students._checkpoint import told

SPEECH, VISION = "speech-lora", "vision-lora"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT = "base_model.model."  # before the model's own names, as PEFT saves them


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Rank and alpha."""
    found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return {"rank": found["r"], "alpha": float(found["lora_alpha"])}


def adapter_tensors(folder: Path, layers: Iterable[str] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors A [rank, in] and B [out, rank] by the layer's name in the model; `layers` None: of those there are.

    Raises UserError that lists the tensors which the folder lacks, or has too many of.
    """
    tensors = {plain(name): value for name, value in load_file(folder / WEIGHTS).items()}
    if layers is None:
        layers = sorted({name.partition(".lora_")[0] for name in tensors})
    wanted = {name: (f"{name}.lora_A.weight", f"{name}.lora_B.weight") for name in layers}
    asked = {one for pair in wanted.values() for one in pair}
    if wrong := told({"missing": asked - tensors.keys(), "unexpected": tensors.keys() - asked}):
        raise UserError(f"{folder}: not an adapter of this model; tensors {wrong}")
    return {name: (tensors[a], tensors[b]) for name, (a, b) in wanted.items()}


def plain(name: str) -> str:
    """
    >>> plain("base_model.model.model.layers.3.mlp.down_proj.lora_A.speech.weight")
    'model.layers.3.mlp.down_proj.lora_A.weight'
    """
    module, factor, rest = name.removeprefix(PEFT).partition(".lora_")
    return f"{module}{factor}{rest[0]}.weight" if factor else name
