"""Held-out replies to what is learned by rewards: word errors, those of rare words apart, and right answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlspeech.engines.build import Engines
from rlspeech.maths.scores import score
from rlspeech.protocols import Sampling
from rlspeech.stages.hearing import Heard, flat


@dataclass(frozen=True)
class HeldOutWords:
    """Held-out recordings by the name of their set, each with the same list at every measurement."""

    sets: Mapping[str, Sequence[Heard]]
    max_tokens: int

    def measure(self, engines: Engines, *, version: int) -> dict[str, float]:
        """Greedy replies against the references: `held_out/{set}_wer`, `_u_wer`, `_b_wer`, `_right_share`."""
        engines.rollouts.load_weights(engines.learner, version)
        found: dict[str, float] = {}
        for name, recordings in self.sets.items():
            rollouts = engines.rollouts.generate(*flat(recordings), Sampling(max_tokens=self.max_tokens))
            told = score([r.sample for r in rollouts], [r.completion.text for r in rollouts])
            values = {"wer": told.wer, "u_wer": told.u_wer, "b_wer": told.b_wer, "right_share": told.fuzzy}
            found |= {f"held_out/{name}_{key}": value for key, value in values.items() if value is not None}
        return found
