"""What the small models of all families are made of: a real tokenizer, weights that matter, published names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel

from rlspeech.catalog import fetch, resolve
from rlspeech.plugins import find_class

Folder = Callable[..., Path]  # of a small model, by its settings
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
RATE_HZ = 16_000


def smollm2(*special: str) -> Any:
    """SmolLM2's tokenizer with the special tokens that a family wants; <|im_end|> is one of its own."""
    tokenizer = AutoTokenizer.from_pretrained(fetch(resolve("tiny-llm")))
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = None
    return tokenizer


def text(tokenizer: Any, *, head_dim: int, context: int) -> dict[str, Any]:
    """A language model of two layers, four query heads and two of keys."""
    return ENDS | {
        "vocab_size": len(tokenizer),
        "hidden_size": 4 * head_dim,
        "intermediate_size": 8 * head_dim,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "tie_word_embeddings": False,
    }


def stir(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights at which every part of the model has a say in its logits."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "embed_positions" in name:
                continue
            if value.dim() > 1:
                fan_in = value.shape[-1] if ".experts." in name else value[0].numel()  # of each of the stacked matrices
                size = 1.0 if "embed_tokens" in name else 1.5 * fan_in**-0.5
                value.normal_(0, size, generator=generator)
            elif name.endswith("bias"):
                value.normal_(0, 0.1, generator=generator)
    assert isinstance(model, nn.Module)
    return model.eval()


def write(
    family: str, folder: Path, model: PreTrainedModel, *parts: Any, config: Any = None, architecture: str | None = None
) -> Path:
    """A folder as its publisher writes it: config, weights under published names, the parts of the processor."""
    student: Any = find_class("students", family, "Student")
    config = config or model.config
    config.architectures = [architecture or type(model).__name__]
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    GenerationConfig(**ENDS).save_pretrained(folder)
    save_file(published(student, stir(model)), folder / "model.safetensors", metadata={"format": "pt"})
    for part in parts:
        part.save_pretrained(folder)
    return folder


def published(student: Any, model: PreTrainedModel) -> dict[str, Tensor]:
    tied = dict(model.all_tied_weights_keys)
    return {
        rename(student.PUBLISHED, name): value.detach().contiguous()
        for name, value in model.state_dict().items()
        if name not in tied
    }


def rename(published: dict[str, str], name: str) -> str:
    ours = next((ours for ours in published if name.startswith(ours)), "")
    return published.get(ours, "") + name.removeprefix(ours)


def chat(question: str, waves: Sequence[Any]) -> list[dict[str, Any]]:
    """One user's turn: audios, then the question."""
    content = [*[{"type": "audio"}] * len(waves), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def one_a_piece(text: str, token: str, pieces: Sequence[Sequence[Any]]) -> str:
    """A prompt with the token of each audio once for each of its pieces."""
    parts = text.split(token)
    return parts[0] + "".join(token * len(cut) + part for cut, part in zip(pieces, parts[1:], strict=True))
