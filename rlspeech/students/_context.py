"""Whether a prompt and its reply fit into a model's context, and if not, how much audio would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rlspeech.errors import UserError
from rlspeech.types import Sample, Waveform


@dataclass(frozen=True)
class Room:
    context: int  # tokens of a prompt and its reply together
    frame_s: float  # of audio behind one placeholder
    placeholders: Callable[[np.ndarray], int]  # of one audio
    rate_hz: int

    def check(self, sample: Sample, audios: Sequence[Waveform], *, text: int, frames: int, reply_tokens: int) -> None:
        """`text` and `frames`: tokens of the prompt. Raises UserError in one line that says how many seconds fit."""
        if text + frames + reply_tokens <= self.context:
            return
        reply = f" and a reply of up to {reply_tokens}" if reply_tokens else ""
        made = f"a prompt of {text + frames} tokens{reply}, and the model's context is {self.context}"
        if not audios:
            raise UserError(f"{sample.id}: {made}")
        audio_s, fit_s = sum(one.duration_s for one in audios), self.fitting_s(self.context - text - reply_tokens)
        raise UserError(f"{sample.id}: {audio_s:.0f} s of audio make {made}; {fit_s} s fit")

    def fitting_s(self, tokens: int) -> int:
        """Whole seconds of one audio that so many placeholders are enough for."""
        longest_s = int(max(0, tokens) * self.frame_s)
        lasting = (np.broadcast_to(np.float32(0), second * self.rate_hz) for second in range(longest_s, 0, -1))
        return next((len(wave) // self.rate_hz for wave in lasting if self.placeholders(wave) <= tokens), 0)
