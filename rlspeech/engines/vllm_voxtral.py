"""Voxtral for vLLM: its own model, which takes weights under transformers' names too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor

MODEL = "Voxtral"
# vLLM takes Mistral's names and, behind them, its own: these are the beginnings of transformers' in them.
ENCODER = "mm_whisper_embeddings.whisper_encoder."
IN_VLLM = (
    (r"language_model\.", ""),
    (r"multi_modal_projector\.linear_1\.", "audio_language_adapter.w_in."),
    (r"multi_modal_projector\.linear_2\.", "audio_language_adapter.w_out."),
    # Under this one name it adds the bias of zeros that its fused layer has for keys and Whisper's has not.
    (r"audio_tower\.layers\.(\d+)\.self_attn\.k_proj\.", rf"{ENCODER}transformer.layers.\1.attention.wk."),
    (r"audio_tower\.(layers\.\d+)\.fc([12])\.", rf"{ENCODER}\1.mlp.fc\2."),
    (r"audio_tower\.", ENCODER),
)


def in_vllm(published: str) -> str:
    """The name that vLLM's Voxtral takes a parameter under.

    >>> in_vllm("language_model.model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> in_vllm("layers.0.attention.wq.weight")
    'layers.0.attention.wq.weight'
    """
    for pattern, native in IN_VLLM:
        name, count = re.subn(rf"^{pattern}", native, published)
        if count:
            return name
    return published


def __getattr__(name: str) -> Any:
    if name == MODEL:
        return _model()
    raise AttributeError(f"module {__name__} has no {name}")


@cache
def _model() -> type:
    from vllm.model_executor.models.voxtral import VoxtralForConditionalGeneration

    class Voxtral(VoxtralForConditionalGeneration):
        """Weights come under Mistral's names or those that are published for transformers."""

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            return super().load_weights((in_vllm(name), value) for name, value in weights)

    return Voxtral
