"""Threads and seed of a stage that learns, and the card of the checkpoint it makes."""

import os
from typing import Any

import torch
from pydantic import BaseModel
from transformers.utils.logging import disable_progress_bar

from rlspeech.config import LoraConfig


def use_threads(threads: int | None, seed: int) -> None:
    """Sets torch's threads and seed: with the same threads, the same seed gives the same numbers on one machine."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(seed)
    disable_progress_bar()  # of loading weights: ours are the ones to look at


def lora_settings(lora: LoraConfig | None) -> dict[str, Any] | None:
    return None if lora is None else lora.model_dump()


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
