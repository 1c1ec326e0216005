"""Policy gradient from the advantages of a group: GRPO, Dr. GRPO, DAPO, GSPO and RLOO are settings of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rlspeech.maths.advantages import Baseline, Rewards, Scale, group_advantages
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import required
from rlspeech.types import Policy, TokenBatch

Normalise = Literal["tokens", "sequences", "max_tokens"]
Ratio = Literal["token", "sequence"]


@dataclass(frozen=True)
class Loss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_beta k3, minimised; r = q(y) / q_old(y).

    GRPO (arXiv 2402.03300) with the baseline of RLOO (arXiv 2402.14740), the means of Dr. GRPO (arXiv 2503.20783), the
    asymmetric clip and token mean of DAPO (arXiv 2503.14476), the sequence's ratio of GSPO (arXiv 2507.18071).
    q_old is the learner before the first update of the step, never the sampler: what lies between those two is the
    importance weight of the recipe. k3 = exp(d) - d - 1, d = log q_reference(y) - log q(y), is an unbiased estimate of
    KL(q || q_reference) (Schulman 2020). A reference transcript in the group is a member like any other, with a ratio.
    """

    baseline: Baseline = "group"  # reward minus the group's mean, or minus the mean of the others
    scale: Scale = "none"  # advantages over a standard deviation: of the group, of the batch
    normalise: Normalise = "tokens"  # mean over all tokens; of each reply, then over replies; over max_tokens of each
    clip_low: float = 0.2  # in 0..1: no gradient below r = 1 - clip_low where A < 0
    clip_high: float = 0.28  # >= 0: no gradient above r = 1 + clip_high where A > 0
    ratio_cap: float | None = None  # >= 1 + clip_high: no gradient above it where A < 0 (dual clip)
    ratio: Ratio = "token"  # of each token, or the geometric mean over the reply
    kl_beta: float = 0.0  # >= 0: holds on to the policy that the stage began with

    def __post_init__(self) -> None:
        for name, known in (("baseline", Baseline), ("scale", Scale), ("normalise", Normalise), ("ratio", Ratio)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"{name} must be {' or '.join(get_args(known))}, got {getattr(self, name)!r}")
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ValueError(f"clip_low must be in 0..1 and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if self.ratio_cap is not None and self.ratio_cap < 1 + self.clip_high:
            raise ValueError(f"ratio_cap must be at least 1 + clip_high, got {self.ratio_cap}")
        if self.kl_beta < 0:
            raise ValueError(f"kl_beta must not be negative, got {self.kl_beta}")
        if self.kl_beta and self.normalise == "max_tokens":
            raise ValueError("kl_beta: Dr. GRPO (normalise = 'max_tokens') has no KL term; set it to 0")

    @property
    def needs_reference(self) -> bool:
        """Whether the learner is to keep the policy that the stage began with."""
        return self.kl_beta > 0

    def advantages_of(
        self, rewards: Rewards, lengths: Sequence[int], *, counted: Sequence[Sequence[bool]] = (), max_tokens: int
    ) -> list[list[float]]:
        """Of the replies of each group. `lengths`: tokens of all replies of the step, group by group.

        The learner divides by the sum of the tokens' weights. Dr. GRPO divides by max_tokens a reply instead, so there
        the advantages carry the quotient of the two.
        """
        found = group_advantages(rewards, baseline=self.baseline, scale=self.scale, counted=counted)
        if self.normalise != "max_tokens":
            return found
        share = sum(lengths) / (len(lengths) * max_tokens)
        return [[value * share for value in group] for group in found]

    def shares_of(self, lengths: Sequence[int]) -> list[Tensor]:
        """What each token of each reply counts for in the learner's mean."""
        if self.normalise == "sequences":
            return [torch.full((length,), 1 / length) for length in lengths]
        return [torch.ones(length) for length in lengths]

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `ratio`, `clipped_low` and `clipped_high` 1 where the gradient is stopped, `reference_kl_nats`."""
        advantages_N = required(batch, "advantages")
        logprobs_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        old_N = logprobs_N.detach() if batch.old_logprobs is None else batch.old_logprobs
        log_ratio_N = logprobs_N - old_N
        if self.ratio == "sequence":
            log_ratio_N = _mean_by(batch.rollout, log_ratio_N)
        ratio_N = log_ratio_N.exp()
        capped_N = ratio_N if self.ratio_cap is None else ratio_N.clamp(max=self.ratio_cap)
        kept_N = ratio_N.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss_N = -torch.minimum(capped_N * advantages_N, kept_N * advantages_N)
        metrics = {
            "ratio": ratio_N.detach(),
            "clipped_low": ((advantages_N < 0) & (ratio_N < 1 - self.clip_low)).to(loss_N.dtype),
            "clipped_high": ((advantages_N > 0) & (ratio_N > 1 + self.clip_high)).to(loss_N.dtype),
        }
        if self.kl_beta:
            apart_N = required(batch, "reference_logprobs") - logprobs_N
            k3_N = apart_N.exp() - apart_N - 1
            loss_N = loss_N + self.kl_beta * k3_N
            metrics["reference_kl_nats"] = k3_N.detach()
        return loss_N, metrics


def _mean_by(rollout_N: Tensor, values_N: Tensor) -> Tensor:
    """For each token the mean over all tokens of its rollout [N]."""
    rollouts, index_N = rollout_N.unique(return_inverse=True)
    empty = values_N.new_zeros(len(rollouts))
    sums = empty.index_add(0, index_N, values_N)
    counts = empty.index_add(0, index_N, torch.ones_like(values_N))
    return (sums / counts)[index_N]
