"""A student's forward pass over micro-batches, what a loss says of it, and the means that a step reports.

B rows, T tokens, N reply tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from rlspeech.config import DistillConfig, OnPolicyStage
from rlspeech.config_objective import ImportanceConfig
from rlspeech.errors import UserError
from rlspeech.maths.importance import ratios
from rlspeech.maths.logprobs import smoothed_cross_entropy, token_logprobs
from rlspeech.maths.packing import needed_mask, tokens_of
from rlspeech.maths.spans import summed
from rlspeech.maths.token_weights import divergence_weights
from rlspeech.protocols import Learned, Loss, Metrics, Student
from rlspeech.types import Policy, TokenBatch


def on(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The batch with its tensors on a device; the audio stays as the student collated it."""
    held = {item.name: getattr(batch, item.name) for item in fields(batch)}
    return replace(batch, **{name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)})


def hidden_of(student: Student, batch: TokenBatch) -> Tensor:
    """Hidden states at the reply positions [N, D], with their graph. The batch is on the model's device."""
    hidden_BTD = student.decoder(
        inputs_embeds=student.embed(batch.input_ids, batch.features),
        attention_mask=needed_mask(batch.branch),
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden_BTD.flatten(0, 1)[batch.at]


def policy_of(student: Student, batch: TokenBatch, temperature: float) -> Policy:
    """What a loss sees of the student. The batch is on the model's device."""
    return Policy(hidden_of(student, batch), student.head(), temperature)


UNCORRECTED = ImportanceConfig(level="off")


@dataclass(frozen=True)
class Objective:
    """What a token's loss is multiplied by while it is learned. By default, and where it is measured, by 1."""

    importance: ImportanceConfig = UNCORRECTED
    kl_cap_nats: float | None = None  # a token further from the teacher counts for cap / |KL|
    divergence_gain: float = 1.0  # see maths.token_weights.divergence_weights

    @classmethod
    def of(cls, config: OnPolicyStage) -> Objective:
        if not isinstance(config, DistillConfig):
            return cls(config.importance)
        gain = config.weighting.largest if config.weighting.scheme == "divergence" else 1.0
        return cls(config.importance, config.kl_cap_nats, gain)


PLAIN = Objective()


@dataclass(frozen=True)
class Look:
    """What is seen at the reply tokens of one micro-batch; all but the objective is detached."""

    objective: Tensor  # the sum that is minimised, before it is divided by the weights of the whole step
    batch: TokenBatch  # the N tokens that the loss is about
    weights: Tensor  # [N] what each token's loss counts for: its share, times all that the objective makes of it
    metrics: Mapping[str, Tensor]  # [N] each, under area/name
    sampled: Mapping[str, Tensor]  # [N] each; NaN where the token was not sampled
    largest: Mapping[str, float]
    kl_nats: Tensor | None  # [N] the divergence to be shown of each token
    sft_nats: Tensor | None = None  # [M] -log q of the tokens that the teacher wrote
    sft_weights: Tensor | None = None  # [M]


def look(policy: Policy, batch: TokenBatch, loss: Loss, objective: Objective = PLAIN) -> Look:
    """The loss and its metrics; where tokens were sampled, the gap between sampler and learner.

    A loss that corrects for the sampler itself is not corrected a second time. Where the batch has `sft_weights`, the
    cross-entropy of what the teacher wrote is added, at temperature 1, and the loss does not see tokens that are there
    for it alone. Raises UserError where tokens are to be weighed by a divergence that the loss does not tell.
    """
    if batch.sft_weights is None:
        return _scored(policy, batch, loss, objective)
    # The copies that fill a rank's turn have no weight of any kind, and belong to nobody.
    is_scored_N = (batch.weights != 0) | ((batch.sft_weights == 0) & (batch.rollout >= 0))
    at, written = is_scored_N.nonzero()[:, 0], batch.sft_weights.nonzero()[:, 0]
    part = tokens_of(batch, at)
    nothing = Look(policy.hidden.new_zeros(()), part, part.weights, {}, {}, {}, None)
    seen = _scored(replace(policy, hidden=policy.hidden[at]), part, loss, objective) if len(at) else nothing
    weights_M = batch.sft_weights[written]
    loss_M, nll_M, _ = smoothed_cross_entropy(
        policy.hidden[written], policy.head, batch.targets[written], weights_N=weights_M
    )
    return replace(seen, objective=seen.objective + (loss_M * weights_M).sum(), sft_nats=nll_M, sft_weights=weights_M)


def _scored(policy: Policy, batch: TokenBatch, loss: Loss, objective: Objective) -> Look:
    gap = _sampler_gap(policy, batch, None if getattr(loss, "corrects_sampler", False) else objective.importance)
    loss_N, metrics_N = loss(policy, replace(batch, weights=gap.weights))
    kl_N = metrics_N.get("kl_nats", metrics_N.get("k1_nats"))
    named = {_area(name): values for name, values in metrics_N.items()}
    weights_N = gap.weights
    if objective.divergence_gain != 1 and kl_N is None:
        raise UserError("weighting.scheme = 'divergence': the loss tells no kl_nats or k1_nats of its tokens")
    if kl_N is not None:
        whole_N = summed(kl_N, batch.span)  # of a span as a whole: that is what multiplies each token's gradient
        if objective.divergence_gain != 1:
            weights_N = weights_N * divergence_weights(whole_N, gain=objective.divergence_gain)
        if (cap := objective.kl_cap_nats) is not None:
            weights_N = weights_N * (cap / whole_N.abs().clamp(min=cap))
            named["kl/clipped_share"] = (whole_N.abs() > cap).to(kl_N.dtype)
    return Look((loss_N * weights_N).sum(), batch, weights_N, named, gap.metrics, gap.largest, kl_N)


class _Gap(NamedTuple):
    weights: Tensor  # [N] with the importance of each token
    metrics: dict[str, Tensor]  # [N] each; NaN where the token was not sampled
    largest: dict[str, float]


def _sampler_gap(policy: Policy, batch: TokenBatch, importance: ImportanceConfig | None) -> _Gap:
    """None: the gap is told and not corrected. With `old_logprobs` it is that to the learner before its updates."""
    found = _Gap(batch.weights, {}, {})
    if batch.sampler_logprobs is None:
        return found
    ours_N = batch.old_logprobs
    if ours_N is None:
        with torch.no_grad():
            ours_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
    gap_N = (batch.sampler_logprobs - ours_N).masked_fill(batch.rollout < 0, torch.nan)  # of nobody: not sampled
    found.metrics["kl/sampler_learner_nats"] = gap_N
    found.largest["kl/sampler_learner_max_nats"] = _largest(gap_N.abs())
    if importance is None or importance.level == "off":
        return found
    made = ratios(
        ours_N,
        batch.sampler_logprobs,
        batch.rollout,
        level=importance.level,
        mode=importance.mode,
        cap=importance.cap,
    )
    unknown_N = gap_N.isnan()
    found.metrics["importance/truncated_share"] = made.truncated.masked_fill(unknown_N, torch.nan)
    found.metrics["importance/mean_weight"] = made.weights.masked_fill(unknown_N, torch.nan)
    found.largest["importance/max_ratio"] = _largest(made.ratio.masked_fill(unknown_N, torch.nan))
    return found._replace(weights=batch.weights * made.weights)


@torch.no_grad()
def measure(student: Student, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
    """The means of a loss and its metrics; nothing is learned."""
    check_weight(weight_of(batches))
    student.model.eval()
    sums = Sums()
    for batch in batches:
        placed = on(batch, student.head().device)
        sums.add(look(policy_of(student, placed, temperature), placed, loss))
    return sums.learned()


def weight_of(batches: Sequence[TokenBatch]) -> float:
    """What the sum of their losses is divided by."""
    return sum(float(batch.weights.sum()) + batch.idle for batch in batches)


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

    def add(self, seen: Look) -> None:
        batch = seen.batch
        self._add("train/loss", float(seen.objective.detach()), weight_of([batch]))
        for name, values_N in seen.metrics.items():
            self._add(name, float((values_N * batch.weights).sum()), float(batch.weights.sum()))
        for name, values_N in seen.sampled.items():
            known_N = ~values_N.isnan()
            weights_M = batch.weights[known_N]
            self._add(name, float((values_N[known_N] * weights_M).sum()), float(weights_M.sum()))
        self._raise_largest(seen.largest)
        if seen.sft_nats is not None and seen.sft_weights is not None:
            self._add("train/sft_nats", float((seen.sft_nats * seen.sft_weights).sum()), float(seen.sft_weights.sum()))
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
