"""LongRoPE by the prompt: one set of frequencies from a prompt's first token to the last of its reply.

A model with LongRoPE has two sets of rotary frequencies. transformers takes one for the whole batch, by its longest
row; vLLM takes one for an engine's life, by the longest sequence that it may hold. So a row's log-probs would hang on
its neighbours, and sampler and trainer would not agree. Here the prompt alone decides, and its position ids say so:
those of a long prompt begin at `context`, which no short one reaches.

The keys of a prompt are kept while its reply is written, so a reply cannot change sides: a prompt is long from a
quarter before the reach of the short frequencies on, which leaves that quarter to instruction and reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech.errors import UserError


@dataclass(frozen=True)
class LongRope:
    """Frequencies [R / 2] for the first R dimensions of every head."""

    short: Tensor
    long: Tensor
    scale: float  # of cosines and sines
    reach: int  # tokens that the short frequencies are for
    context: int  # tokens that the long ones are for, and position of a long prompt's first token

    @classmethod
    def of(cls, config: Any) -> LongRope:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        kind = config.rope_parameters["rope_type"]
        if kind != "longrope":
            raise UserError(
                f"{config.name_or_path}: rope_type is {kind!r} in its config.json; here it has to be longrope"
            )
        reach = config.rope_parameters["original_max_position_embeddings"]
        frequencies = ROPE_INIT_FUNCTIONS["longrope"]
        with torch.device("cpu"):
            short, scale = frequencies(config, seq_len=reach)
            long, _ = frequencies(config, seq_len=reach + 1)
        return cls(short, long, scale, reach, config.max_position_embeddings)

    def first_position(self, token_ids: Sequence[int], audio_id: int) -> int:
        """Of a prompt. Its audio decides where it has one: prompts about one audio share its positions."""
        tokens = token_ids.count(audio_id) or len(token_ids)
        return self.context if tokens > self.reach - self.reach // 4 else 0

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [..., R / 2] in float32."""
        short, long = self.short.to(positions.device), self.long.to(positions.device)
        frequencies = torch.where((positions >= self.context)[..., None], long, short)
        turned = (positions % self.context)[..., None].float() * frequencies
        return turned.cos() * self.scale, turned.sin() * self.scale


class Rotary(nn.Module):
    """In the place of a transformers model's own rotary embedding."""

    def __init__(self, rope: LongRope) -> None:
        super().__init__()
        self.rope = rope

    @torch.no_grad()
    def forward(self, like: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, T, R] of positions [B, T]."""
        cos, sin = (torch.cat([half, half], dim=-1).to(like.dtype) for half in self.rope.angles(position_ids))
        return cos, sin
