"""DPO as TRL's trainer computes it on the same tensors, however the step is cut, and through a learner."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlspeech.config import OptimConfig
from rlspeech.config_objective import ImportanceConfig
from rlspeech.engines.batches import NOBODY, make_batches
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.measure import Look, Objective, Sums, hidden_of, look, weight_of
from rlspeech.engines.pair_batches import pair_batches
from rlspeech.engines.reply_logprobs import with_logprobs
from rlspeech.losses.dpo import Loss
from rlspeech.maths.packing import tokens_of
from rlspeech.students.tiny import Student
from rlspeech.types import Completion, Policy, Rollout, Sample, TokenBatch, Waveform

LENGTHS = [3, 5, 4, 2, 1, 6]  # of the preferred and the rejected reply of three pairs
EVEN = [4, 5, 4, 2, 4, 6]  # the preferred ones are equally long
VOCABULARY, WIDTH, TEMPERATURE = 11, 5, 1.2
LOSSES = [
    Loss(),
    Loss(beta=0.7),
    Loss(kind="robust", label_smoothing=0.2),
    Loss(kind="ipo", beta=0.3),
    Loss(kind="sigmoid_norm", beta=2.0),
]


def step_of(*, moved: float = 1.0, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> tuple[Policy, TokenBatch]:
    """In float64, with a reference `moved` from the policy."""
    draw = torch.Generator().manual_seed(seed)
    tokens = sum(lengths)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, head = normal(tokens, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH).requires_grad_()
    targets = torch.randint(VOCABULARY, (tokens,), generator=draw)
    own = logprobs_of(hidden, head, targets).detach()
    return Policy(hidden, head, TEMPERATURE), batch_of(targets, own + moved * normal(tokens), lengths)


def batch_of(targets: Tensor, reference: Tensor, lengths: Sequence[int]) -> TokenBatch:
    """Replies of these lengths, preferred and rejected in turn; without the grid, which a loss does not see."""
    rollout = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    tokens_P = torch.tensor([a + b for a, b in zip(lengths[::2], lengths[1::2], strict=True)])
    grid = torch.zeros(1, 1, dtype=torch.long)
    return TokenBatch(
        *[grid] * 3,
        None,
        at=torch.arange(len(targets)),
        targets=targets,
        weights=1 / tokens_P[rollout // 2].to(reference.dtype),
        rollout=rollout,
        reference_logprobs=reference,
        pair=rollout // 2,
        preferred=rollout % 2 == 0,
    )


def logprobs_of(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ head.T / TEMPERATURE).log_softmax(-1)[torch.arange(len(targets)), targets]


def costs(margin: float) -> float:
    """-log sigmoid"""
    return math.log1p(math.exp(-margin))


def seen_of(loss: Loss, policy: Policy, batch: TokenBatch, cuts: list[list[int]]) -> tuple[Tensor, Sums]:
    """The step's loss over micro-batches of these pairs each, and what the learner sums up."""
    looks: list[Look] = []
    batches = []
    for cut in cuts:
        index = torch.isin(batch.pair, torch.tensor(cut)).nonzero()[:, 0]
        batches.append(tokens_of(batch, index))
        looks.append(look(replace(policy, hidden=policy.hidden[index]), batches[-1], loss))
    sums = Sums()
    for one in looks:
        sums.add(one)
    return sum(one.objective for one in looks) / weight_of(batches), sums


def by_trl(loss_types: list[str], weights: list[float], loss: Loss, policy: Policy, batch: TokenBatch) -> Any:
    """TRL 1.16's DPOTrainer._compute_loss on one batch; its own forward pass alone is replaced."""
    from accelerate import Accelerator
    from trl import DPOTrainer

    lengths = batch.rollout.bincount().tolist()
    order = [*range(0, len(lengths), 2), *range(1, len(lengths), 2)]  # all preferred, then all rejected

    def padded(values_N: Tensor) -> Tensor:
        parts = values_N.split(lengths)
        return torch.nn.utils.rnn.pad_sequence([parts[i] for i in order], batch_first=True)

    mask = padded(torch.ones_like(batch.rollout))
    logprobs_RT = padded(logprobs_of(policy.hidden, policy.head, batch.targets))
    nothing = torch.zeros_like(logprobs_RT)
    told = {"log_probs": logprobs_RT, "entropy": nothing, "mean_logits": nothing, "is_top1": mask.bool()}
    trainer = object.__new__(DPOTrainer)
    trainer.accelerator, trainer.model = Accelerator(cpu=True), SimpleNamespace(training=True)
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.ld_alpha, trainer.precompute_ref_logps, trainer.f_divergence_type = None, True, "reverse_kl"
    trainer.loss_types, trainer.loss_weights = loss_types, weights
    trainer.beta, trainer.label_smoothing = loss.beta, loss.label_smoothing
    trainer._metrics = {"train": defaultdict(list)}
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    reference = padded(batch.reference_logprobs).sum(1).chunk(2)
    with_prompt = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(with_prompt),
        "attention_mask": torch.ones_like(with_prompt),
        "completion_mask": with_prompt,
        "ref_chosen_logps": reference[0],
        "ref_rejected_logps": reference[1],
    }
    value = trainer._compute_loss(lambda **_: SimpleNamespace(**told), inputs, return_outputs=False)
    return value, {name: values[0] for name, values in trainer._metrics["train"].items() if values}


def gradients(value: Tensor, policy: Policy) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, [policy.hidden, policy.head], retain_graph=True)


def check_equal(found: Tensor, expected: Tensor, policy: Policy) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(found, policy), gradients(expected, policy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)
        assert theirs.abs().max() > 1e-3


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_value_gradient_and_metrics_are_trls(loss: Loss) -> None:
    policy, batch = step_of()
    theirs, told = by_trl([loss.kind], [1.0], loss, policy, batch)
    for cuts in ([[0, 1, 2]], [[1], [2, 0]]):
        ours, sums = seen_of(loss, policy, batch, cuts)
        check_equal(ours, theirs, policy)
        means = sums.learned().metrics
        for name, other in {
            "rewards_chosen": "rewards/chosen",
            "rewards_rejected": "rewards/rejected",
            "margin": "rewards/margins",
            "accuracy": "rewards/accuracies",
            "logps_chosen": "logps/chosen",
            "logps_rejected": "logps/rejected",
        }.items():
            assert means[f"train/{name}"] == pytest.approx(told[other], rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_smoothed_sigmoid_is_trls_aot_of_one_pair(seed: int) -> None:
    """TRL's own sigmoid ignores label_smoothing; its aot sorts the pairs of a batch, and one is in order."""
    loss = Loss(beta=0.7, label_smoothing=0.2)
    policy, batch = step_of(seed=seed, lengths=[3, 5])
    ours, _ = seen_of(loss, policy, batch, [[0]])
    check_equal(ours, by_trl(["aot"], [1.0], loss, policy, batch)[0], policy)
    plain, _ = seen_of(replace(loss, label_smoothing=0.0), policy, batch, [[0]])
    check_equal(plain, by_trl(["sigmoid"], [1.0], loss, policy, batch)[0], policy)


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_term_that_holds_on_is_trls_sft_where_the_preferred_replies_are_equally_long(loss: Loss) -> None:
    policy, batch = step_of(lengths=EVEN)
    theirs, _ = by_trl([loss.kind, "sft"], [1.0, 0.5], loss, policy, batch)
    nll, _ = by_trl(["sft"], [1.0], loss, policy, batch)
    for cuts in ([[0, 1, 2]], [[1], [2, 0]]):
        ours, sums = seen_of(replace(loss, nll_weight=0.5), policy, batch, cuts)
        check_equal(ours, theirs, policy)
        assert sums.learned().metrics["train/nll_chosen"] == pytest.approx(float(nll.detach()))


def test_the_term_that_holds_on_is_a_mean_over_pairs_however_long_the_preferred_replies_are() -> None:
    """Where TRL's, over the tokens of them all, hangs on how the step is cut."""
    policy, batch = step_of()
    logprobs_N = logprobs_of(policy.hidden, policy.head, batch.targets)
    held = -sum(logprobs_N[batch.rollout == rollout].mean() for rollout in (0, 2, 4)) / 3
    plain, _ = seen_of(Loss(), policy, batch, [[0, 1, 2]])
    for cuts in ([[0, 1, 2]], [[1], [2, 0]]):
        check_equal(seen_of(Loss(nll_weight=0.5), policy, batch, cuts)[0], plain + 0.5 * held, policy)


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "sigmoid_norm"])
def test_at_the_reference_a_pair_costs_log_2(kind: Any) -> None:
    policy, batch = step_of(moved=0)
    value, sums = seen_of(Loss(kind=kind), policy, batch, [[0, 1, 2]])
    assert float(value.detach()) == pytest.approx(math.log(2))
    assert sums.learned().metrics["train/margin"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Loss(beta=1.0), costs(3)),
        (Loss(beta=0.5), costs(1.5)),
        (Loss(beta=1.0, label_smoothing=0.25), 0.75 * costs(3) + 0.25 * costs(-3)),
        (Loss(kind="robust", beta=1.0, label_smoothing=0.25), (0.75 * costs(3) - 0.25 * costs(-3)) / 0.5),
        (Loss(kind="sigmoid_norm", beta=2.0), costs(2)),
        (Loss(kind="sigmoid_norm", beta=2.0, label_smoothing=0.25), 0.75 * costs(2) + 0.25 * costs(-2)),
        (Loss(kind="ipo", beta=0.5), 0.0),
        (Loss(kind="ipo", beta=0.25), 1.0),
        (Loss(beta=1.0, nll_weight=2.0), costs(3) + 2 * math.log(2)),
    ],
    ids=str,
)
def test_a_pair_worked_by_hand(loss: Loss, expected: float) -> None:
    """Each token has the probability 1/2. The preferred reply, of 4, gained 2 nats; the rejected, of 2, lost 1."""
    own = torch.full((6,), math.log(0.5))
    batch = batch_of(torch.zeros(6, dtype=torch.long), own - torch.tensor([0.5] * 4 + [-0.5] * 2), [4, 2])
    loss_N, metrics = loss(Policy(torch.ones(6, 1, requires_grad=True), torch.zeros(2, 1)), batch)
    assert loss_N.tolist() == pytest.approx([expected] * 6, abs=1e-6)
    assert {name: values.tolist() for name, values in metrics.items()} == {
        "rewards_chosen": pytest.approx([2 * loss.beta] * 6),
        "rewards_rejected": pytest.approx([-loss.beta] * 6),
        "margin": pytest.approx([3 * loss.beta] * 6),
        "accuracy": [1.0] * 6,
        "logps_chosen": pytest.approx([-4 * math.log(2)] * 6),
        "logps_rejected": pytest.approx([-2 * math.log(2)] * 6),
        "nll_chosen": pytest.approx([math.log(2)] * 6),
    }
    assert not any(values.requires_grad for values in metrics.values())


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_small_step_raises_each_preferred_reply_and_lowers_each_rejected_one(loss: Loss) -> None:
    policy, batch = step_of(moved=0)
    value, _ = seen_of(loss, policy, batch, [[0, 1, 2]])
    (slope,) = torch.autograd.grad(value, [policy.hidden])
    _, before = loss(policy, batch)
    _, after = loss(replace(policy, hidden=policy.hidden - 1e-3 * slope), batch)
    assert bool((after["logps_chosen"] > before["logps_chosen"]).all())
    assert bool((after["logps_rejected"] < before["logps_rejected"]).all())
    assert bool((after["accuracy"] == 1).all())
    assert bool((before["accuracy"] == 0).all())


@pytest.mark.parametrize("loss", [replace(loss, nll_weight=1.0) for loss in LOSSES], ids=str)
def test_tokens_of_no_pair_cost_nothing_beside_pairs_and_alone(loss: Loss) -> None:
    policy, batch = step_of()
    whole, _ = loss(policy, batch)
    mine = batch.pair != 1
    some, _ = loss(policy, replace(batch, pair=batch.pair.masked_fill(~mine, NOBODY)))
    assert some.tolist() == pytest.approx(whole.where(mine, torch.zeros(())).tolist())
    none, metrics = loss(policy, replace(batch, pair=torch.full_like(batch.pair, NOBODY)))
    assert all(found.abs().max() == 0 for found in (none, *gradients(none.sum(), policy)))
    assert all(bool(values.isfinite().all()) for values in metrics.values())


def test_what_cannot_be_learned_from_is_told() -> None:
    policy, batch = step_of()
    torn = (batch.rollout != 3).nonzero()[:, 0]
    with pytest.raises(ValueError, match="a pair has one reply only"):
        Loss()(replace(policy, hidden=policy.hidden[torn]), tokens_of(batch, torn))
    for name in ("pair", "preferred", "reference_logprobs"):
        with pytest.raises(ValueError, match=f"the batch has no {name}"):
            Loss()(policy, replace(batch, **{name: None}))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"kind": "hinge"}, "kind must be one of sigmoid, robust, ipo, sigmoid_norm"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "ipo has none"),
        ({"nll_weight": -1.0}, "nll_weight must not be below 0"),
    ],
)
def test_settings_have_bounds(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Loss(**options)


def heard_pairs(student: Student) -> list[tuple[Rollout, Rollout]]:
    """Two pairs about one audio, with the same question and with another, and one about a second audio."""
    pairs = []
    for audio, question, chosen, rejected in (
        (0, "Who speaks?", "Anna.", "How to Get Away - How to Get Away"),
        (0, "What is red?", "The lamps.", "The boxes are green, and so on."),
        (1, "Who speaks?", "Oscar does.", "No."),
    ):
        noise = np.random.default_rng(audio).normal(scale=0.1, size=9_000 + 5_000 * audio).astype(np.float32)
        sample = Sample(f"{audio}/{question}", question)
        prompt = replace(student.render(sample, Waveform(noise, 16_000)), audio_key=str(audio))
        ids = [(*student.tokenizer(text).input_ids, student.end_token_id) for text in (chosen, rejected)]
        chosen_, rejected_ = (Rollout(sample, prompt, Completion(one, (), "", "stop")) for one in ids)
        pairs.append((chosen_, rejected_))
    return pairs


def learner_of(folder: Path) -> TorchLearner:
    student = Student.load(folder)
    torch.manual_seed(0)
    student.prepare("dpo", {"rank": 4, "alpha": 8.0, "dropout": 0.0}, train_projector=False)
    return TorchLearner.of(student, OptimConfig(steps=9, lr=5e-3, warmup_steps=0, schedule="constant"))


def with_reference(learner: TorchLearner, batches: list[TokenBatch]) -> list[TokenBatch]:
    return with_logprobs(batches, reference=learner.logprobs(batches))


def test_a_learner_comes_to_prefer_and_pairs_about_one_audio_share_a_row(small_student: Path) -> None:
    learner = learner_of(small_student)
    pairs = heard_pairs(learner.student)
    (batch,) = with_reference(learner, pair_batches(learner.student, pairs, micro_batch=8))
    assert batch.input_ids.shape[0] == 2
    assert float(batch.weights.sum()) == pytest.approx(3)
    alone = [one for pair in pairs for one in pair_batches(learner.student, [pair], micro_batch=8)]
    loss = Loss(beta=0.3)
    learner.step([batch], loss)
    together = learner.evaluate([batch], loss).metrics
    apart = [learner.evaluate(with_logprobs([one], reference=_of_pair(batch, i)), loss) for i, one in enumerate(alone)]
    assert together["train/loss"] == pytest.approx(np.mean([one.metrics["train/loss"] for one in apart]), rel=1e-4)
    assert together["train/margin"] == pytest.approx(np.mean([one.metrics["train/margin"] for one in apart]), rel=1e-3)
    losses = [learner.step([batch], loss).metrics for _ in range(8)]
    assert losses[-1]["train/loss"] < losses[0]["train/loss"] < math.log(2)
    assert losses[-1]["train/accuracy"] == 1


def test_rows_that_replies_share_have_the_loss_and_the_gradient_of_plain_ones(small_student: Path) -> None:
    learner = learner_of(small_student)
    student, pairs = learner.student, heard_pairs(learner.student)
    loss = Loss(beta=0.3, nll_weight=0.1)
    packed = pair_batches(student, pairs, micro_batch=8)
    reference = learner.logprobs(packed)
    (packed,) = with_logprobs(packed, reference=reference)
    learner.step([packed], loss)  # adapters begin at 0 and have half of a gradient
    rollouts = [one for pair in pairs for one in pair]
    rows = [make_batches(student, [one], micro_batch=1)[0] for one in rollouts]
    of_reference = torch.tensor([value for index in range(len(rows)) for value in reference[index]])
    plain = batch_of(torch.cat([row.targets for row in rows]), of_reference, [len(row.targets) for row in rows])
    values = {
        "packed": look(Policy(hidden_of(student, packed), student.head()), packed, loss).objective,
        "plain": look(
            Policy(torch.cat([hidden_of(student, row) for row in rows]), student.head()), plain, loss
        ).objective,
    }
    torch.testing.assert_close(values["packed"], values["plain"], rtol=1e-4, atol=1e-5)
    learned = [value for value in student.model.parameters() if value.requires_grad]
    ours, theirs = (torch.autograd.grad(value, learned) for value in values.values())
    assert max(float(one.abs().max()) for one in theirs) > 1e-3
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_pair_counts_for_1_however_its_replies_were_sampled(small_student: Path) -> None:
    learner = learner_of(small_student)
    pairs = heard_pairs(learner.student)
    sampled = [tuple(_with_logprobs(one, -9.0) for one in pair) for pair in pairs]
    learner.objective = Objective(ImportanceConfig())
    told = []
    for replies in (pairs, sampled):
        batches = with_reference(learner, pair_batches(learner.student, replies, micro_batch=8))
        policy = Policy(hidden_of(learner.student, batches[0]), learner.student.head())
        told.append(look(policy, batches[0], Loss(), learner.objective))
    assert float(told[1].weights.sum()) == pytest.approx(3)
    torch.testing.assert_close(told[1].weights, told[0].weights)
    torch.testing.assert_close(told[1].objective, told[0].objective)


def _with_logprobs(one: Rollout, value: float) -> Rollout:
    return replace(one, completion=replace(one.completion, logprobs=(value,) * len(one.completion.token_ids)))


def _of_pair(batch: TokenBatch, pair: int) -> dict[int, list[float]]:
    """The reference's log-probs of a pair of the batch, under the indices that it has by itself."""
    assert batch.reference_logprobs is not None
    return {place: batch.reference_logprobs[batch.rollout == 2 * pair + place].tolist() for place in (0, 1)}


def test_a_ranks_idle_turn_costs_nothing_and_impossible_pairs_are_refused(small_student: Path) -> None:
    learner = learner_of(small_student)
    pairs = heard_pairs(learner.student)
    own, filled = with_reference(learner, pair_batches(learner.student, pairs[2:], micro_batch=8, ranks=2))
    assert bool((filled.pair == -1).all())
    loss = Loss()
    alone, both = learner.evaluate([own], loss).metrics, learner.evaluate([own, filled], loss).metrics
    assert both == pytest.approx(alone)
    with pytest.raises(ValueError, match="different prompts"):
        pair_batches(learner.student, [(pairs[0][0], pairs[1][1])], micro_batch=8)
    empty = replace(pairs[0][0], completion=Completion((), (), "", "length"))
    with pytest.raises(ValueError, match="has no token"):
        pair_batches(learner.student, [(empty, pairs[0][1])], micro_batch=8)
