"""Voxtral for vLLM: its own model, which takes weights under transformers' names too."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import Tensor

MODEL = "Voxtral"
# vLLM takes Mistral's names and, behind them, its own: these are the beginnings of transformers' in them.
PROJECTOR = "audio_language_adapter."
ENCODER = "mm_whisper_embeddings.whisper_encoder."
IN_VLLM = (
    (r"language_model\.", ""),
    (r"multi_modal_projector\.linear_1\.", f"{PROJECTOR}w_in."),
    (r"multi_modal_projector\.linear_2\.", f"{PROJECTOR}w_out."),
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
            named = ((in_vllm(name), value) for name, value in weights)
            loaded: set[str] = set()
            return super().load_weights(_without_projector(self, named, loaded)) | loaded

    return Voxtral


def _without_projector(
    model: Any, weights: Iterable[tuple[str, Tensor]], loaded: set[str]
) -> Iterator[tuple[str, Tensor]]:
    """Loads the projector by its parameters' own loaders. vLLM (0.32) passes them by, and nothing comes to it live.

    To be removed when Voxtral's `load_weights` asks a parameter of `audio_language_adapter` for its loader.
    """
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    for name, value in weights:
        if name.startswith(PROJECTOR):
            parameter = model.get_parameter(name)
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, value)
            loaded.add(name)
        else:
            yield name, value
