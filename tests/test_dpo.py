"""DPO as TRL's trainer computes it on the same tensors, however the step is cut, and through a learner."""

import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlspeech.config import OptimConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.measure import Look, Sums, look, weight_of
from rlspeech.engines.pair_batches import pair_batches
from rlspeech.engines.reply_logprobs import with_logprobs
from rlspeech.losses.dpo import Loss
from rlspeech.maths.packing import tokens_of
from rlspeech.students.tiny import Student
from rlspeech.types import Completion, Policy, Rollout, Sample, TokenBatch, Waveform

LENGTHS = [3, 5, 4, 2, 1, 6]  # of the preferred and the rejected reply of three pairs
N, VOCABULARY, WIDTH = sum(LENGTHS), 11, 5
LOSSES = [
    Loss(),
    Loss(beta=0.7),
    Loss(kind="robust", label_smoothing=0.2),
    Loss(kind="ipo", beta=0.3),
    Loss(kind="sigmoid_norm", beta=2.0),
]


def step_of(*, moved: float = 1.0, seed: int = 0) -> tuple[Policy, TokenBatch]:
    """In float64, with a reference `moved` from the policy."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, head = normal(N, WIDTH).requires_grad_(), normal(VOCABULARY, WIDTH).requires_grad_()
    targets = torch.randint(VOCABULARY, (N,), generator=draw)
    own = logprobs_of(hidden, head, targets).detach()
    rollout = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    tokens_P = torch.tensor([a + b for a, b in zip(LENGTHS[::2], LENGTHS[1::2], strict=True)])
    grid = torch.zeros(1, N, dtype=torch.long)
    batch = TokenBatch(
        *[grid] * 3,
        None,
        at=torch.arange(N),
        targets=targets,
        weights=1 / tokens_P[rollout // 2].double(),
        rollout=rollout,
        reference_logprobs=own + moved * normal(N),
        pair=rollout // 2,
        preferred=rollout % 2 == 0,
    )
    return Policy(hidden, head), batch


def logprobs_of(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ head.T).log_softmax(-1)[torch.arange(len(targets)), targets]


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

    order = [*range(0, len(LENGTHS), 2), *range(1, len(LENGTHS), 2)]  # all preferred, then all rejected

    def padded(values_N: Tensor) -> Tensor:
        parts = values_N.split(LENGTHS)
        return torch.nn.utils.rnn.pad_sequence([parts[i] for i in order], batch_first=True)

    mask = padded(torch.ones(N, dtype=torch.long))
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


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_value_gradient_and_metrics_are_trls(loss: Loss) -> None:
    policy, batch = step_of()
    theirs, told = by_trl([loss.kind], [1.0], loss, policy, batch)
    for cuts in ([[0, 1, 2]], [[1], [2, 0]]):
        ours, sums = seen_of(loss, policy, batch, cuts)
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-9)
        for mine, other in zip(gradients(ours, policy), gradients(theirs, policy), strict=True):
            torch.testing.assert_close(mine, other)
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


def test_the_term_that_holds_on_is_trls_sft_where_the_preferred_replies_are_equally_long() -> None:
    """TRL takes the mean over all tokens, so that long replies count more; ours is a mean for each pair."""
    policy, batch = step_of()
    kept = (batch.pair == 1).nonzero()[:, 0]
    one, part = replace(policy, hidden=policy.hidden[kept]), tokens_of(batch, kept)
    loss = Loss(nll_weight=0.5)
    ours = look(one, part, loss).objective / weight_of([part])
    plain = look(one, part, Loss()).objective / weight_of([part])
    nll = -logprobs_of(one.hidden, one.head, part.targets)[part.preferred].mean()
    assert float(ours.detach()) == pytest.approx(float((plain + 0.5 * nll).detach()))
    mean_P = [-logprobs_of(policy.hidden, policy.head, batch.targets)[batch.rollout == i].mean() for i in (0, 2, 4)]
    whole, _ = seen_of(loss, policy, batch, [[0, 1, 2]])
    without, _ = seen_of(Loss(), policy, batch, [[0, 1, 2]])
    assert float((whole - without).detach()) == pytest.approx(0.5 * float(sum(mean_P).detach()) / 3)


def test_at_the_reference_a_pair_costs_log_2_and_a_worked_one_what_it_must() -> None:
    policy, batch = step_of(moved=0)
    value, sums = seen_of(Loss(), policy, batch, [[0, 1, 2]])
    assert float(value.detach()) == pytest.approx(math.log(2))
    assert sums.learned().metrics["train/margin"] == pytest.approx(0, abs=1e-12)
    moved = (
        batch.reference_logprobs
        - torch.where(batch.preferred, 2.0, 0.0)
        / torch.tensor([3.0, 5, 4, 2, 1, 6], dtype=torch.float64)[batch.rollout]
    )  # each preferred reply is 2 nats likelier than at the reference
    value, _ = seen_of(Loss(beta=0.5), policy, replace(batch, reference_logprobs=moved), [[0, 1, 2]])
    assert float(value.detach()) == pytest.approx(math.log1p(math.exp(-1)))
    value, _ = seen_of(
        Loss(beta=0.5, label_smoothing=0.25), policy, replace(batch, reference_logprobs=moved), [[0, 1, 2]]
    )
    assert float(value.detach()) == pytest.approx(0.75 * math.log1p(math.exp(-1)) + 0.25 * math.log1p(math.e))


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
