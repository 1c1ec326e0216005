"""A student's forward pass over micro-batches, and the means that a step reports.

B rows, T tokens, N reply tokens, D hidden size.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import attention_mask
from rlspeech.protocols import Learned, Loss, Metrics, Student
from rlspeech.types import Policy, TokenBatch


def policy_of(student: Student, batch: TokenBatch, temperature: float) -> Policy:
    """Hidden states at the reply positions, with their graph."""
    hidden_BTD = student.decoder(
        inputs_embeds=student.embed(batch.input_ids, batch.features),
        attention_mask=attention_mask(batch.branch),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return Policy(hidden_BTD.flatten(0, 1)[batch.at], student.head(), temperature)


@torch.no_grad()
def measure(student: Student, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
    """The means of a loss and its metrics; nothing is learned."""
    student.model.eval()
    sums = Sums(batches)
    for batch in batches:
        policy = policy_of(student, batch, temperature)
        loss_N, metrics_N = loss(policy, batch)
        sums.add(policy, batch, {"loss": loss_N, **metrics_N})
    return Learned(sums.metrics(), sums.token_kl_nats)


class Sums:
    """Weighted means over all reply tokens of a step, summed a micro-batch at a time and divided once."""

    def __init__(self, batches: Sequence[TokenBatch]) -> None:
        self.total = float(sum(batch.weights.sum() for batch in batches))
        if self.total <= 0:
            raise ValueError("no reply token has weight: there is nothing to learn from in this step")
        self.sums: dict[str, float] = {}
        self.largest_gap = 0.0
        self.token_kl_nats: dict[int, list[float]] = {}

    def mean(self, values_N: Tensor, batch: TokenBatch) -> Tensor:
        return (values_N * batch.weights).sum() / self.total

    def add(self, policy: Policy, batch: TokenBatch, metrics_N: Mapping[str, Tensor]) -> None:
        named = {_area(name): values for name, values in metrics_N.items()}
        if batch.sampler_logprobs is not None:
            gap_N = self._gap(policy, batch)
            named["kl/sampler_learner_nats"] = gap_N
            self.largest_gap = max(self.largest_gap, float(gap_N.abs().max()))
        for name, values_N in named.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(self.mean(values_N, batch))
        divergence_N = metrics_N.get("kl_nats", metrics_N.get("k1_nats"))
        if divergence_N is not None:
            for rollout, value in zip(batch.rollout.tolist(), divergence_N.tolist(), strict=True):
                self.token_kl_nats.setdefault(rollout, []).append(value)

    def _gap(self, policy: Policy, batch: TokenBatch) -> Tensor:
        """Sampler's minus learner's log-prob of each token [N]: its mean estimates KL(sampler || learner)."""
        with torch.no_grad():
            ours_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        return batch.sampler_logprobs - ours_N

    def metrics(self) -> Metrics:
        gap = {"kl/sampler_learner_max_nats": self.largest_gap} if "kl/sampler_learner_nats" in self.sums else {}
        return self.sums | gap


def _area(name: str) -> str:
    """Metrics of a loss under area/name: divergences in nats belong to `kl/`, the rest to `train/`."""
    if name in ("kl_nats", "k1_nats"):
        return "kl/train_nats" if name == "kl_nats" else "kl/train_k1_nats"
    return f"train/{name}"
