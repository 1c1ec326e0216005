"""Families that hear with Whisper's encoder and a pool of two behind it: 25 frames a second, padding masked.

F frames of an audio, H encoder's hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlspeech.students._base import Family
from rlspeech.students._passes import in_pass

HOP = 160  # audio samples a mel frame
MARGIN_FRAMES = 10  # mel frames of silence kept behind the sound, so that its last frames are those of a padded window


class WhisperFamily(Family):
    """Audio longer than a window is cut into windows, each heard on its own, and joined."""

    @property
    def window(self) -> int:
        """Audio samples that the encoder hears at once."""
        return self.extractor.n_samples

    def frames_of(self, samples: int) -> int:
        return pooled(mel_frames(samples, self.window))

    def passes(self, waves: Sequence[np.ndarray]) -> int:
        return -(-sum(-(-len(wave) // self.window) for wave in waves) // self.windows_at_once)

    def hear(self, waves: Sequence[np.ndarray]) -> list[Tensor]:
        size = self.window
        cut = [[wave[start : start + size] for start in range(0, len(wave), size)] for wave in waves]
        windows = [window for one in cut for window in one]
        encoded: list[Tensor] = []
        for start in range(0, len(windows), self.windows_at_once):
            chunk = [log_mel(self.extractor, window) for window in windows[start : start + self.windows_at_once]]
            encoded += in_pass(encode_windows, self.tower, chunk)
        heard = iter(encoded)
        joined = [torch.cat([next(heard) for _ in one]) for one in cut]
        return [frames[: self.frames_of(len(wave))] for frames, wave in zip(joined, waves, strict=True)]


def log_mel(extractor: Any, window: np.ndarray) -> tuple[Tensor, int]:
    """Log-mel [bins, frames] of a window with a little silence behind it, and the frames that hold sound."""
    sound = -(-len(window) // HOP)
    length = min((sound + MARGIN_FRAMES) * HOP, extractor.n_samples)
    padded = np.pad(window, (0, length - len(window)))
    mel = extractor(padded, sampling_rate=extractor.sampling_rate, padding=False, return_tensors="pt")
    return mel.input_features[0], sound


def mel_frames(samples: int, window: int) -> int:
    """Mel frames that hold sound, as the feature extractor's masks count them over windows.

    >>> mel_frames(16_000, 480_000), mel_frames(480_001, 480_000)
    (100, 3001)
    """
    full, rest = divmod(samples, window)
    return full * (window // HOP) + -(-rest // HOP)


def pooled(mel: int) -> int:
    """Frames after a convolution with stride 2 and a pool of 2.

    >>> pooled(3000), pooled(100), pooled(3), pooled(2), pooled(0)
    (750, 25, 1, 0, 0)
    """
    return max(0, ((mel - 1) // 2 + 1 - 2) // 2 + 1) if mel else 0


def encode_windows(tower: nn.Module, windows: Sequence[tuple[Tensor, int]]) -> list[Tensor]:
    """The encoder over windows cut to their sound: [F, H] each, equal to those of windows padded to their full length.

    Positions behind the sound are masked in every attention, so leaving them out changes nothing; the convolutions
    see one frame ahead, hence the margin of silence in `windows` (log-mel [bins, frames], frames of sound).
    """
    first = tower.conv1.weight
    mels, sound = [mel for mel, _ in windows], torch.tensor([frames for _, frames in windows], device=first.device)
    width = max(mel.shape[1] for mel in mels)
    width += width % 2
    batch = torch.stack([nn.functional.pad(mel, (0, width - mel.shape[1])) for mel in mels]).to(first)
    hidden = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(batch)))).permute(0, 2, 1)
    places = torch.arange(hidden.shape[1], device=first.device)
    hidden = hidden + tower.embed_positions(places)
    heard = (sound - 1) // 2 + 1
    mask = (places < heard[:, None])[:, None, None, :]
    mask = mask.expand(-1, 1, hidden.shape[1], -1)
    for layer in tower.layers:
        out = layer(hidden, mask)
        hidden = out if isinstance(out, Tensor) else out[0]
    hidden = tower.layer_norm(tower.avg_pooler(hidden.permute(0, 2, 1)).permute(0, 2, 1))
    return [row[: max(0, int(frames - 2) // 2 + 1)] for row, frames in zip(hidden, heard, strict=True)]
