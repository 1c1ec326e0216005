"""Sampled reverse KL to any teacher that scores text: a clipped policy gradient."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlspeech.maths.distill import k1_surrogate
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import required
from rlspeech.maths.spans import shared, span_k1
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Loss:
    """-min(r A, clip(r) A), A = -stopgrad(k1), k1 = log q(y) - log p(y), r = q(y) / q_sampler(y), minimised.

    A token that nobody sampled has no r: this loss is for samples alone (see mixed.on_policy_share). With another
    tokenizer than the teacher's, k1 is that of a token's whole span. E_q[k1] = KL(q || p) (X-OPD,
    arXiv 2603.24596); asymmetric clip from DAPO (arXiv 2503.14476); r is capped first, as in dual-clip PPO
    (arXiv 1912.09729).
    """

    corrects_sampler: ClassVar[bool] = True  # r is the importance ratio: the learner corrects no second time

    clip_low: float = 0.2  # in 0..1: no gradient below r = 1 - clip_low where A < 0
    clip_high: float = 0.28  # >= 0: no gradient above r = 1 + clip_high where A > 0
    ratio_cap: float = 5.0  # >= 1 + clip_high: no gradient above it where A < 0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1 or self.clip_high < 0:
            raise ValueError(f"clip_low must be in 0..1 and clip_high >= 0, got {self.clip_low} and {self.clip_high}")
        if self.ratio_cap < 1 + self.clip_high:
            raise ValueError(f"ratio_cap must be at least 1 + clip_high, got {self.ratio_cap}")

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `k1_nats`, `ratio` (before the cap), `clipped` 1 where the clip or the cap stops the gradient."""
        old_N, teacher_N = required(batch, "sampler_logprobs"), required(batch, "teacher_logprobs")
        logprobs_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        k1_N = span_k1(logprobs_N.detach(), teacher_N, batch.span)
        clipped = k1_surrogate(
            logprobs_N,
            old_N,
            k1_N,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            ratio_cap=self.ratio_cap,
        )
        metrics = {"k1_nats": shared(k1_N, batch.span), "ratio": clipped.ratio, "clipped": clipped.clipped}
        return clipped.loss, metrics
