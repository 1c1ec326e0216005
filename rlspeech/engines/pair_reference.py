"""Log-probs of the reference on every reply of the pairs: computed once, kept in a file, checked when it is read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from rlspeech.errors import UserError
from rlspeech.types import Rollout

About = Literal["model", "precision", "pairs"]  # what the log-probs hang on
OTHER: Mapping[About, str] = {"model": "another model", "precision": "another precision", "pairs": "other pairs"}
BLOCK = 2**22


def model_key(folder: Path) -> str:
    """SHA-256 of a model's weights and settings: its config.json and its .safetensors files, those of adapters too."""
    found = hashlib.sha256()
    for file in [folder / "config.json", *sorted(folder.rglob("*.safetensors"))]:
        found.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as opened:
            while block := opened.read(BLOCK):
                found.update(block)
    return found.hexdigest()


def pairs_key(rollouts: Sequence[Rollout]) -> str:
    """Changes with anything that the log-probs hang on but the model: prompts, replies, and what is heard."""
    found = hashlib.sha256()
    for one in rollouts:
        ids = (one.prompt.token_ids, one.completion.token_ids, one.prompt.audio_key)
        found.update(json.dumps(ids).encode())
        for wave in one.prompt.features or ():
            found.update(wave.tobytes())
    return found.hexdigest()


def read(file: Path, about: Mapping[About, str]) -> list[list[float]] | None:
    """Of each reply, in order; None where there is no file. Raises UserError where it is about something else."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as opened:
            told = opened.metadata() or {}
            values, lengths = opened.get_tensor("values"), opened.get_tensor("lengths")
    except Exception as error:
        raise UserError(f"{file}: no file of a reference's log-probs ({error}); name another as --reference") from error
    for key, wanted in about.items():
        if told.get(key) != wanted:
            what = OTHER[key]
            raise UserError(f"{file}: a reference's log-probs of {what}; remove it, or name another as --reference")
    return [part.tolist() for part in values.split(lengths.tolist())]


def write(file: Path, found: Sequence[Sequence[float]], about: Mapping[About, str]) -> None:
    """Beside and renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}")
    values = torch.tensor([value for reply in found for value in reply], dtype=torch.float32)
    lengths = torch.tensor([len(reply) for reply in found])
    save_file(
        {"values": values, "lengths": lengths}, beside, metadata={str(key): value for key, value in about.items()}
    )
    beside.replace(file)
