"""The family `voxtral` (Voxtral Mini and Small): Whisper large's encoder, four frames to a token, a Llama, Tekken.

Audio is padded to whole windows of 30 s, and the padding is heard. A folder holds the model twice, as its publisher
has it: for transformers, and in Mistral's own layout (`params.json`, `consolidated.safetensors`), which vLLM reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import VoxtralForConditionalGeneration
from transformers.tokenization_mistral_common import MistralCommonBackend

from rlspeech.students._base import Family
from rlspeech.students._passes import in_pass
from rlspeech.types import Prompt, Sample

BEGIN_AUDIO, BEGIN_TURN = "[BEGIN_AUDIO]", "[INST]"
ENCODER = "mm_whisper_embeddings.whisper_encoder"
LAYOUT = (  # published names for transformers, and in Mistral's layout
    (r"language_model\.model\.embed_tokens\.", "mm_whisper_embeddings.tok_embeddings."),
    (r"language_model\.model\.layers\.(\d+)\.self_attn\.([qkvo])_proj\.", r"layers.\1.attention.w\2."),
    (r"language_model\.model\.layers\.(\d+)\.input_layernorm\.", r"layers.\1.attention_norm."),
    (r"language_model\.model\.layers\.(\d+)\.post_attention_layernorm\.", r"layers.\1.ffn_norm."),
    (r"language_model\.model\.layers\.(\d+)\.mlp\.gate_proj\.", r"layers.\1.feed_forward.w1."),
    (r"language_model\.model\.layers\.(\d+)\.mlp\.down_proj\.", r"layers.\1.feed_forward.w2."),
    (r"language_model\.model\.layers\.(\d+)\.mlp\.up_proj\.", r"layers.\1.feed_forward.w3."),
    (r"language_model\.model\.norm\.", "norm."),
    (r"language_model\.lm_head\.", "output."),
    (r"multi_modal_projector\.linear_1\.", "mm_whisper_embeddings.audio_language_projection.0."),
    (r"multi_modal_projector\.linear_2\.", "mm_whisper_embeddings.audio_language_projection.2."),
    (r"audio_tower\.conv1\.", f"{ENCODER}.conv_layers.0."),
    (r"audio_tower\.conv2\.", f"{ENCODER}.conv_layers.1."),
    (r"audio_tower\.layers\.(\d+)\.self_attn\.([qkv])_proj\.", rf"{ENCODER}.transformer.layers.\1.attention.w\2."),
    (r"audio_tower\.layers\.(\d+)\.self_attn\.out_proj\.", rf"{ENCODER}.transformer.layers.\1.attention.wo."),
    (r"audio_tower\.layers\.(\d+)\.self_attn_layer_norm\.", rf"{ENCODER}.transformer.layers.\1.attention_norm."),
    (r"audio_tower\.layers\.(\d+)\.fc([12])\.", rf"{ENCODER}.transformer.layers.\1.feed_forward.w\2."),
    (r"audio_tower\.layers\.(\d+)\.final_layer_norm\.", rf"{ENCODER}.transformer.layers.\1.ffn_norm."),
    (r"audio_tower\.layer_norm\.", f"{ENCODER}.transformer.norm."),
)
TURNED = re.compile(r"layers\.\d+\.attention\.w([qk])\.weight")  # rotary pairs: side by side, not half a head apart


class Student(Family):
    ARCHITECTURES = ("VoxtralForConditionalGeneration",)
    MODEL = VoxtralForConditionalGeneration
    AUDIO = "[AUDIO]"
    END = "</s>"
    frame_s = 0.08

    @classmethod
    def read_tokenizer(cls, folder: Path) -> Any:
        return MistralCommonBackend.from_pretrained(folder)

    @classmethod
    def read_settings(cls, folder: Path) -> Mapping[str, Any]:
        return {}

    def prompt_ids(self, sample: Sample, frames: Sequence[int]) -> list[int]:
        """As mistral-common writes the turn, which needs the sound itself for its audio: that is put in here."""
        chat = [{"role": "user", "content": sample.instruction}]
        ids = self.tokenizer.apply_chat_template(chat, return_dict=False)
        begin, turn = (self.tokenizer.convert_tokens_to_ids(token) for token in (BEGIN_AUDIO, BEGIN_TURN))
        at = ids.index(turn) + 1
        heard = [token for count in frames for token in (begin, *[self.placeholder_id] * count)]
        return [*ids[:at], *heard, *ids[at:]]

    def vllm_input(self, prompt: Prompt) -> dict[str, Any]:
        """Here vLLM wants its placeholders expanded."""
        given = super().vllm_input(prompt)
        return given | {"prompt_token_ids": list(prompt.token_ids)}

    def frames_of(self, samples: int) -> int:
        config = self.model.config.audio_config
        return -(-samples // self.extractor.n_samples) * config.max_source_positions // self._frames_a_token(config)

    def passes(self, waves: Sequence[np.ndarray]) -> int:
        at_once = self.extractor.n_samples * self.windows_at_once
        return sum(-(-len(wave) // at_once) for wave in waves)

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        return [self._hear(wave) for wave in waves]

    def _hear(self, wave: np.ndarray) -> Tensor:
        """The loudest of the whole audio sets the floor of its features; then windows are heard one by one."""
        whole = np.pad(wave, (0, -len(wave) % self.extractor.n_samples))
        rate_hz = self.extractor.sampling_rate
        mel = self.extractor(whole, sampling_rate=rate_hz, padding=False, truncation=False, return_tensors="pt")
        windows = mel.input_features[0].split(self.extractor.nb_max_frames, dim=1)
        at_once = [windows[i : i + self.windows_at_once] for i in range(0, len(windows), self.windows_at_once)]
        heard = torch.cat([in_pass(self._encoded, torch.stack(chunk)) for chunk in at_once])
        return heard.reshape(-1, self.model.config.audio_config.intermediate_size)

    def _encoded(self, windows: Tensor) -> Tensor:
        return self.tower(windows).last_hidden_state

    @staticmethod
    def _frames_a_token(config: Any) -> int:
        return config.intermediate_size // config.hidden_size

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        super().save(folder, weights)
        if (self.folder / "params.json").is_file():
            named = {self.published_name(name): value for name, value in weights.items()}
            text = self.model.config.text_config
            save_file(in_mistrals_layout(named, text.head_dim), folder / "consolidated.safetensors")


def in_mistrals_layout(published: Mapping[str, Tensor], head_dim: int) -> dict[str, Tensor]:
    """The encoder's sinusoids are not part of it."""
    found = {}
    for name, value in published.items():
        if name.endswith("embed_positions.weight"):
            continue
        pattern, other = next((pattern, other) for pattern, other in LAYOUT if re.match(pattern, name))
        native = re.sub(pattern, other, name)
        if TURNED.fullmatch(native):
            value = value.view(-1, 2, head_dim // 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        found[native] = value.detach().contiguous()
    return found
