"""The contract of every loss under rlspeech/losses: the folder is listed, so a new one is tested with no edit here."""

import importlib
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rlspeech.losses
from rlspeech.protocols import Loss
from rlspeech.types import Policy, TokenBatch

NAMES = sorted(path.stem for path in Path(rlspeech.losses.__path__[0]).glob("*.py") if path.stem != "__init__")
N, V, D, E = 12, 9, 5, 4
K = 3
OPTIONAL = [
    "sampler_logprobs",
    "teacher_logprobs",
    "teacher_hidden",
    "teacher_head",
    "teacher_topk_ids",
    "teacher_topk_logprobs",
    "advantages",
    "old_logprobs",
    "reference_logprobs",
    "pair",
    "preferred",
]
FULL, TOPK = ["teacher_hidden", "teacher_head"], ["teacher_topk_ids", "teacher_topk_logprobs"]
DIVERGENCES = ["reverse_kl", "forward_kl", "jsd"]
PER_TOKEN = [
    "at",
    "targets",
    "weights",
    "rollout",
    "sampler_logprobs",
    "teacher_logprobs",
    "teacher_hidden",
    "teacher_topk_ids",
    "teacher_topk_logprobs",
    "advantages",
    "old_logprobs",
    "reference_logprobs",
    "pair",
    "preferred",
]
PAIR = 4  # tokens of a pair, two of each reply


def make(name: str, **options: float | str) -> Loss:
    return importlib.import_module(f"rlspeech.losses.{name}").Loss(**options)


def policy_and_batch() -> tuple[Policy, TokenBatch]:
    """A policy with a learning head, and a batch in which every optional field is there. float64."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, head = normal(N, D).requires_grad_(), normal(V, D).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    q = (hidden @ head.T).log_softmax(-1).detach()[torch.arange(N), targets]
    teacher_hidden, teacher_head = normal(N, E), normal(V, E)
    top = (teacher_hidden @ teacher_head.T).log_softmax(-1).topk(K)
    grid = torch.zeros(3, 4, dtype=torch.long)
    batch = TokenBatch(
        input_ids=grid,
        position_ids=grid,
        branch=grid,
        features=None,
        at=torch.arange(N),
        targets=targets,
        weights=torch.ones(N, dtype=torch.float64),
        rollout=torch.arange(N) // 2,
        sampler_logprobs=q + 0.05 * normal(N),
        teacher_logprobs=q + normal(N),
        teacher_hidden=teacher_hidden,
        teacher_head=teacher_head,
        teacher_topk_ids=top.indices,
        teacher_topk_logprobs=top.values,
        advantages=normal(N),
        old_logprobs=q + 0.05 * normal(N),
        reference_logprobs=q + normal(N),
        pair=torch.arange(N) // PAIR,
        preferred=torch.arange(N) // 2 % 2 == 0,
    )
    return Policy(hidden, head, temperature=0.8), batch


def part(policy: Policy, batch: TokenBatch, rows: slice) -> tuple[Policy, TokenBatch]:
    cut = {name: getattr(batch, name)[rows] for name in PER_TOKEN if getattr(batch, name) is not None}
    return replace(policy, hidden=policy.hidden[rows]), replace(batch, **cut)


def of_pairs(name: str) -> bool:
    """Such a loss is about pairs: what is cut off or masked is a pair, not a token."""
    return getattr(make(name), "learns_from_pairs", False)


def test_the_folder_has_the_losses_of_the_recipes():
    assert {"cross_entropy", "reverse_kl", "forward_kl", "jsd", "k1", "grpo", "dpo"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_a_frozen_dataclass_that_says_what_it_is(name: str):
    loss = make(name)
    assert is_dataclass(loss)
    assert type(loss).__doc__
    assert importlib.import_module(type(loss).__module__).__doc__
    for field in fields(loss):
        with pytest.raises(FrozenInstanceError):
            setattr(loss, field.name, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_gives_one_value_a_token_and_detached_metrics(name: str):
    loss, metrics = make(name)(*policy_and_batch())
    assert loss.shape == (N,)
    assert loss.isfinite().all()
    assert loss.requires_grad
    for value in metrics.values():
        assert value.shape == (N,)
        assert value.isfinite().all()
        assert not value.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_masked_tokens_get_no_gradient(name: str):
    policy, batch = policy_and_batch()
    weights = torch.ones(N, dtype=torch.float64)
    masked = slice(0, PAIR) if of_pairs(name) else slice(0, N, 3)
    weights[masked] = 0
    (make(name)(policy, batch)[0] * weights).sum().backward()
    assert policy.hidden.grad is not None
    assert policy.hidden.grad[masked].abs().max() == 0
    assert policy.hidden.grad.abs().max() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head_learns", [False, True])
def test_micro_batches_do_not_change_the_gradient(name: str, head_learns: bool):
    policy, batch = policy_and_batch()
    if not head_learns:
        policy = replace(policy, head=policy.head.detach())
    learned = [policy.hidden, policy.head] if head_learns else [policy.hidden]
    loss = make(name)
    whole = loss(policy, batch)[0].sum() / N
    first = PAIR if of_pairs(name) else 1
    parts = [loss(*part(policy, batch, rows))[0].sum() / N for rows in (slice(0, first), slice(first, 8), slice(8, N))]
    torch.testing.assert_close(sum(parts), whole)
    expected = torch.autograd.grad(whole, learned)
    apart = [torch.autograd.grad(one, learned) for one in parts]
    for index, gradient in enumerate(expected):
        torch.testing.assert_close(sum(one[index] for one in apart), gradient)


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_give_no_loss_and_no_error(name: str):
    policy, batch = policy_and_batch()
    loss, metrics = make(name)(*part(policy, batch, slice(0, 0)))
    assert loss.shape == (0,)
    assert all(value.shape == (0,) for value in metrics.values())
    loss.sum().backward()
    assert policy.hidden.grad is not None
    assert policy.hidden.grad.abs().sum() == 0


def refusal(name: str, field: str) -> str | None:
    policy, batch = policy_and_batch()
    try:
        make(name)(policy, replace(batch, **{field: None}))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", OPTIONAL)
def test_a_missing_field_is_not_needed_or_is_named(name: str, field: str):
    said = refusal(name, field)
    assert said is None or field in said


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("cross_entropy", []),
        *((name, fields) for name in DIVERGENCES for fields in (FULL, TOPK)),
        ("k1", ["sampler_logprobs", "teacher_logprobs"]),
        ("grpo", ["advantages"]),
        ("dpo", ["pair", "preferred", "reference_logprobs"]),
    ],
)
def test_a_loss_needs_these_fields_alone(name: str, needed: list[str]):
    policy, batch = policy_and_batch()
    bare = replace(batch, **{field: None for field in OPTIONAL if field not in needed})
    assert make(name)(policy, bare)[0].shape == (N,)
    for field in needed:
        with pytest.raises(ValueError, match=field):
            make(name)(policy, replace(bare, **{field: None}))


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_that_is_its_own_teacher_is_at_rest(name: str):
    policy, batch = policy_and_batch()
    batch = replace(batch, teacher_hidden=policy.hidden.detach(), teacher_head=policy.head.detach())
    loss, metrics = make(name)(policy, batch)
    assert loss.abs().max() < 1e-12
    assert metrics["kl_nats"].abs().max() < 1e-12
    loss.sum().backward()
    assert policy.hidden.grad is not None
    assert policy.hidden.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_reports_the_reverse_kl_at_the_temperature_of_the_policy(name: str):
    policy, batch = policy_and_batch()
    assert batch.teacher_hidden is not None
    assert batch.teacher_head is not None
    q = (policy.hidden @ policy.head.T / policy.temperature).log_softmax(-1)
    p = (batch.teacher_hidden @ batch.teacher_head.T / policy.temperature).log_softmax(-1)
    _, metrics = make(name)(policy, batch)
    torch.testing.assert_close(metrics["kl_nats"], (q.exp() * (q - p)).sum(-1).detach())


def without(batch: TokenBatch, names: list[str]) -> TokenBatch:
    return replace(batch, **dict.fromkeys(names))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_a_list_of_the_whole_vocabulary_is_the_full_divergence(name: str, tail: str):
    policy, batch = policy_and_batch()
    policy = replace(policy, temperature=1.0)
    top = (batch.teacher_hidden @ batch.teacher_head.T).log_softmax(-1).topk(V)
    whole = replace(without(batch, FULL), teacher_topk_ids=top.indices, teacher_topk_logprobs=top.values)
    expected, metrics = make(name)(policy, batch)
    got, of_list = make(name, tail=tail)(policy, whole)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(of_list["kl_nats"], metrics["kl_nats"])
    assert of_list["extra_mass"].max() == 0


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_full_vocabulary_comes_before_a_list(name: str):
    policy, batch = policy_and_batch()
    both, full, listed = (make(name)(policy, without(batch, names))[0] for names in ([], TOPK, FULL))
    torch.testing.assert_close(both, full)
    assert (both - listed).abs().min() > 1e-6


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_tail_is_a_choice_of_the_loss(name: str):
    policy, batch = policy_and_batch()
    found = {tail: make(name, tail=tail)(policy, without(batch, FULL)) for tail in ("bucket", "renormalised")}
    assert (found["bucket"][0] - found["renormalised"][0]).abs().min() > 1e-6
    q = (policy.hidden @ policy.head.T / policy.temperature).softmax(-1)
    outside = 1 - q.gather(-1, batch.teacher_topk_ids).sum(-1)
    for _, metrics in found.values():
        torch.testing.assert_close(metrics["extra_mass"], outside.detach())
    assert (make(name)(policy, without(batch, FULL))[0] == found["bucket"][0]).all()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_batch_without_a_teacher_is_told_all_that_it_lacks(name: str):
    policy, batch = policy_and_batch()
    with pytest.raises(ValueError, match="teacher_head") as refused:
        make(name)(policy, without(batch, [*FULL, *TOPK]))
    assert all(field in str(refused.value) for field in FULL + TOPK)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_lists_keep_the_contract_of_micro_batches_and_masks(name: str):
    policy, batch = policy_and_batch()
    batch = without(batch, FULL)
    whole = torch.autograd.grad(make(name)(policy, batch)[0][3:].sum(), [policy.hidden, policy.head])
    part_of = make(name)(*part(policy, batch, slice(3, N)))[0].sum()
    torch.testing.assert_close(torch.autograd.grad(part_of, [policy.hidden, policy.head]), whole)
    assert whole[0][:3].abs().max() == 0


def test_k1_alone_corrects_for_the_sampler_itself():
    assert [name for name in NAMES if getattr(make(name), "corrects_sampler", False)] == ["k1"]


def test_k1_reports_its_samples_under_their_own_name():
    policy, batch = policy_and_batch()
    assert batch.teacher_logprobs is not None
    q = (policy.hidden @ policy.head.T / policy.temperature).log_softmax(-1)[torch.arange(N), batch.targets]
    _, metrics = make("k1")(policy, batch)
    torch.testing.assert_close(metrics["k1_nats"], (q - batch.teacher_logprobs).detach())
    assert "kl_nats" not in metrics


@pytest.mark.parametrize("name", ["cross_entropy", "reverse_kl", "forward_kl", "jsd"])
def test_steps_along_the_gradient_lower_the_loss(name: str):
    policy, batch = policy_and_batch()
    loss = make(name)
    before = loss(policy, batch)[0].mean()
    (gradient,) = torch.autograd.grad(before, policy.hidden)
    after = loss(replace(policy, hidden=policy.hidden - 0.1 * gradient), batch)[0].mean()
    assert after < before


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {"label_smoothing": 1.5}),
        ("jsd", {"beta": 0.0}),
        ("jsd", {"beta": 1.0}),
        *((name, {"tail": "clamped"}) for name in DIVERGENCES),
        ("k1", {"clip_low": -0.1}),
        ("k1", {"clip_high": -0.1}),
        ("k1", {"ratio_cap": 1.1}),
    ],
)
def test_settings_out_of_range_are_refused(name: str, options: dict[str, float | str]):
    with pytest.raises(ValueError, match="must be"):
        make(name, **options)
