"""Granite Speech's features without torchaudio, which its own extractor wants: log-mel, two frames of 10 ms in a row.

N audio samples, M mel frames, F rows (20 ms).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import BatchFeature, GraniteSpeechFeatureExtractor
from transformers.audio_utils import mel_filter_bank

PIECE = 4096  # mel frames that are computed at a time
FLOOR, RANGE = 1e-10, 8.0  # of the power; and, in its decades, below the loudest that the audio has


class GraniteFeatures(GraniteSpeechFeatureExtractor):
    """The published extractor; torchaudio's `MelSpectrogram` (periodic Hann window, power 2, HTK's mels) is torch's."""

    def __init__(
        self,
        sampling_rate: int = 16_000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        n_mels: int = 80,
        projector_window_size: int = 15,
        projector_downsample_rate: int = 5,
        **settings: Any,
    ) -> None:
        settings["feature_size"] = settings.get("feature_size") or n_mels
        # Past its own class, which stops where torchaudio is not installed.
        super(GraniteSpeechFeatureExtractor, self).__init__(
            **{"padding_value": 0.0, **settings}, sampling_rate=sampling_rate
        )
        self.melspec_kwargs = {
            "sample_rate": sampling_rate,
            "n_fft": n_fft,
            "win_length": win_length,
            "hop_length": hop_length,
            "n_mels": n_mels,
        }
        self.projector_window_size = projector_window_size
        self.projector_downsample_rate = projector_downsample_rate

    def __call__(self, audios: Any, device: Any = "cpu") -> BatchFeature:
        """`input_features` [B, F, 2 * mels] of audios that zeros are put behind, up to the longest."""
        waves, lengths = self._get_audios_and_audio_lengths(audios)
        sizes = self._get_num_audio_features(lengths)
        heard = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        features = torch.stack([self.log_mel(wave.to(device or wave.device)) for wave in waves])
        return BatchFeature({"input_features": features, "audio_embed_sizes": sizes, "input_features_mask": heard})

    @property
    def least_samples(self) -> int:
        """Shorter audio cannot be mirrored at its ends."""
        return self.melspec_kwargs["n_fft"] // 2 + 1

    @torch.no_grad()
    def log_mel(self, wave: Tensor) -> Tensor:
        """[N] to [F, 2 * mels], a piece at a time."""
        n_fft, hop = self.melspec_kwargs["n_fft"], self.melspec_kwargs["hop_length"]
        total = len(wave) // hop + 1
        mirrored = pad(wave.float()[None], (n_fft // 2, n_fft // 2), mode="reflect")[0]
        filters = self._filters().to(wave.device)
        parts = []
        for start in range(0, total, PIECE):
            stop = min(start + PIECE, total)
            power = self._power(mirrored[start * hop : (stop - 1) * hop + n_fft])
            parts.append((power.T @ filters).clip_(min=FLOOR).log10_())
        logs = torch.cat(parts)
        logs = torch.maximum(logs, logs.max() - RANGE).div_(4).add_(1)
        return logs[: total // 2 * 2].reshape(total // 2, -1)

    def _power(self, piece: Tensor) -> Tensor:
        """[n_fft // 2 + 1, M]"""
        length = self.melspec_kwargs["win_length"]
        window = torch.hann_window(length, device=piece.device)
        n_fft, hop = self.melspec_kwargs["n_fft"], self.melspec_kwargs["hop_length"]
        return torch.stft(piece, n_fft, hop, length, window, center=False, return_complex=True).abs().square_()

    def _filters(self) -> Tensor:
        """[n_fft // 2 + 1, mels]"""
        rate_hz = self.melspec_kwargs["sample_rate"]
        bins, mels = self.melspec_kwargs["n_fft"] // 2 + 1, self.melspec_kwargs["n_mels"]
        return torch.from_numpy(mel_filter_bank(bins, mels, 0.0, rate_hz / 2, rate_hz)).float()
