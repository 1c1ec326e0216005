"""What the thinkers of Qwen's Omni models share: published names, and an encoder that ends in its own projector.

M mel frames, F audio frames, H encoder's hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

THINKER = {part: f"thinker.{part}" for part in ("audio_tower.", "visual.", "model.", "lm_head.")}


def encoded(tower: nn.Module, projector: nn.Module, mel: Tensor) -> Tensor:
    """What the tower, given log-mel [bins, M] of one audio, puts into its projector [F, H].

    It cuts the audio into blocks itself, which no attention crosses.
    """
    met: list[Tensor] = []
    handle = projector.register_forward_pre_hook(lambda module, given: met.append(given[0]))
    place = next(projector.parameters())
    try:
        tower(mel.to(place), feature_lens=torch.tensor([mel.shape[1]], device=place.device))
    finally:
        handle.remove()
    return met[0]
