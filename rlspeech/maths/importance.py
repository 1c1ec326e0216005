"""Truncated importance ratios: what a token that another engine sampled counts for in the learner's mean.

Sampler and learner never agree exactly: other kernels, another precision, weights some steps old. A term f of a reply
that was drawn from the sampler's distribution stands for the learner's when it is multiplied by learner / sampler.

Shape letter: N reply tokens.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Level = Literal["token", "sequence"]
Mode = Literal["truncate", "mask"]

LOG_RATIO_MAX = 20.0  # a ratio is never above e^20: over a long reply the sum of log-ratios would overflow


class Ratios(NamedTuple):
    """Detached."""

    weights: Tensor  # [N] what each token counts for
    ratio: Tensor  # [N] learner / sampler before the cap; 1 where the token was not sampled
    truncated: Tensor  # [N] 1.0 where the ratio is above the cap


def ratios(
    learner_logprobs_N: Tensor, sampler_logprobs_N: Tensor, rollout_N: Tensor, *, level: Level, mode: Mode, cap: float
) -> Ratios:
    """r = exp(learner - sampler) of each token, or exp of its sum over the sampled tokens of a rollout.

    truncate: min(r, cap) (TIS: "Your efficient RL framework secretly brings you off-policy RL training", Yao et al.
    2025; IMPALA, arXiv 1802.01561). mask: 0 where r > cap, else r (MIS: "When speed kills stability", Liu et al. 2025).
    The four pairs of level and mode are TRL's `vllm_importance_sampling_mode` token_truncate to sequence_mask with its
    default of no lower bound, and verl's `rollout_is` and `seq_mis`. IcePop (arXiv 2510.18855) also masks r below a
    bound; here a small r stays: it hardly counts, and leaving it out would only add a bias.

    The sequence level is unbiased for a reply as a whole but its variance grows with the length; the token level takes
    the prefix as it was sampled. `rollout_N` tells which rollout a token belongs to; a rollout's tokens are all here.
    A sampler's log-prob of NaN means that the token was not sampled (a reference): its weight is 1, it is never counted
    as truncated, and it leaves the ratio of its sequence alone. Raises ValueError where a setting is unknown.
    """
    if level not in get_args(Level) or mode not in get_args(Mode):
        raise ValueError(f"level must be token or sequence and mode truncate or mask, got {level!r} and {mode!r}")
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1, got {cap}: tokens of equal probability have the ratio 1")
    learner_N, sampler_N = learner_logprobs_N.detach(), sampler_logprobs_N.detach()
    sampled_N = ~sampler_N.isnan()
    log_ratio_N = torch.where(sampled_N, learner_N - sampler_N, 0)
    if level == "sequence":
        log_ratio_N = torch.where(sampled_N, _sum_by(rollout_N, log_ratio_N), 0)
    ratio_N = log_ratio_N.clamp(max=LOG_RATIO_MAX).exp()
    above_N = log_ratio_N > math.log(cap)
    weights_N = ratio_N.masked_fill(above_N, 0) if mode == "mask" else ratio_N.clamp(max=cap)
    return Ratios(weights_N, ratio_N, above_N.to(ratio_N.dtype))


def _sum_by(rollout_N: Tensor, values_N: Tensor) -> Tensor:
    """For each token the sum over all tokens of its rollout [N], added up in float64."""
    rollouts, index_N = rollout_N.unique(return_inverse=True)
    sums = values_N.new_zeros(len(rollouts), dtype=torch.float64).index_add_(0, index_N, values_N.double())
    return sums[index_N].to(values_N.dtype)
