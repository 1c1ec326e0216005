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

from rlspeech.students._passes import in_pass
from rlspeech.students._thinker import THINKER, encoded
from rlspeech.students._whisper import WhisperFamily, log_mel, mel_frames

BLOCKS = 15  # of 2 s, in what `windows_at_once` counts


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
    PUBLISHED = THINKER
    UNREAD = ("talker.", "token2wav.")
    FIXED = ("audio_bos_eos_token",)  # stands in no prompt

    @property
    def piece(self) -> int:
        return self.window

    @property
    def span(self) -> int:
        """Mel frames that go through the tower at once."""
        return 2 * self.tower.n_window * BLOCKS * self.windows_at_once

    def passes(self, waves: Sequence[np.ndarray]) -> int:
        return sum(-(-mel_frames(len(wave), self.window) // self.span) for wave in waves)

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        return [self._hear(wave) for wave in waves]

    def _hear(self, wave: np.ndarray) -> Tensor:
        mel, sound = log_mel(self.extractor, wave)
        parts = mel[:, :sound].split(self.span, dim=1)
        return torch.cat([in_pass(encoded, self.tower, self.projector, part) for part in parts])
