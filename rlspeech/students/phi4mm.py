"""The family `phi4mm`: Phi-4-multimodal in transformers' native format. A conformer, two linear layers, Phi-4-mini.

The model has adapters of its own: a folder `speech-lora` beside its weights holds the one (LoRA, rank 320) that the
language model hears with. It belongs to the student from its loading on, learns from stage `sft` on, and is merged in
what is saved. Vision, with its adapter, takes no part.

F encoder frames (80 ms, one a placeholder), H encoder's hidden size, D the language model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Phi4MultimodalFeatureExtractor, Phi4MultimodalForCausalLM
from transformers.generation import GenerationMixin

from rlspeech.errors import UserError
from rlspeech.students._base import Family
from rlspeech.students._conformer import encode, frames_of, log_mel, windows_of
from rlspeech.students._longrope import LongRope, Rotary
from rlspeech.students._phi4mm_config import is_hub_layout
from rlspeech.students._phi4mm_layout import CONVERSIONS
from rlspeech.students._phi4mm_lora import SPEECH, adapter_settings, adapter_tensors
from rlspeech.types import Prompt

ADAPTED = r"model\.layers\.\d+\.(self_attn\.(qkv|o)_proj|mlp\.(gate_up|down)_proj)"
HEARING = "model.embed_tokens_extend.audio_embed"
PROJECTION = (f"{HEARING}.up_proj_for_speech.", f"{HEARING}.down_proj_for_speech.")
PUBLISHED_SIZES = {"num_attention_heads": 24, "tie_word_embeddings": True}  # where transformers' defaults are others
PUBLISHED_LORA = {"rank": 320, "alpha": 640.0}
WRITING = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")


class Phi4Multimodal(Phi4MultimodalForCausalLM):
    def prepare_inputs_for_generation(self, *given: Any, **kwargs: Any) -> Any:  # `generate` looks for this last name
        """As every model does. The family's own reads the ids anew, without the audio, from a certain length on."""
        return GenerationMixin.prepare_inputs_for_generation(self, *given, **kwargs)


@dataclass
class Student(Family):
    ARCHITECTURES = ("Phi4MultimodalForCausalLM", "Phi4MMForCausalLM")
    MODEL = Phi4Multimodal
    EXTRACTOR = Phi4MultimodalFeatureExtractor
    AUDIO = "<|audio|>"
    END = "<|end|>"
    TOWER = f"{HEARING}.encoder"
    PROJECTOR = HEARING
    DECODER = "model"
    PUBLISHED = {}  # noqa: RUF012 published by its own names
    FIXED = ()
    frame_s = 0.08
    CONVERSIONS = CONVERSIONS

    windows_at_once: int = 4
    rope: LongRope | None = None
    own_lora: Mapping[str, Any] | None = None  # rank and alpha of the adapter in `speech-lora`

    @classmethod
    def check_layout(cls, folder: Path) -> None:
        if is_hub_layout(json.loads((folder / "config.json").read_text(encoding="utf-8"))):
            raise UserError(
                f"{folder}: in the layout of the hub's remote code; give it transformers' native one first: "
                f"rlspeech convert {folder} --to native --out NEW_FOLDER"
            )

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> Self:
        """Raises UserError as all families do, and for the layout of the hub's remote code."""
        student = super().load(folder, dtype=dtype, weights=weights)
        config = student.model.config
        student.rope = LongRope.of(config)
        student.decoder.rotary_emb = Rotary(student.rope)
        if (config.sliding_window or 0) >= config.max_position_embeddings:
            config.sliding_window = None  # a window over all there can be
        if (folder / SPEECH).is_dir():
            student._add_own_lora(folder / SPEECH, weights=weights)
        return student

    @classmethod
    def outline(cls) -> Self:
        """The published model by its sizes alone, on the meta device."""
        with torch.device("meta"):
            model = cls.MODEL(cls.MODEL.config_class(**PUBLISHED_SIZES)).to(torch.bfloat16)
        student = cls(model, Path(), None, None, {})
        student._put_own_lora(PUBLISHED_LORA, "meta")
        return student

    @classmethod
    def audio_id(cls, config: Any) -> int:
        return config.audio_config.audio_token_id

    def special_tokens(self) -> Sequence[str]:
        return [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]

    def frames_of(self, samples: int) -> int:
        return frames_of(self.extractor, samples)

    def passes(self, waves: Sequence[np.ndarray]) -> int:
        return -(-sum(windows_of(self.extractor, len(wave)) for wave in waves) // self.windows_at_once)

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        mels = [log_mel(self.extractor, wave) for wave in waves]
        return encode(self.tower, mels, at_once=self.windows_at_once)

    def project(self, frames: Tensor) -> Tensor:
        layers: Any = self.projector
        return layers.down_proj_for_speech(nn.functional.gelu(layers.up_proj_for_speech(frames)))

    def first_position(self, prompt: Prompt) -> int:
        assert self.rope is not None
        return self.rope.first_position(prompt.token_ids, self.placeholder_id)

    def vllm_input(self, prompt: Prompt) -> dict[str, Any]:
        """Keys that were computed for a long prompt are not those of a short one that begins alike."""
        given = super().vllm_input(prompt)
        return given | {"cache_salt": "long"} if self.first_position(prompt) else given

    # What learns

    @property
    def adapted(self) -> str:
        return ADAPTED

    def is_decoder(self, parameter: str) -> bool:
        return parameter.startswith(WRITING)

    def is_projector(self, parameter: str) -> bool:
        return parameter.startswith(PROJECTION)

    def prepare(
        self,
        stage: str,
        lora: Mapping[str, Any] | None = None,
        *,
        train_encoder: bool = False,
        train_projector: bool = True,
    ) -> None:
        """As every family; the model's own adapter is what learns, or is merged where all of the decoder does."""
        if self.own_lora is not None and lora is None and stage != "align":
            self._merge_own_lora()
        super().prepare(stage, lora, train_encoder=train_encoder, train_projector=train_projector)

    def _add_lora(self, lora: Mapping[str, Any]) -> None:
        if self.own_lora is None:
            super()._add_lora(lora)
            return
        if any(lora[name] != self.own_lora[name] for name in ("rank", "alpha")):
            raise UserError(
                f"{self.folder}: its own adapter has lora.rank = {self.own_lora['rank']} and lora.alpha = "
                f"{self.own_lora['alpha']:g}; the recipe says {lora['rank']} and {lora['alpha']:g}"
            )
        self.lora = lora
        for module in self._adapted_layers().values():
            module.lora_dropout["default"] = nn.Dropout(lora["dropout"]) if lora["dropout"] else nn.Identity()
            for value in (*module.lora_A.parameters(), *module.lora_B.parameters()):
                value.requires_grad_(True)

    def _add_own_lora(self, folder: Path, *, weights: bool) -> None:
        self._put_own_lora(adapter_settings(folder), "cpu" if weights else "meta")
        layers = self._adapted_layers()
        found = adapter_tensors(folder, layers) if weights else {}
        for name, (down, up) in found.items():
            layers[name].lora_A["default"].weight.data.copy_(down)
            layers[name].lora_B["default"].weight.data.copy_(up)

    def _put_own_lora(self, settings: Mapping[str, Any], device: str) -> None:
        self.own_lora = settings
        with torch.device(device):
            super()._add_lora({**settings, "dropout": 0.0})
        self.lora = None  # it has learned nothing yet
        self.model.requires_grad_(False)

    def _merge_own_lora(self) -> None:
        for name, layer in self._adapted_layers().items():
            base = layer.base_layer
            base.weight.data = (base.weight.float() + layer.get_delta_weight("default").float()).to(base.weight.dtype)
            self.model.set_submodule(name, base)
        self.own_lora = None
        del self.model.peft_config

    def _adapted_layers(self) -> dict[str, Any]:
        return {name: module for name, module in self.model.named_modules() if hasattr(module, "get_delta_weight")}
