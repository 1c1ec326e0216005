"""A student's forward pass over micro-batches, what a loss says of it, and the means that a step reports.

B rows, T tokens, N reply tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from rlspeech.config import ImportanceConfig
from rlspeech.maths.importance import ratios
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import attention_mask
from rlspeech.protocols import Learned, Loss, Metrics, Student
from rlspeech.types import Policy, TokenBatch

UNCORRECTED = ImportanceConfig(level="off")


def on(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch with its tensors on a device; the audio stays as the student collated it."""
    held = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)})


def hidden_of(student: Student, batch: TokenBatch) -> Tensor:
    """Hidden states at the reply positions [N, D], with their graph. The batch is on the model's device."""
    hidden_BTD = student.decoder(
        inputs_embeds=student.embed(batch.input_ids, batch.features),
        attention_mask=attention_mask(batch.branch),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden_BTD.flatten(0, 1)[batch.at]


def policy_of(student: Student, batch: TokenBatch, temperature: float) -> Policy:
    """What a loss sees of the student. The batch is on the model's device."""
    return Policy(hidden_of(student, batch), student.head(), temperature)


@dataclass(frozen=True)
class Look:
    """What is seen at the N reply tokens of one micro-batch; all but the loss is detached."""

    loss: Tensor  # [N] as the loss gives it
    weights: Tensor  # [N] what each token's loss counts for: its share, times its importance
    metrics: Mapping[str, Tensor]  # [N] each, under area/name
    sampled: Mapping[str, Tensor]  # [N] each; NaN where the token was not sampled
    largest: Mapping[str, float]
    kl_nats: Tensor | None  # [N] the divergence to be shown of each token

    @property
    def objective(self) -> Tensor:
        """The sum that is minimised, before it is divided by the weights of the whole step."""
        return (self.loss * self.weights).sum()


def look(policy: Policy, batch: TokenBatch, loss: Loss, importance: ImportanceConfig = UNCORRECTED) -> Look:
    """The loss and its metrics; where tokens were sampled, the gap between sampler and learner.

    A loss that corrects for the sampler itself is not corrected a second time.
    """
    sampled: dict[str, Tensor] = {}
    largest: dict[str, float] = {}
    weighed = batch
    if batch.sampler_logprobs is not None:
        with torch.no_grad():
            ours_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        gap_N = batch.sampler_logprobs - ours_N
        sampled["kl/sampler_learner_nats"] = gap_N
        largest["kl/sampler_learner_max_nats"] = _largest(gap_N.abs())
        if importance.level != "off" and not getattr(loss, "corrects_sampler", False):
            found = ratios(
                ours_N,
                batch.sampler_logprobs,
                batch.rollout,
                level=importance.level,
                mode=importance.mode,
                cap=importance.cap,
            )
            weighed = replace(batch, weights=batch.weights * found.weights)
            unknown_N = batch.sampler_logprobs.isnan()
            sampled["importance/truncated_share"] = found.truncated.masked_fill(unknown_N, torch.nan)
            sampled["importance/mean_weight"] = found.weights.masked_fill(unknown_N, torch.nan)
            largest["importance/max_ratio"] = _largest(found.ratio.masked_fill(unknown_N, torch.nan))
    loss_N, metrics_N = loss(policy, weighed)
    named = {_area(name): values for name, values in metrics_N.items()}
    return Look(loss_N, weighed.weights, named, sampled, largest, metrics_N.get("kl_nats", metrics_N.get("k1_nats")))


@torch.no_grad()
def measure(student: Student, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
    """The means of a loss and its metrics; nothing is learned."""
    check_weight(weight_of(batches))
    student.model.eval()
    sums = Sums()
    for batch in batches:
        placed = on(batch, student.head().device)
        sums.add(look(policy_of(student, placed, temperature), placed, loss), placed)
    return sums.learned()


def weight_of(batches: Sequence[TokenBatch]) -> float:
    return float(sum(batch.weights.sum() for batch in batches))


def check_weight(total: float) -> None:
    """Raises ValueError where a step has nothing to learn from."""
    if total <= 0:
        raise ValueError("no reply token has weight: there is nothing to learn from in this step")


@dataclass
class Sums:
    """Weighted sums over reply tokens, a micro-batch and a rank at a time; divided once, at the end."""

    values: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)  # by which each sum is to be divided
    largest: dict[str, float] = field(default_factory=dict)
    token_kl_nats: dict[int, list[float]] = field(default_factory=dict)

    def add(self, seen: Look, batch: TokenBatch) -> None:
        self._add("train/loss", float(seen.objective.detach()), float(batch.weights.sum()))
        for name, values_N in seen.metrics.items():
            self._add(name, float((values_N * batch.weights).sum()), float(batch.weights.sum()))
        for name, values_N in seen.sampled.items():
            known_N = ~values_N.isnan()
            weights_M = batch.weights[known_N]
            self._add(name, float((values_N[known_N] * weights_M).sum()), float(weights_M.sum()))
        self._raise_largest(seen.largest)
        if seen.kl_nats is not None:
            for rollout, value in zip(batch.rollout.tolist(), seen.kl_nats.tolist(), strict=True):
                if rollout >= 0:
                    self.token_kl_nats.setdefault(rollout, []).append(value)

    def join(self, other: Sums) -> None:
        """Adds another rank's sums. A rollout's tokens are all of one rank."""
        for name, value in other.values.items():
            self._add(name, value, other.weights[name])
        self._raise_largest(other.largest)
        self.token_kl_nats |= other.token_kl_nats

    def learned(self, more: Mapping[str, float] = {}) -> Learned:
        means = {name: value / self.weights[name] for name, value in self.values.items() if self.weights[name]}
        return Learned(means | self.largest | dict(more), self.token_kl_nats)

    def _add(self, name: str, value: float, weight: float) -> None:
        self.values[name] = self.values.get(name, 0.0) + value
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def _raise_largest(self, found: Metrics | Mapping[str, float]) -> None:
        for name, value in found.items():
            self.largest[name] = max(self.largest.get(name, value), value)


def _largest(values_N: Tensor) -> float:
    """0 where no token was sampled."""
    return max(values_N[~values_N.isnan()].tolist(), default=0.0)


def _area(name: str) -> str:
    """Metrics of a loss under area/name: divergences in nats belong to `kl/`, the rest to `train/`."""
    if name in ("kl_nats", "k1_nats"):
        return "kl/train_nats" if name == "kl_nats" else "kl/train_k1_nats"
    return f"train/{name}"
