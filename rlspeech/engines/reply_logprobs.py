"""The learner's own log-probs of replies, and what a step's micro-batches are told of each rollout.

N reply tokens of a batch; rollouts are known by their index in the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlspeech.engines.batches import NOBODY
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.types import Policy, TokenBatch

TOLD = "train/logprobs"  # where a `Look` has what `Told` tells


@dataclass(frozen=True)
class Told:
    """A loss that learns nothing and tells log q(y) of each token, in nats."""

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logprobs_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        return torch.zeros_like(logprobs_N), {"logprobs": logprobs_N.detach()}


def bare(batch: TokenBatch) -> TokenBatch:
    """The batch without what its log-probs do not depend on."""
    return replace(batch, sampler_logprobs=None, sft_weights=None, teacher_head=None, teacher_hidden=None)


def by_rollout(batch: TokenBatch, values_N: Tensor) -> dict[int, list[float]]:
    """Values of the tokens of each rollout, in their order; those of nobody are left out."""
    found: dict[int, list[float]] = {}
    for rollout, value in zip(batch.rollout.tolist(), values_N.tolist(), strict=True):
        if rollout != NOBODY:
            found.setdefault(rollout, []).append(value)
    return found


def with_logprobs(
    batches: Sequence[TokenBatch],
    *,
    old: Mapping[int, Sequence[float]] | None = None,
    reference: Mapping[int, Sequence[float]] | None = None,
) -> list[TokenBatch]:
    """All micro-batches of a step with what `Learner.logprobs` gave for them, before its first update."""
    found = list(batches)
    if old is not None:
        found = [replace(batch, old_logprobs=_column(batch, old)) for batch in found]
    if reference is not None:
        found = [replace(batch, reference_logprobs=_column(batch, reference)) for batch in found]
    return found


def with_advantages(
    batches: Sequence[TokenBatch], advantages: Sequence[float], *, idle: float = 0.0
) -> list[TokenBatch]:
    """All micro-batches of a step, on all ranks, with each rollout's advantage; `idle`: of the step as a whole."""
    of = torch.tensor([*advantages, 0.0])  # the last: of NOBODY
    found = [replace(batch, advantages=of[batch.rollout], idle=0.0) for batch in batches]
    return [replace(found[0], idle=idle), *found[1:]] if found else []


def _column(batch: TokenBatch, values: Mapping[int, Sequence[float]]) -> Tensor:
    """[N]; 0 of nobody's tokens. Raises ValueError where a rollout has other tokens than values."""
    owners = batch.rollout.tolist()
    rest = {rollout: iter(values[rollout]) for rollout in set(owners) if rollout != NOBODY}
    for rollout in rest:
        if len(values[rollout]) != owners.count(rollout):
            raise ValueError(f"rollout {rollout}: {len(values[rollout])} log-probs for {owners.count(rollout)} tokens")
    return torch.tensor([0.0 if rollout == NOBODY else next(rest[rollout]) for rollout in owners])
