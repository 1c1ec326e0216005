"""Phi-4-multimodal's conformer over audio of any length: log-mel features, 8x subsampling, windows of 40 s.

What comes out is what transformers' own encoder gives for the audio alone, without a mask; but several audios go
together, and the windows of a long one in as many parts as memory asks for. (In a batch, transformers 5.19 adds its
boolean mask to the attention scores, so that padding is attended to.)

M mel frames (10 ms), F encoder frames (80 ms), W windows of one pass, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from rlspeech.students._passes import in_pass

STRIDE = 8  # mel frames in an encoder frame
WINDOW = 500  # encoder frames that see one another: 40 s
PIECE = WINDOW * STRIDE  # mel frames that are computed at a time


class Window(NamedTuple):
    mel: Tensor  # [M, mel bins]; before all windows but the first, STRIDE frames of the one before
    skip: int  # encoder frames at its beginning that belong to the window before
    width: int  # encoder frames that see one another; those behind the end of a long audio are zeros, and are seen


def mel_frames(extractor: Any, samples: int) -> int:
    return max(0, (samples - extractor.win_length) // extractor.hop_length + 1)


def frames_of(extractor: Any, samples: int) -> int:
    """Encoder frames of an audio."""
    return -(-mel_frames(extractor, samples) // STRIDE)


def windows_of(extractor: Any, samples: int) -> int:
    return max(1, -(-mel_frames(extractor, samples) // PIECE))


def samples_of(extractor: Any, frames: int) -> int:
    """The least samples that make so many encoder frames, and whole ones."""
    return (frames * STRIDE - 1) * extractor.hop_length + extractor.win_length


def log_mel(extractor: Any, wave: np.ndarray) -> Tensor:
    """Features [M, mel bins], a piece at a time: the family's extractor computes in float64, and keeps every step."""
    total = mel_frames(extractor, len(wave))
    hop, length = extractor.hop_length, extractor.win_length
    parts = []
    for start in range(0, total, PIECE):
        stop = min(start + PIECE, total)
        piece = np.asarray(wave[start * hop : (stop - 1) * hop + length], np.float32)
        found = extractor(piece, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        parts.append(found["audio_input_features"][0])
    return torch.cat(parts)


def encode(tower: nn.Module, mels: Sequence[Tensor], *, at_once: int) -> list[Tensor]:
    """Encoder output [F, H] of each audio's features; `at_once` windows go together, those of like length."""
    cut = [_windows(mel) for mel in mels]
    flat = [window for windows in cut for window in windows]
    order = sorted(range(len(flat)), key=lambda at: len(flat[at].mel))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), at_once):
        chosen = order[start : start + at_once]
        found |= zip(chosen, in_pass(_encode, tower, [flat[at] for at in chosen]), strict=True)
    rows = iter(found[at] for at in range(len(flat)))
    return [torch.cat([next(rows) for _ in windows]) for windows in cut]


def _windows(mel: Tensor) -> list[Window]:
    frames = -(-len(mel) // STRIDE)
    if frames <= WINDOW:
        return [Window(mel, 0, frames)]
    starts = range(0, len(mel), PIECE)
    return [Window(mel[max(0, at - STRIDE) : at + PIECE], int(at > 0), WINDOW) for at in starts]


def _encode(tower: Any, windows: Sequence[Window]) -> list[Tensor]:
    like = tower.embed.out.weight
    lengths = torch.tensor([len(window.mel) for window in windows], device=like.device)
    mel = pad_sequence([window.mel for window in windows], batch_first=True).to(like)
    subsampled = _subsample(tower.embed, tower.encoder_embedding(mel), lengths)
    rows = [row[window.skip : -(-len(window.mel) // STRIDE)] for row, window in zip(subsampled, windows, strict=True)]
    widths = torch.tensor([window.width for window in windows], device=like.device)
    hidden = torch.stack([pad(row, (0, 0, 0, int(widths.max()) - len(row))) for row in rows])
    is_behind = torch.arange(hidden.shape[1], device=like.device) >= widths[:, None]
    mask = torch.zeros_like(is_behind, dtype=like.dtype).masked_fill(is_behind, -torch.inf)[:, None, None]
    mask = mask + tower.relative_attention_bias_layer(hidden)
    for layer in tower.encoders:
        hidden = layer(hidden, mask)
    return [row[: len(kept)] for row, kept in zip(hidden, rows, strict=True)]


def _subsample(embed: Any, mel: Tensor, lengths: Tensor) -> Tensor:
    """[W, M, mel bins] to [W, F, H]. After every layer, what is behind a row's end is zeros, as if it stood alone."""
    hidden = _cut(mel[:, None], lengths)
    for layer in embed.conv:
        hidden = layer(hidden)
        if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1:
            lengths = (lengths + 1) // 2
        hidden = _cut(hidden, lengths)
    return embed.out(hidden.transpose(1, 2).flatten(2))


def _cut(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Of [W, channels, frames, bins]."""
    is_behind = torch.arange(hidden.shape[2], device=hidden.device) >= lengths[:, None]
    return hidden.masked_fill(is_behind[:, None, :, None], 0)
