"""The family `granite_speech` (Granite Speech 3.3 and 4.0): a conformer, a Q-Former of 15 frames to 3 tokens, Granite.

A published folder may hold an adapter that its model applies where there is audio: `merge_adapter` makes it part of
the weights, once and for all, and text prompts then meet it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GraniteSpeechForConditionalGeneration

from rlspeech.errors import UserError
from rlspeech.students._base import Family
from rlspeech.students._checkpoint import set_in_config, write_model
from rlspeech.students._granite_encoder import encode
from rlspeech.students._granite_features import GraniteFeatures
from rlspeech.students._rewrite import Conversion, check_tensors, new_folder, stored
from rlspeech.types import Sample

ADAPTER = "adapter_config.json"
SYSTEM = (  # of the model cards; a template's own would have the date of the day in it
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)


def merge_adapter(folder: Path, new: Path) -> None:
    """A published folder with its adapter made part of the weights, under published names.

    Raises UserError where there is no adapter.
    """
    if not (folder / ADAPTER).is_file():
        raise UserError(f"{folder}: holds no adapter, {ADAPTER}: there is nothing to merge")
    weights = stored(folder)
    model = Student.MODEL.from_pretrained(folder, local_files_only=True)
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "get_delta_weight"):
            layer.merge()
            model.set_submodule(name, layer.base_layer)
    tied = set(model.all_tied_weights_keys)
    state = {_published(name): value for name, value in model.state_dict().items() if name not in tied}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    check_tensors(folder, weights, shapes, "a whole Granite Speech")
    with new_folder(new, weights.values()) as written:
        write_model(written, folder, state)
        set_in_config(written, has_lora_adapter=False)


class Student(Family):
    ARCHITECTURES = ("GraniteSpeechForConditionalGeneration",)
    MODEL = GraniteSpeechForConditionalGeneration
    EXTRACTOR = GraniteFeatures
    AUDIO = "<|audio|>"
    END = "<|end_of_text|>"
    TOWER = "model.encoder"
    PROJECTOR = "model.projector"
    PUBLISHED = {  # noqa: RUF012
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.encoder.": "encoder.",
        "model.projector.": "projector.",
    }
    FIXED = ()
    frame_s = 0.1
    framewise = False
    CONVERSIONS = {"merged": Conversion(merge_adapter)}  # noqa: RUF012

    @classmethod
    def check_layout(cls, folder: Path) -> None:
        if (folder / ADAPTER).is_file():
            raise UserError(
                f"{folder}: holds an adapter, {ADAPTER}; make it part of the weights: "
                f"rlspeech convert {folder} --to merged --out NEW_FOLDER"
            )

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> Self:
        """Raises UserError as all families do, and where the folder's adapter is still to be merged."""
        student = super().load(folder, dtype=dtype, weights=weights)
        student.decoder.norm.register_forward_hook(_scaled(student.model.config.text_config.logits_scaling))
        return student

    def messages(self, sample: Sample, *, audios: int) -> list[dict[str, Any]]:
        user = f"{self.AUDIO * audios}{sample.instruction}"
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]

    def frames_of(self, samples: int) -> int:
        (count,) = self.extractor._get_num_audio_features([samples])
        return count if samples >= self.extractor.least_samples else 0

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Three rows a block of 15 frames of the encoder, five in each. `windows_at_once` counts its blocks of 4 s."""
        return [self._hear(wave) for wave in waves]

    def _hear(self, wave: np.ndarray) -> Tensor:
        place = self.tower.input_linear.weight
        features = self.extractor.log_mel(torch.from_numpy(wave)).to(place)
        # Ranks that gather each layer's parameters go through it equally often.
        blocks = len(features) if self.always_encode else self.windows_at_once
        frames = encode(self.tower, features, blocks_at_once=blocks)
        config = self.model.config
        padded = nn.functional.pad(frames, (0, 0, 0, -len(frames) % config.window_size))
        return padded.reshape(-1, config.downsample_rate * frames.shape[1])

    def project(self, frames: Tensor) -> Tensor:
        """Of whole blocks."""
        width = self.model.config.encoder_config.hidden_dim
        projected = self.projector(frames.reshape(1, -1, width))
        return projected.reshape(*frames.shape[:-1], -1)


def _scaled(by: float) -> Any:
    """Granite divides its logits; transformers 5.19 forgets it in GraniteSpeech alone: remove this when it does not."""
    return lambda module, given, out: out / by


def _published(name: str) -> str:
    ours = next((ours for ours in Student.PUBLISHED if name.startswith(ours)), "")
    return Student.PUBLISHED.get(ours, "") + name.removeprefix(ours)
