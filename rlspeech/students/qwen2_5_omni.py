"""The family `qwen2_5_omni` (the thinker of Qwen2.5-Omni): Whisper's layers in blocks of 2 s, one linear layer.

The projector is the last layer of its encoder. Its processor cuts an audio off at 300 s; here longer audio is heard in
pieces of 300 s, one behind the other. Talker and vocoder are not loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from rlspeech.students._whisper import WhisperFamily, log_mel

PARTS = ("audio_tower.", "visual.", "model.", "lm_head.")


class Student(WhisperFamily):
    ARCHITECTURES = (
        "Qwen2_5OmniModel",
        "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniThinkerForConditionalGeneration",
    )
    MODEL = Qwen2_5OmniThinkerForConditionalGeneration
    AUDIO = "<|AUDIO|>"
    TOWER = "audio_tower"
    PROJECTOR = "audio_tower.proj"
    DECODER = "model"
    PUBLISHED = {part: f"thinker.{part}" for part in PARTS}  # noqa: RUF012
    FIXED = ("audio_bos_eos_token",)  # stands in no prompt

    @property
    def piece(self) -> int:
        return self.window

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        return [self._hear(wave) for wave in waves]

    def _hear(self, wave: np.ndarray) -> Tensor:
        """What the tower puts into its last layer. It cuts the audio into blocks itself, which no attention crosses."""
        mel, sound = log_mel(self.extractor, wave)
        met: list[Tensor] = []
        handle = self.projector.register_forward_pre_hook(lambda module, given: met.append(given[0]))
        place = self.projector.weight
        try:
            self.tower(mel[:, :sound].to(place), feature_lens=torch.tensor([sound], device=place.device))
        finally:
            handle.remove()
        return met[0]
