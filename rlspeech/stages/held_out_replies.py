"""Held-out replies to what is learned from pairs: how many have a fault, and how far the student is from its start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import expm1

from rlspeech.config import OptimConfig
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import Engines
from rlspeech.protocols import Sampling
from rlspeech.stages.examining import Examiner, all_faults, fault_shares
from rlspeech.stages.hearing import Heard, flat
from rlspeech.types import Rollout

SEED = 20_250_919  # the same draws at every measurement


@dataclass(frozen=True)
class HeldOutReplies:
    """Held-out recordings by the name of their set."""

    sets: Mapping[str, Sequence[Heard]]
    examiner: Examiner
    max_tokens: int
    optim: OptimConfig

    def measure(self, engines: Engines, *, version: int) -> dict[str, float]:
        """Of replies sampled at temperature 1: `held_out/{set}_repetitive_share`, `_unsupported_share` by detectors,
        and `kl/{set}_reference_nats`, KL(student || reference) a token, estimated by k3 (see losses.grpo).
        """
        engines.rollouts.load_weights(engines.learner, version)
        found: dict[str, float] = {}
        for name, recordings in self.sets.items():
            samples, prompts = flat(recordings)
            sampling = Sampling(max_tokens=self.max_tokens, temperature=1.0, seed=SEED)
            rollouts = engines.rollouts.generate(samples, prompts, sampling)
            audio_s = [one.audio_s for one in recordings for _ in one.samples]
            replies = [one.completion for one in rollouts]
            ended = [one.finish == "stop" for one in replies]
            faults = all_faults(self.examiner, samples, audio_s, [one.text for one in replies], ended)
            shares = fault_shares(samples, faults)
            found |= {f"held_out/{name}_{key}_share": value for key, value in shares.items() if value is not None}
            found[f"kl/{name}_reference_nats"] = self._from_reference(engines, rollouts)
        return found

    def _from_reference(self, engines: Engines, rollouts: Sequence[Rollout]) -> float:
        learner = engines.learner
        batches = make_batches(
            engines.student,
            rollouts,
            micro_batch=self.optim.micro_batch,
            micro_batch_tokens=self.optim.micro_batch_tokens,
            ranks=learner.ranks,
        )
        own, kept = learner.logprobs(batches), learner.logprobs(batches, reference=True)
        gaps = [theirs - ours for i in own for ours, theirs in zip(own[i], kept[i], strict=True)]
        return sum(expm1(gap) - gap for gap in gaps) / max(1, len(gaps))
