"""A text model in a student's place: it reads what its teacher reads. Nothing is learned by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlspeech.engines.retokenise import end_of_turn
from rlspeech.types import Prompt


@dataclass
class TextStudent:
    """What engines.rollout_transformers, engines.batches and engines.measure ask of a student, without audio."""

    model: Any
    tokenizer: Any
    end_token_id: int
    placeholder_id: int = 0  # it stands for no audio; it is not written, and is a special token in most vocabularies

    @classmethod
    def load(cls, folder: Path, *, trust_remote_code: bool = False) -> TextStudent:
        trust = {"trust_remote_code": trust_remote_code}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        return cls(model.eval().requires_grad_(False), tokenizer, end_of_turn(tokenizer))

    @property
    def decoder(self) -> nn.Module:
        return self.model.get_decoder()

    def head(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    def collate(self, prompts: Sequence[Prompt]) -> None:
        """There is no audio."""

    def embed(self, input_ids_BT: Tensor, features: None) -> Tensor:
        return self.model.get_input_embeddings()(input_ids_BT)

    def first_position(self, prompt: Prompt) -> int:
        return 0

    @contextmanager
    def merged(self) -> Iterator[None]:
        yield
