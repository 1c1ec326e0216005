"""vLLM's own models of two families, so that they take the weights, and hear the audio, as transformers does.

Each is vLLM's class with one method more. vLLM imports this file when it meets the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from torch import Tensor

# vLLM's Voxtral takes Mistral's names and, behind them, its own: these are the beginnings of transformers' in them.
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


def register() -> None:
    """Puts the classes in the places of vLLM's in this process; nothing is imported before it is met."""
    from vllm import ModelRegistry

    for name in ("VoxtralForConditionalGeneration", "GraniteSpeechForConditionalGeneration"):
        if getattr(ModelRegistry.models[name], "module_name", None) != __name__:
            ModelRegistry.register_model(name, f"{__name__}:{name}")


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
    classes = {"VoxtralForConditionalGeneration": _voxtral, "GraniteSpeechForConditionalGeneration": _granite_speech}
    if name not in classes:
        raise AttributeError(f"module {__name__} has no {name}")
    return classes[name]()


@cache
def _voxtral() -> type:
    from vllm.model_executor.models.voxtral import VoxtralForConditionalGeneration

    class Voxtral(VoxtralForConditionalGeneration):
        """Weights come under Mistral's names or those that are published for transformers."""

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            return super().load_weights((in_vllm(name), value) for name, value in weights)

    return Voxtral


@cache
def _granite_speech() -> type:
    from vllm.model_executor.models.granite_speech import GraniteSpeechForConditionalGeneration

    class GraniteSpeech(GraniteSpeechForConditionalGeneration):
        """Each audio is heard alone. vLLM (0.32) pads those that it hears at once with zeros, which its encoder hears.

        To be removed when its encoder masks them.
        """

        def embed_multimodal(self, **given: Any) -> Any:
            return tuple(_one_by_one(super().embed_multimodal, given))

    return GraniteSpeech


def _one_by_one(embed: Any, given: dict[str, Any]) -> Iterator[Tensor]:
    features, sizes = given.get("input_features"), given.get("audio_embed_sizes")
    if features is None:
        return
    assert sizes is not None
    for feature, size in zip(features, sizes, strict=True):
        yield from embed(input_features=feature.reshape(1, *feature.shape[-2:]), audio_embed_sizes=size.reshape(1))
