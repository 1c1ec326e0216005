"""Names of models to loaded students and teachers, and the card of a checkpoint."""

import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from transformers.utils.logging import disable_progress_bar

from rlspeech.catalog import fetch, resolve
from rlspeech.config import LoraConfig
from rlspeech.errors import UserError
from rlspeech.plugins import find_class
from rlspeech.protocols import Student


def use_threads(threads: int | None, seed: int) -> None:
    """Sets torch's threads and seed: with the same threads, the same seed gives the same numbers on one machine."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)
    disable_progress_bar()  # of loading weights: ours are the ones to look at
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers imports, warns otherwise


def lora_settings(lora: LoraConfig | None) -> dict[str, Any] | None:
    return None if lora is None else lora.model_dump()


def load_student(name: str, *, trust_remote_code: bool = False) -> Student:
    resolved = resolve(name, kind="speech")
    if resolved.family is None:
        raise UserError(f"{name}: no student family reads this architecture; families are files in rlspeech/students/")
    family = find_class("students", resolved.family, "Student")
    return family.load(_trusted(fetch(resolved), trust_remote_code))


def teacher_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    return _trusted(fetch(resolve(name, kind="text")), trust_remote_code)


def _trusted(folder: Path, trust_remote_code: bool) -> Path:
    if not trust_remote_code and any(folder.glob("*.py")):
        raise UserError(f"{folder}: comes with Python code; read it, then allow it by --trust-remote-code")
    return folder


def card(config: BaseModel, metrics: dict[str, Any], *, stage: str, start: str) -> str:
    """README of a checkpoint folder, in the form of a Hugging Face model card."""
    numbers = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items() if isinstance(value, float))
    settings = config.model_dump(mode="json")
    return f"""---
library_name: transformers
tags: [rlspeech, speech, {stage}]
---
# {settings.get("student", "student")} after `{stage}`

A speech LLM trained by rlspeech. It loads in transformers by the class named in `config.json` (`architectures`),
with `AutoProcessor`. `adapter/`, where there is one, is the LoRA adapter of this stage alone; the weights have it
merged. It began with `{start}`. Teacher: `{settings.get("teacher", "none")}`. Seed: {settings.get("seed")}.

Last numbers of the run:

| metric | value |
|---|---|
{numbers}
"""
