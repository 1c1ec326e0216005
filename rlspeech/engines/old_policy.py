"""Log-probs of a step's replies under the learner as it is before its first update, and under the one it began as.

N reply tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlspeech.maths.logprobs import token_logprobs
from rlspeech.protocols import Learner
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Surprise:
    """-log q of each token: what `Learner.evaluate` tells of it is the learner's own log-probs."""

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        nats_N = -token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        return nats_N, {"kl_nats": nats_N.detach()}


def with_old_logprobs(learner: Learner, batches: Sequence[TokenBatch], *, temperature: float) -> list[TokenBatch]:
    """`old_logprobs` of every reply, sampled or not: a reference has those that the learner gives it."""
    found = learner.evaluate(batches, Surprise(), temperature=temperature).token_kl_nats
    return [replace(batch, old_logprobs=_placed(batch, found)) for batch in batches]


def with_reference_logprobs(learner: Learner, batches: Sequence[TokenBatch], *, temperature: float) -> list[TokenBatch]:
    """`reference_logprobs` of every reply, under the policy that the learner began with."""
    found = learner.evaluate(batches, Surprise(), temperature=temperature, reference=True).token_kl_nats
    return [replace(batch, reference_logprobs=_placed(batch, found)) for batch in batches]


def _placed(batch: TokenBatch, nats: Mapping[int, Sequence[float]]) -> Tensor:
    """[N]; a rollout's tokens are all in one batch, in their order. 0 where a token is nobody's."""
    values_N = torch.zeros(len(batch.rollout))
    for rollout in set(batch.rollout.tolist()):
        if rollout >= 0:
            values_N[batch.rollout == rollout] = -torch.tensor(nats[rollout])
    return values_N
