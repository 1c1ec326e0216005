"""Granite Speech for vLLM: its own model, which hears each audio alone, of any length, and without torchaudio."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech.engines.vllm_audio import FEATURES, Hearing, processing
from rlspeech.students._granite_encoder import encode
from rlspeech.students._granite_features import GraniteFeatures

MODEL = "GraniteSpeech"
BLOCKS_AT_ONCE = 16  # of 4 s
ROWS, TOKENS = 15, 3  # of the encoder in a block of the projector, and of the prompt


def _samples(extractor: Any, placeholders: int) -> int:
    """A row is two mel frames, of which the first is about the audio's first sample."""
    rows = max(1, placeholders // TOKENS) * ROWS
    return (2 * rows + 1) * extractor.melspec_kwargs["hop_length"] - 1


AUDIO = Hearing(
    extractor=GraniteFeatures.from_pretrained,
    features=lambda extractor, audio: extractor.log_mel(torch.from_numpy(audio)),
    placeholders=lambda frames: -(-frames // ROWS) * TOKENS,
    samples=_samples,
    audio_id=lambda config: config.audio_token_id,
)


class Norm(nn.Module):
    """A batch norm's own means as parameters: of a BatchNorm1d, vLLM (0.32) loses them when weights come to it live.

    To be removed when its AutoWeightsLoader loads them into the module itself, not into its state_dict.
    """

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        self.eps = norm.eps
        for name, value in norm.state_dict().items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=False))

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.batch_norm(
            hidden, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def __getattr__(name: str) -> Any:
    if name == MODEL:
        return _model()
    raise AttributeError(f"module {__name__} has no {name}")


@cache
def _model() -> type:
    from vllm.model_executor.models.granite_speech import GraniteSpeechForConditionalGeneration
    from vllm.multimodal import MULTIMODAL_REGISTRY

    class GraniteSpeech(GraniteSpeechForConditionalGeneration):
        """vLLM (0.32) pads audios that it hears at once with zeros, which its encoder hears: here each is heard alone.

        `embed_multimodal` is to be removed when its encoder masks them, and has bounded memory.
        """

        def _build_encoder(self, *given: Any, **named: Any) -> Any:
            encoder = super()._build_encoder(*given, **named)
            for layer in encoder.layers:
                layer.conv.batch_norm = Norm(layer.conv.batch_norm)
            return encoder

        def embed_multimodal(self, **given: Any) -> Any:
            return tuple(_heard(self, given.get(FEATURES, ())))

    processor, info, dummies = processing(AUDIO)
    return MULTIMODAL_REGISTRY.register_processor(processor, info=info, dummy_inputs=dummies)(GraniteSpeech)


def _heard(model: Any, audios: Any) -> Iterator[Tensor]:
    place = model.encoder.input_linear.weight
    for features in audios:
        frames = encode(model.encoder, features.to(place), blocks_at_once=BLOCKS_AT_ONCE)
        yield model.projector(frames[None])[0]
