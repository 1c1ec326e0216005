"""The learner's own log-probs of replies: those of the plain sequence, of the policy it began with, on any ranks."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import LORA, WEIGHT, Case, Outcome, batches_of, check_alike, in_one_process, rollouts_of, student_of

from rlspeech.config import DeepspeedConfig, ImportanceConfig
from rlspeech.engines.batches import make_batches
from rlspeech.engines.cluster import Cluster
from rlspeech.engines.cluster_learner import ClusterLearner, Task
from rlspeech.engines.learner_torch import TorchLearner, learnable
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import Objective
from rlspeech.engines.reply_logprobs import with_advantages, with_logprobs
from rlspeech.losses.cross_entropy import Loss
from rlspeech.losses.grpo import Loss as Grpo

Run = Callable[[Case], Outcome]
Told = dict[int, list[float]]


@pytest.fixture(scope="module")
def case(small_student: Path) -> Case:
    return Case(small_student, steps=3)


def check_equal(found: Told, expected: Told, *, atol: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for rollout, values in expected.items():
        assert found[rollout] == pytest.approx(values, abs=atol), rollout


def learner_of(case: Case) -> TorchLearner:
    return TorchLearner.of(student_of(case), case.optim)


@torch.no_grad()
def of_plain_sequences(case: Case, temperature: float) -> Told:
    """Prompt and reply of each rollout in a row of their own, through the whole vocabulary. Of the base model."""
    student = StudentPlace.of(str(case.folder)).load(dtype=torch.float32)
    student.model.eval()
    found = {}
    for index, rollout in enumerate(rollouts_of(student)):
        prompt, reply = rollout.prompt, rollout.completion.token_ids
        ids = torch.tensor([[*prompt.token_ids, *reply]])
        embedded = student.embed(ids, student.collate([prompt]))
        hidden = student.decoder(inputs_embeds=embedded).last_hidden_state[0, len(prompt.token_ids) - 1 : -1]
        logprobs = (hidden @ student.head().T / temperature).log_softmax(-1)
        found[index] = [float(row[token]) for row, token in zip(logprobs, reply, strict=True)]
    return found


def test_log_probs_are_those_of_the_plain_sequence_at_the_temperature(case: Case) -> None:
    """However the step is cut, and whatever order the rows have in it."""
    learner, expected = learner_of(case), of_plain_sequences(case, 1.3)
    for micro_batch, ranks in ((5, 1), (1, 2)):
        cut = batches_of(replace(case, micro_batch=micro_batch), learner.student, ranks)
        check_equal(learner.logprobs(cut, temperature=1.3), expected)


def test_the_reference_is_the_policy_of_the_beginning_while_adapter_and_projector_learn(case: Case) -> None:
    learner = learner_of(case)
    batches, base = batches_of(case, learner.student), of_plain_sequences(case, 1.0)
    learner.keep_reference()
    for _ in range(3):
        learner.step(batches, Loss())
    moved = learner.logprobs(batches)
    assert max(abs(a - b) for index in base for a, b in zip(moved[index], base[index], strict=True)) > 0.05
    before = {name: value.detach().clone() for name, value in learnable(learner.student.model).items()}
    check_equal(learner.logprobs(batches, reference=True), base)
    after = learnable(learner.student.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert learner.logprobs(batches) == moved


def test_the_reference_of_a_resumed_run_is_that_of_its_beginning(case: Case, tmp_path: Path) -> None:
    in_one_process(replace(case, save=tmp_path))
    learner = learner_of(case)
    batches = batches_of(case, learner.student)
    first = learner.logprobs(batches)
    learner.keep_reference()
    learner.restore(tmp_path)
    assert learner.logprobs(batches) != first
    check_equal(learner.logprobs(batches, reference=True), first)


def test_what_is_asked_between_steps_changes_no_step(case: Case) -> None:
    witness = in_one_process(case)
    learner = learner_of(case)
    batches, losses = batches_of(case, learner.student), []
    learner.keep_reference()
    for _ in range(case.steps):
        losses.append(learner.step(batches, Loss()).metrics["train/loss"])
        learner.logprobs(batches, reference=True)
    assert losses == witness.losses


def test_dropout_is_off_while_log_probs_are_told(case: Case) -> None:
    dropped, plain = learner_of(replace(case, lora=LORA | {"dropout": 0.5})), learner_of(case)
    for learner in (dropped, plain):
        for name, value in learnable(learner.student.model).items():
            if "lora_B" in name:
                torch.nn.init.constant_(value, 0.01)
    batches = batches_of(case, plain.student)
    check_equal(dropped.logprobs(batches), plain.logprobs(batches))


def test_a_reference_that_was_not_kept_is_not_invented(case: Case) -> None:
    learner = learner_of(case)
    with pytest.raises(ValueError, match="keep_reference"):
        learner.logprobs(batches_of(case, learner.student), reference=True)


def test_columns_follow_the_rollouts_and_nobodys_tokens_have_none(case: Case) -> None:
    """Two ranks, five audios in three rounds: the last batch is a copy of one, for nobody."""
    student = student_of(case)
    rollouts = rollouts_of(student)
    batches = make_batches(student, rollouts, micro_batch=1, ranks=2)
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    told = {index: [-index - token / 100 for token in range(n)] for index, n in enumerate(lengths)}
    found = with_advantages(with_logprobs(batches, old=told), [float(index) for index in told], idle=7.0)
    for batch in found:
        starts = {rollout: batch.rollout.tolist().index(rollout) for rollout in batch.rollout.tolist()}
        for at, rollout in enumerate(batch.rollout.tolist()):
            expected = 0.0 if rollout < 0 else told[rollout][at - starts[rollout]]
            assert batch.old_logprobs[at].item() == pytest.approx(expected)
            assert batch.advantages[at] == max(rollout, 0)
        assert batch.reference_logprobs is None
    assert (batch.rollout < 0).all()
    assert sum(batch.idle for batch in found) == 7
    with pytest.raises(ValueError, match="rollout 1: 1 log-probs for"):
        with_logprobs(batches, old=told | {1: [0.0]})


GRPO = Grpo(normalise="max_tokens", kl_beta=0.05, clip_low=0.05, clip_high=0.05)


@pytest.fixture(scope="module")
def rewarded(case: Case) -> Case:
    """Micro-batches of one audio on two ranks: a batch of nobody's tokens is among them."""
    objective = Objective(ImportanceConfig(level="token", cap=1.5))
    return replace(case, steps=4, temperature=1.2, rewarded=GRPO, objective=objective, micro_batch=1)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"zero": 0}, {}),
        ({"zero": 2}, {"rewarded": replace(GRPO, normalise="sequences", ratio="sequence", clip_high=0.001)}),
        ({"zero": 3}, {}),
        ({"zero": 3}, {"lora": None, "lr": 1e-3}),
    ],
    ids=["zero 0", "zero 2, sequences", "zero 3", "zero 3, all learns"],
)
def test_several_updates_on_one_batch_are_those_of_one_process(pair: Run, rewarded: Case, settings, more) -> None:
    """Ratio, clip, KL, importance and log-probs, own and of the reference; micro-batches of five audios there."""
    asked = replace(rewarded, **more)
    found, expected = pair(replace(asked, settings=settings)), in_one_process(replace(asked, micro_batch=5))
    check_alike(found, expected, weight=WEIGHT if asked.lora else 0.01)
    for ours, theirs in zip(found.learned, expected.learned, strict=True):
        assert ours.metrics.keys() == theirs.metrics.keys()
        for name, value in theirs.metrics.items():
            assert ours.metrics[name] == pytest.approx(value, rel=1e-3, abs=2e-5), name
            assert math.isfinite(value)
    for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
        check_equal(ours, theirs, atol=1e-3)
    before, after, reference = found.logprobs
    check_equal(reference, before)
    assert max(abs(a - b) for index in before for a, b in zip(after[index], before[index], strict=True)) > 0.01
    first, last = expected.learned[0].metrics, expected.learned[-1].metrics
    assert first["train/ratio"] == pytest.approx(1, abs=1e-5)
    assert first["train/clipped_high"] == first["train/clipped_low"] == 0
    assert last["train/clipped_high"] + last["train/clipped_low"] > 0
    assert last["kl/train_nats"] > first["kl/train_nats"]
    assert last["kl/sampler_learner_nats"] == pytest.approx(first["kl/sampler_learner_nats"])


def test_in_bfloat16_what_was_learned_is_there_again_after_the_reference(pair: Run, rewarded: Case) -> None:
    found = pair(replace(rewarded, settings={"zero": 3, "dtype": "bfloat16"}))
    before, after, reference = found.logprobs
    assert reference == before
    assert after != before


def test_ranks_as_actors_tell_log_probs_and_keep_their_reference_over_a_restart(
    patient: Cluster, case: Case, tmp_path: Path
) -> None:
    prepare = {"stage": "distill", "lora": LORA}
    task = Task(StudentPlace(case.folder, "tiny"), prepare, case.optim, DeepspeedConfig(zero=3), small=0)
    learner = ClusterLearner.start(patient, 2, task)
    try:
        batches, expected = batches_of(case, learner.student, ranks=2), of_plain_sequences(case, 1.3)
        learner.keep_reference()
        check_equal(learner.logprobs(batches, temperature=1.3), expected)
        learner.step(batches, Loss())
        learner.save(tmp_path)
        moved = learner.logprobs(batches, temperature=1.3)
        learner.restart()
        learner.restore(tmp_path)
        check_equal(learner.logprobs(batches, temperature=1.3), moved)
        check_equal(learner.logprobs(batches, temperature=1.3, reference=True), expected)
    finally:
        learner.close()
