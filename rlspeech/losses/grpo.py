"""Policy gradient on rewards: GRPO and its kin, by settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rlspeech.maths.advantages import Baseline, Scale, advantages
from rlspeech.maths.importance import LOG_RATIO_MAX
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import required
from rlspeech.types import Policy, TokenBatch

Normalise = Literal["tokens", "sequences", "max_tokens"]
Ratio = Literal["token", "sequence"]


@dataclass(frozen=True)
class Loss:
    """-min(min(r, ratio_cap) A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_beta k3 of each token, minimised.

    r = q(y) / q_old(y), q_old the learner's own before the first update on the batch (PPO, arXiv 1707.06347; GRPO,
    2402.03300); without `old_logprobs` q_old = q, which is right for one update. The sampler's log-probs are never
    taken for q_old: that gap is the learner's to correct. `ratio` sequence: r = exp(mean of log r over the reply), one
    for all its tokens (GSPO, 2507.18071). clip_high above clip_low: DAPO, 2503.14476. `ratio_cap`: the loss of A < 0 is
    unbounded in r without it (dual clip, 1912.09729; TRL's `delta`). k3 = e^d - d - 1, d = log ref(y) - log q(y), is an
    estimate of KL(q || ref), not below 0 (TRL's).

    A: `advantages_of`. `normalise`, as TRL's `loss_type`: tokens, dapo (the mean over all tokens of the step);
    sequences, grpo (the mean over rollouts of each one's mean); max_tokens, dr_grpo (the sum over rollouts times
    max_tokens: Dr. GRPO, 2503.20783). The learner divides by the step's weights, so `shares` has each token's weight,
    and `idle` the weight of what was not written: Dr. GRPO's denominator is that of replies of full length.
    """

    advantage: Baseline = "group"
    scale: Scale = "group"
    normalise: Normalise = "tokens"
    clip_low: float = 0.2  # in 0..1
    clip_high: float = 0.28  # >= 0
    ratio: Ratio = "token"
    kl_beta: float = 0.0  # >= 0; 0: no reference is needed
    ratio_cap: float | None = None  # >= 1 + clip_high

    def __post_init__(self) -> None:
        for name, known in (
            ("advantage", Baseline),
            ("scale", Scale),
            ("normalise", Normalise),
            ("ratio", Ratio),
        ):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if not 0 <= self.clip_low <= 1 or not self.clip_high >= 0:
            raise ValueError(f"clip_low must be in 0..1 and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if self.ratio_cap is not None and not self.ratio_cap >= 1 + self.clip_high:
            raise ValueError(f"ratio_cap must be at least 1 + clip_high, got {self.ratio_cap}")
        if not self.kl_beta >= 0:
            raise ValueError(f"kl_beta must not be below 0, got {self.kl_beta}")

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `ratio` (before clip and cap), `clipped_low`, `clipped_high` and `capped` 1 where it has stopped the
        gradient of the reward, `kl_nats` (k3) where kl_beta > 0. Raises ValueError naming what the batch lacks."""
        advantage_N = required(batch, "advantages")
        logprobs_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        old_N = logprobs_N.detach() if batch.old_logprobs is None else batch.old_logprobs
        log_ratio_N = logprobs_N - old_N
        if self.ratio == "sequence":
            log_ratio_N = _mean_by(batch.rollout, log_ratio_N)
        ratio_N = log_ratio_N.clamp(max=LOG_RATIO_MAX).exp()
        clipped_N = ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high)
        capped_N = ratio_N if self.ratio_cap is None else ratio_N.clamp(max=self.ratio_cap)
        loss_N = -torch.minimum(capped_N * advantage_N, clipped_N * advantage_N)
        metrics = self._stops(ratio_N.detach(), advantage_N)
        if self.kl_beta > 0:
            gap_N = (required(batch, "reference_logprobs") - logprobs_N).clamp(max=LOG_RATIO_MAX)
            k3_N = gap_N.exp() - gap_N - 1
            loss_N = loss_N + self.kl_beta * k3_N
            metrics["kl_nats"] = k3_N.detach()
        return loss_N, metrics

    def advantages_of(
        self, groups: Sequence[Sequence[float | None]], counts: Sequence[Sequence[bool]] | None = None
    ) -> list[list[float]]:
        """Of the rewards of a step's groups: see `maths.advantages.advantages`."""
        return advantages(groups, counts, baseline=self.advantage, scale=self.scale)

    def shares(self, lengths: Sequence[int]) -> list[Tensor]:
        """Of each rollout of so many tokens, what its tokens count for: 1, or one over their number."""
        return [torch.full((n,), 1 / n if self.normalise == "sequences" and n else 1.0) for n in lengths]

    def idle(self, lengths: Sequence[int], max_tokens: int) -> float:
        """The step's weight that no token has, for `TokenBatch.idle`: shares plus this is what the loss is divided by.

        sequences: a reply of no tokens counts as one of loss 0. max_tokens: rollouts times max_tokens, all in all.
        """
        if self.normalise == "max_tokens":
            return float(len(lengths) * max_tokens - sum(lengths))
        return float(sum(n == 0 for n in lengths)) if self.normalise == "sequences" else 0.0

    def can_learn(self, found: Sequence[Sequence[float]]) -> bool:
        """Whether a step of these advantages has a gradient; if not, an update would move weights by momentum alone."""
        return self.kl_beta > 0 or any(value != 0 for group in found for value in group)

    def _stops(self, ratio_N: Tensor, advantage_N: Tensor) -> dict[str, Tensor]:
        falls_N, rises_N = advantage_N < 0, advantage_N > 0
        metrics = {
            "ratio": ratio_N,
            "clipped_low": (falls_N & (ratio_N < 1 - self.clip_low)).to(ratio_N.dtype),
            "clipped_high": (rises_N & (ratio_N > 1 + self.clip_high)).to(ratio_N.dtype),
        }
        if self.ratio_cap is not None:
            metrics["capped"] = (falls_N & (ratio_N > self.ratio_cap)).to(ratio_N.dtype)
        return metrics


def _mean_by(rollout_N: Tensor, values_N: Tensor) -> Tensor:
    """For each token the mean over all tokens of its rollout [N]; a rollout's tokens are all here."""
    _, index_N, count_R = rollout_N.unique(return_inverse=True, return_counts=True)
    sums_R = values_N.new_zeros(len(count_R)).index_add(0, index_N, values_N)
    return (sums_R / count_R)[index_N]
