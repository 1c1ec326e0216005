"""GRPO as TRL's trainer computes it on the same tensors, whatever the settings and however the step is cut."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlspeech.config import ImportanceConfig
from rlspeech.engines.measure import PLAIN, Look, Objective, Sums, look, weight_of
from rlspeech.engines.reply_logprobs import with_advantages
from rlspeech.losses.grpo import Loss
from rlspeech.maths.packing import tokens_of
from rlspeech.types import Policy, TokenBatch

LENGTHS, REWARDS = [3, 5, 1, 4, 2, 6], [[0.0, -1.0, -3.0], [-2.0, -2.5, 0.0]]
MAX_TOKENS = 9
N, VOCABULARY, WIDTH = sum(LENGTHS), 11, 5
LOSS_TYPES = {"tokens": "dapo", "sequences": "grpo", "max_tokens": "dr_grpo"}


@dataclass(frozen=True)
class Step:
    """Six rollouts of two prompts, in float64, with a policy that has moved since they were sampled."""

    policy: Policy
    batch: TokenBatch

    def apart(self, loss: Loss, cuts: list[list[int]], objective: Objective = PLAIN) -> tuple[list[Look], float]:
        """The micro-batches of these rollouts each, and what the step's sum is divided by."""
        of = [torch.isin(self.batch.rollout, torch.tensor(cut)).nonzero()[:, 0] for cut in cuts]
        batches = [tokens_of(self.batch, index) for index in of]
        advantages = [value for group in loss.advantages_of(REWARDS) for value in group]
        batches = with_advantages(batches, advantages, idle=loss.idle(LENGTHS, MAX_TOKENS))
        shares = torch.cat(loss.shares(LENGTHS))
        batches = [replace(batch, weights=shares[index]) for batch, index in zip(batches, of, strict=True)]
        parts = [replace(self.policy, hidden=self.policy.hidden[index]) for index in of]
        seen = [look(part, batch, loss, objective) for part, batch in zip(parts, batches, strict=True)]
        return seen, weight_of(batches)


def step_of(*, old: bool = True, moved: float = 0.3, seed: int = 0) -> Step:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, head = normal(N, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH).requires_grad_()
    targets = torch.randint(VOCABULARY, (N,), generator=draw)
    own = logprobs_of(hidden, head, targets).detach()
    grid = torch.zeros(1, N, dtype=torch.long)
    batch = TokenBatch(
        *[grid] * 3,
        None,
        at=torch.arange(N),
        targets=targets,
        weights=torch.ones(N),
        rollout=torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)),
        sampler_logprobs=own + 0.2 * normal(N),
        old_logprobs=own + moved * normal(N) if old else None,
        reference_logprobs=own + normal(N),
    )
    return Step(Policy(hidden, head, 1.2), batch)


def logprobs_of(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ head.T / 1.2).log_softmax(-1)[torch.arange(len(targets)), targets]


def padded(values_N: Tensor) -> Tensor:
    """[R, T]"""
    return torch.nn.utils.rnn.pad_sequence(values_N.split(LENGTHS), batch_first=True)


def by_trl(step: Step, loss: Loss, loss_type: str, **more: Any) -> tuple[Tensor, dict[str, list[float]]]:
    """TRL 1.16's GRPOTrainer._compute_loss on one batch; its own forward pass alone is replaced."""
    from accelerate import Accelerator
    from trl import GRPOTrainer

    trainer = object.__new__(GRPOTrainer)
    logprobs_RT = padded(logprobs_of(step.policy.hidden, step.policy.head, step.batch.targets))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs_RT, torch.zeros_like(logprobs_RT), None)
    trainer.accelerator, trainer.model = Accelerator(cpu=True), SimpleNamespace(training=True)
    trainer.args = SimpleNamespace(delta=loss.ratio_cap, use_bias_correction_kl=False, steps_per_generation=1)
    trainer.loss_type, trainer.importance_sampling_level, trainer.beta = loss_type, loss.ratio, loss.kl_beta
    trainer.epsilon_low, trainer.epsilon_high = loss.clip_low, loss.clip_high
    trainer.max_completion_length, trainer.current_gradient_accumulation_steps = MAX_TOKENS, 1
    trainer.top_entropy_quantile, trainer.off_policy_mask_threshold = 1.0, None
    trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = "importance_sampling_ratio" in more
    trainer._metrics = {"train": defaultdict(list)}
    mask = padded(torch.ones(N, dtype=torch.long))
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": padded(step.batch.targets),
        "completion_mask": mask,
        "advantages": torch.tensor([value for group in loss.advantages_of(REWARDS) for value in group]),
        "num_items_in_batch": mask.sum(),
        "ref_per_token_logps": padded(step.batch.reference_logprobs),
    }
    if step.batch.old_logprobs is not None:
        inputs["old_per_token_logps"] = padded(step.batch.old_logprobs)
    return trainer._compute_loss(trainer.model, inputs | more), trainer._metrics["train"]


def gradients(value: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(value, (policy.hidden, policy.head), retain_graph=True)


def check_equal(found: Tensor, expected: Tensor, policy: Policy) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for ours, theirs in zip(gradients(found, policy), gradients(expected, policy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
        assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("normalise", "ratio", "kl_beta", "ratio_cap", "old"),
    list(product(LOSS_TYPES, ["token", "sequence"], [0.0, 0.1], [None, 1.5], [True, False])),
)
def test_value_and_gradient_are_those_of_trl(normalise, ratio, kl_beta, ratio_cap, old) -> None:
    """Cut into micro-batches of uneven rollouts; TRL has them all in one, where its token mean is the step's."""
    loss = Loss(normalise=normalise, ratio=ratio, kl_beta=kl_beta, ratio_cap=ratio_cap)
    step = step_of(old=old)
    expected, _ = by_trl(step, loss, LOSS_TYPES[normalise])
    for cuts in ([[0, 1, 2, 3, 4, 5]], [[5], [0, 3], [1, 2, 4]]):
        seen, weight = step.apart(loss, cuts)
        check_equal(sum(one.objective for one in seen) / weight, expected, step.policy)
    if normalise == "tokens":
        check_equal(sum(one.objective for one in seen) / weight, by_trl(step, loss, "bnpo")[0], step.policy)


def test_shares_of_clips_are_those_of_trl() -> None:
    loss = Loss(clip_low=0.1, clip_high=0.15, kl_beta=0.1)
    step = step_of()
    sums = Sums()
    for one in step.apart(loss, [[0, 1], [2, 3, 4, 5]])[0]:
        sums.add(one)
    found, (_, theirs) = sums.learned().metrics, by_trl(step, loss, "dapo")
    assert 0 < found["train/clipped_low"] < 1
    assert found["train/clipped_low"] == pytest.approx(theirs["clip_ratio/low_mean"][0])
    assert found["train/clipped_high"] == pytest.approx(theirs["clip_ratio/high_mean"][0])
    assert found["kl/train_nats"] == pytest.approx(theirs["kl"][0])


def test_the_gap_to_the_sampler_is_that_of_the_learner_before_its_updates() -> None:
    """TRL's token_truncate at 1.1; the policy's own log-probs have moved on and play no part in it."""
    loss, step = Loss(), step_of()
    gap_N = step.batch.old_logprobs - step.batch.sampler_logprobs
    ratio_N = gap_N.exp().clamp(max=1.1)
    assert 0 < int((ratio_N == 1.1).sum()) < N
    expected, _ = by_trl(step, loss, "dapo", importance_sampling_ratio=padded(ratio_N))
    seen, weight = step.apart(loss, [[0, 1, 2], [3, 4, 5]], Objective(ImportanceConfig(level="token", cap=1.1)))
    check_equal(sum(one.objective for one in seen) / weight, expected, step.policy)
    sums = Sums()
    for one in seen:
        sums.add(one)
    assert sums.learned().metrics["kl/sampler_learner_nats"] == pytest.approx(-float(gap_N.mean()))
    assert sums.learned().metrics["train/loss"] == pytest.approx(expected.item())


def test_a_reference_that_was_not_sampled_has_a_ratio_and_a_clip_and_no_importance() -> None:
    """Rollout 3 joined the group: its old log-probs are the learner's, its sampler's are none."""
    loss, step = Loss(), step_of()
    joined_N = step.batch.rollout == 3
    batch = replace(step.batch, sampler_logprobs=step.batch.sampler_logprobs.masked_fill(joined_N, math.nan))
    ratio_N = (batch.old_logprobs - batch.sampler_logprobs).exp().clamp(max=1.1).nan_to_num(1.0)
    expected, _ = by_trl(step, loss, "dapo", importance_sampling_ratio=padded(ratio_N))
    seen, weight = replace(step, batch=batch).apart(loss, [[0, 1], [2, 3, 4, 5]], Objective(ImportanceConfig(cap=1.1)))
    check_equal(sum(one.objective for one in seen) / weight, expected, step.policy)


def one_token(ratio: float, advantage: float, loss: Loss) -> tuple[float, dict[str, float]]:
    """Its probability is 1/2 under the policy."""
    nothing = torch.zeros(0, dtype=torch.long)
    hidden, head = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [0.0]])
    batch = TokenBatch(
        *[nothing] * 3,
        None,
        at=nothing,
        targets=torch.tensor([0]),
        weights=torch.ones(1),
        rollout=torch.tensor([0]),
        advantages=torch.tensor([advantage]),
        old_logprobs=torch.tensor([math.log(0.5 / ratio)]),
    )
    value, metrics = loss(Policy(hidden, head), batch)
    return value.item(), {name: found.item() for name, found in metrics.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "stopped"),
    [
        (1.0, 2.0, -2.0, None),
        (2.0, 2.0, -1.28 * 2, "clipped_high"),
        (2.0, -2.0, 4.0, None),
        (9.0, -2.0, 10.0, "capped"),
        (0.5, 2.0, -1.0, None),
        (0.5, -2.0, 1.6, "clipped_low"),
        (9.0, 0.0, 0.0, None),
    ],
)
def test_clips_and_cap_worked_by_hand(ratio: float, advantage: float, expected: float, stopped: str | None) -> None:
    value, metrics = one_token(ratio, advantage, Loss(ratio_cap=5.0))
    assert value == pytest.approx(expected)
    assert metrics.pop("ratio") == pytest.approx(ratio)
    assert [name for name, found in metrics.items() if found] == ([stopped] if stopped else [])


def test_log_probs_without_measure_make_no_infinite_loss() -> None:
    """Of tokens that fill a rank's turn everything is 0 but their own log-probs: 0 times infinity would be NaN."""
    loss, step = Loss(kl_beta=0.1), step_of()
    far = torch.full((N,), -1000.0)
    seen, _ = Step(step.policy, replace(step.batch, old_logprobs=far, reference_logprobs=-far)).apart(loss, [[0, 1, 2]])
    assert seen[0].objective.isfinite()
    assert all(found.isfinite().all() for found in gradients(seen[0].objective, step.policy))


def test_weight_that_no_token_has_is_what_dr_grpo_divides_by() -> None:
    assert [share.tolist() for share in Loss(normalise="sequences").shares([2, 0, 4])] == [[0.5] * 2, [], [0.25] * 4]
    assert [share.tolist() for share in Loss(normalise="max_tokens").shares([2, 0])] == [[1, 1], []]
    assert Loss(normalise="tokens").idle([2, 0, 4], 8) == 0
    assert Loss(normalise="sequences").idle([2, 0, 4], 8) == 1  # three rollouts, one of which says nothing
    assert Loss(normalise="max_tokens").idle([2, 0, 4], 8) == 3 * 8 - 6


@pytest.mark.parametrize("normalise", LOSS_TYPES)
def test_groups_without_spread_have_a_loss_of_zero_and_say_that_there_is_nothing_to_learn(normalise: str) -> None:
    loss, step = Loss(normalise=normalise), step_of(old=False)
    alike = loss.advantages_of([[-1.0] * 3, [None] * 3])
    assert not loss.can_learn(alike)
    assert replace(loss, kl_beta=0.1).can_learn(alike)
    assert loss.can_learn(loss.advantages_of(REWARDS))
    (batch,) = with_advantages([step.batch], [value for group in alike for value in group])
    seen = look(step.policy, batch, loss)
    assert all(found.abs().max() == 0 for found in gradients(seen.objective, step.policy))
    sums = Sums()
    sums.add(seen)
    assert sums.learned().metrics["train/loss"] == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"advantage": "mean"}, "advantage must be one of group, leave_one_out"),
        ({"normalise": "grpo"}, "normalise must be one of tokens, sequences, max_tokens"),
        ({"clip_low": 1.5}, "clip_low must be in 0..1"),
        ({"ratio_cap": 1.2}, "ratio_cap must be at least 1"),
        ({"kl_beta": -0.1}, "kl_beta must not be below 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Loss(**wrong)
