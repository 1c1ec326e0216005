"""The family `qwen3_omni` (the thinker of Qwen3-Omni): an encoder of its own, two linear layers, Qwen3's experts.

The encoder's convolutions see blocks of 1 s, its attention blocks of 8 s; the projector is its last two layers. Audio
of any length fits. Talker and vocoder are not loaded. The experts of a layer learn, and reach a live vLLM, as two
stacks of matrices; published, each is on its own.

E experts, M mel frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration

from rlspeech.students._base import Family
from rlspeech.students._passes import in_pass
from rlspeech.students._thinker import THINKER, encoded
from rlspeech.students._whisper import HOP

MEL_IN_BLOCK, FRAMES_IN_BLOCK, MEL_IN_FRAME = 100, 13, 8  # the last frame of a whole block has but four
MEL_AT_ONCE = 3200  # whole blocks of attention: what `windows_at_once` counts
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class Student(Family):
    ARCHITECTURES = ("Qwen3OmniMoeForConditionalGeneration", "Qwen3OmniMoeThinkerForConditionalGeneration")
    MODEL = Qwen3OmniMoeThinkerForConditionalGeneration
    AUDIO = "<|audio_pad|>"
    TOWER = "audio_tower"
    PROJECTOR = "audio_tower.proj1"  # and proj2
    DECODER = "model"
    PUBLISHED = THINKER
    UNREAD = ("talker.", "code2wav.")
    FIXED = ()
    frame_s = MEL_IN_BLOCK / FRAMES_IN_BLOCK / 100

    def frames_of(self, samples: int) -> int:
        return placeholders(samples // HOP) if samples > self.extractor.n_fft // 2 else 0

    def passes(self, waves: Sequence[np.ndarray]) -> int:
        return sum(-(-(len(wave) // HOP) // (MEL_AT_ONCE * self.windows_at_once)) for wave in waves)

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        """Each alone: beside a longer one, the last frames of audio below 1 s would hear its padding."""
        return [self._hear(wave) for wave in waves]

    def _hear(self, wave: np.ndarray) -> Tensor:
        parts = log_mel(self.extractor, wave).split(MEL_AT_ONCE * self.windows_at_once, dim=1)
        return torch.cat([in_pass(encoded, self.tower, self.projector, part) for part in parts])

    def project(self, frames: Tensor) -> Tensor:
        tower: Any = self.tower
        return tower.proj2(tower.act(tower.proj1(frames)))

    def is_projector(self, parameter: str) -> bool:
        return "audio_tower.proj" in parameter

    @property
    def adapted(self) -> list[str]:
        """Attention alone: experts are no linear layers. Names, for PEFT reduces a pattern to the ends of the names
        that it meets where a model has experts, and would adapt the encoder too."""
        layers = self.decoder.get_submodule("layers").named_modules(prefix=f"{self.DECODER}.layers")
        return [name for name, _ in layers if name.endswith(ATTENTION)]

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        super().save(folder, dict(each_expert(weights)))


def log_mel(extractor: Any, wave: np.ndarray) -> Tensor:
    """[bins, M] of a whole audio, whose loudest sets the floor."""
    rate_hz = extractor.sampling_rate
    found = extractor(wave, sampling_rate=rate_hz, padding=True, truncation=False, return_tensors="pt")
    return torch.as_tensor(found.input_features[0])


def placeholders(mel: int) -> int:
    """Frames after three convolutions with stride 2 over each block.

    >>> placeholders(100), placeholders(3000), placeholders(101), placeholders(8), placeholders(0)
    (13, 390, 14, 1, 0)
    """
    blocks, rest = divmod(mel, MEL_IN_BLOCK)
    return blocks * FRAMES_IN_BLOCK + -(-rest // MEL_IN_FRAME)


def longest(frames: int) -> int:
    """Samples of the longest audio that has no more placeholders.

    >>> longest(13), longest(14), placeholders(longest(25) // HOP)
    (16000, 17280, 25)
    """
    blocks, rest = divmod(frames, FRAMES_IN_BLOCK)
    return (blocks * MEL_IN_BLOCK + rest * MEL_IN_FRAME) * HOP


def each_expert(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Stacks [E, ...] of experts taken apart: gate and up lie one above the other in theirs."""
    for name, value in weights.items():
        experts, _, part = name.rpartition(".experts.")
        if not experts:
            yield name, value
            continue
        names = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
        for which, stack in zip(names, value.chunk(len(names), dim=1), strict=True):
            for number, matrix in enumerate(stack):
                yield f"{experts}.experts.{number}.{which}.weight", matrix
