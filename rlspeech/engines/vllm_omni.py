"""The thinkers of Qwen2.5-Omni and Qwen3-Omni for vLLM, as far as they hear: nothing of pictures is loaded or needed.

vLLM's own classes (0.32) cannot be imported without torchvision. The language models are taken from vLLM, the encoders
from transformers. Positions are M-RoPE's, which without pictures are the same in all of their rows.

M mel frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

from rlspeech.engines.vllm_audio import FEATURES, Hearing, processing
from rlspeech.students import qwen3_omni
from rlspeech.students._whisper import HOP, log_mel, pooled

ROWS = 3  # of position ids
MEL_IN_FRAME = 4  # of Qwen2.5-Omni
PUBLISHED = {
    "thinker.lm_head.": "language_model.lm_head.",
    "thinker.model.": "language_model.model.",
    "thinker.audio_tower.": "audio_tower.",
    "thinker.visual.": None,
    "talker.": None,
    "token2wav.": None,
    "code2wav.": None,
}


@dataclass(frozen=True)
class Family:
    """What is a thinker's own."""

    hearing: Hearing
    tower: Any  # the encoder's class
    text: str  # the language model's class in vLLM
    heard: str  # an audio in a prompt


def _sound_of(extractor: Any, audio: np.ndarray) -> Tensor:
    mel, sound = log_mel(extractor, audio)
    return mel[:, :sound].T


FAMILIES = {
    "Qwen2_5Thinker": Family(
        hearing=Hearing(
            extractor=WhisperFeatureExtractor.from_pretrained,
            features=_sound_of,
            placeholders=pooled,
            samples=lambda extractor, frames: frames * MEL_IN_FRAME * HOP,
            audio_id=lambda config: config.thinker_config.audio_token_id,
            most=lambda extractor: extractor.nb_max_frames // MEL_IN_FRAME,
        ),
        tower=Qwen2_5OmniAudioEncoder,
        text="Qwen2ForCausalLM",
        heard="<|audio_bos|><|AUDIO|><|audio_eos|>",
    ),
    "Qwen3Thinker": Family(
        hearing=Hearing(
            extractor=WhisperFeatureExtractor.from_pretrained,
            features=lambda extractor, audio: qwen3_omni.log_mel(extractor, audio).T,
            placeholders=qwen3_omni.placeholders,
            samples=lambda extractor, frames: qwen3_omni.longest(frames),
            audio_id=lambda config: config.thinker_config.audio_token_id,
        ),
        tower=Qwen3OmniMoeAudioEncoder,
        text="Qwen3MoeForCausalLM",
        heard="<|audio_start|><|audio_pad|><|audio_end|>",
    ),
}


def __getattr__(name: str) -> Any:
    if name in FAMILIES:
        return _model(name)
    raise AttributeError(f"module {__name__} has no {name}")


@cache
def _model(name: str) -> type:
    from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMRoPE, SupportsMultiModal
    from vllm.model_executor.models.utils import (
        AutoWeightsLoader,
        WeightsMapper,
        init_vllm_registered_model,
        maybe_prefix,
    )
    from vllm.multimodal import MULTIMODAL_REGISTRY

    family = FAMILIES[name]

    class Thinker(nn.Module, SupportsMultiModal, SupportsMRoPE, SupportsLoRA):
        packed_modules_mapping = {  # noqa: RUF012
            "qkv_proj": ["q_proj", "k_proj", "v_proj"],
            "gate_up_proj": ["gate_proj", "up_proj"],
        }
        hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix=PUBLISHED)

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__()
            self.config = config = vllm_config.model_config.hf_config.thinker_config
            with self._mark_tower_model(vllm_config, "audio"):
                self.audio_tower = family.tower(config.audio_config).requires_grad_(False)
            with self._mark_language_model(vllm_config):
                self.language_model = init_vllm_registered_model(
                    vllm_config=vllm_config,
                    prefix=maybe_prefix(prefix, "language_model"),
                    hf_config=config.text_config,
                    architectures=[family.text],
                )
            self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

        @classmethod
        def get_placeholder_str(cls, modality: str, i: int) -> str | None:
            return f"Audio {i}: {family.heard}"

        get_mrope_input_positions = _positions
        embed_multimodal = _embed_audio

        def forward(
            self,
            input_ids: Tensor | None,
            positions: Tensor,
            intermediate_tensors: Any = None,
            inputs_embeds: Tensor | None = None,
            **_: object,
        ) -> Any:
            return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

        def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
            return self.language_model.compute_logits(hidden_states)

        def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    processor, info, dummies = processing(family.hearing)
    return MULTIMODAL_REGISTRY.register_processor(processor, info=info, dummy_inputs=dummies)(Thinker)


def _positions(self: Any, input_tokens: Sequence[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
    return torch.arange(len(input_tokens)).expand(ROWS, -1), 0


def _embed_audio(self: Any, **given: Any) -> tuple[Tensor, ...]:
    """The encoder over one audio [M, bins] after the other: it cuts them into blocks, which no attention crosses."""
    place = next(self.audio_tower.parameters())
    embedded = []
    for mel in given.get(FEATURES, ()):
        lengths = torch.tensor([len(mel)], device=place.device)
        embedded.append(self.audio_tower(mel.T.to(place), feature_lens=lengths).last_hidden_state)
    return tuple(embedded)
