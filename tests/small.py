"""Small random-weight models of the tiny pair's true architectures, with its real tokenizer."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlspeech.embedded.pair import END_TOKEN_ID, MARK, write_published

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
ENDS = {"bos_token_id": 1, "eos_token_id": END_TOKEN_ID, "pad_token_id": END_TOKEN_ID}


def shape(head_dim: int) -> dict[str, int]:
    """Four query heads and two of keys; vLLM's attention on a CPU wants heads of at least 32."""
    return TEXT | {"hidden_size": 4 * head_dim, "intermediate_size": 8 * head_dim}


def write_student(folder: Path, tiny_folder: Path, *, head_dim: int = 8) -> Path:
    processor = AutoProcessor.from_pretrained(tiny_folder)
    sound_id = processor.tokenizer.convert_tokens_to_ids("<sound>")
    audio = {"num_mel_bins": 80, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AudioFlamingo3Config(
        audio_token_id=sound_id,
        tie_word_embeddings=False,
        audio_config=audio | {"intermediate_size": 64, "max_source_positions": 1500},
        text_config={"model_type": "qwen2", "vocab_size": sound_id + 1, "tie_word_embeddings": False}
        | shape(head_dim)
        | ENDS,
    )
    torch.manual_seed(0)
    model = AudioFlamingo3ForConditionalGeneration(config).eval()
    model.generation_config = GenerationConfig(**ENDS)
    folder.mkdir(parents=True)
    write_published(folder, model, model.state_dict())
    processor.save_pretrained(folder)
    (folder / MARK).write_text(json.dumps({"family": "tiny"}))
    return folder


def write_teacher(folder: Path, teacher_folder: Path, *, head_dim: int = 8) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape(head_dim), **ENDS)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # a random head is nearly indifferent: this one has opinions to learn
    model.generation_config = GenerationConfig(**ENDS)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_split(folder: Path, teacher: Path) -> Path:
    """The text model of a folder behind a tokenizer without the merges whose result is longer than four characters."""
    shutil.copytree(teacher, folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if len("".join(pair)) <= 4]
    file.write_text(json.dumps(state))
    return folder


def opinionated(folder: Path) -> Path:
    """The student of a folder with a head that is not nearly indifferent, and with biases that are not zero."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(2)
    for name, value in tensors.items():
        if name.endswith("lm_head.weight"):
            value.mul_(12)
        if name.endswith("_proj.bias"):
            value.normal_(0, 0.1, generator=generator)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def traces() -> dict[str, Any]:
    """What a library may leave in a process that uses it."""
    kept = ("LD_PRELOAD", "LOCAL_WORLD_SIZE", "NUMEXPR_MAX_THREADS", "LD_LIBRARY_PATH")
    return {
        "environment": {name: os.environ.get(name) for name in kept},
        "threads": torch.get_num_threads(),
        "set threads": torch.set_num_threads.__name__,
        "dtype": torch.get_default_dtype(),
        "inference": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().sum().item(),
        "numpy": np.random.get_state()[1].sum().item(),
        "python": hash(random.getstate()),
    }
