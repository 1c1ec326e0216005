"""DeepSpeed ranks learn what one process learns, whatever is split, offloaded or computed again; as Ray actors too."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import (
    LORA,
    LOSS,
    WEIGHT,
    Case,
    Outcome,
    batches_of,
    bench,
    check_alike,
    in_one_process,
    rollouts_of,
    student_of,
)
from safetensors.torch import load_file

from rlspeech.config_engines import DeepspeedConfig
from rlspeech.config_objective import ImportanceConfig
from rlspeech.engines.cluster import Cluster, Lost
from rlspeech.engines.cluster_learner import ClusterLearner, Task
from rlspeech.engines.learner_state import read
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import Objective
from rlspeech.engines.merging import merged_weights
from rlspeech.losses.cross_entropy import Loss
from rlspeech.plugins import load_class
from rlspeech.students.tiny import Student
from rlspeech.types import TokenBatch

Run = Callable[[Case], Outcome]


@pytest.fixture(scope="module")
def alone(patient: Cluster) -> Iterator[Run]:
    yield from bench(patient, 1)


@pytest.fixture(scope="module")
def case(small_student: Path) -> Case:
    return Case(small_student)


@pytest.fixture(scope="module")
def witness(case: Case) -> Outcome:
    return in_one_process(case)


@pytest.mark.parametrize(
    ("ranks", "zero"), [("alone", 2), ("alone", 3), ("pair", 0), ("pair", 1), ("pair", 2), ("pair", 3)]
)
def test_twenty_steps_are_those_of_one_process(request, case: Case, witness: Outcome, ranks: str, zero: int) -> None:
    found = request.getfixturevalue(ranks)(replace(case, settings={"zero": zero}))
    check_alike(found, witness)
    assert witness.losses[-1] < witness.losses[0] - 0.1
    measured, expected = found.evaluated.metrics, witness.evaluated.metrics
    assert measured.keys() == expected.keys()
    assert measured["train/loss"] == pytest.approx(expected["train/loss"], abs=LOSS)
    assert found.learned[0].metrics.keys() == witness.learned[0].metrics.keys()


@pytest.mark.parametrize("zero", [1, 3])
def test_all_parameters_of_the_language_model_are_learned_alike(pair: Run, case: Case, zero: int) -> None:
    """Under ZeRO 3 the head learns too, and is read by the loss in the forward and the backward pass."""
    whole = replace(case, lora=None, steps=4, lr=1e-3)
    # The biases of keys have no gradient but rounding, and Adam moves them by the whole rate: they may go either way.
    check_alike(pair(replace(whole, settings={"zero": zero})), in_one_process(whole), weight=0.01)


@pytest.mark.parametrize("zero", [2, 3])
def test_a_rank_that_hears_nothing_keeps_in_step(pair: Run, case: Case, zero: int) -> None:
    """One of the two ranks has text alone, and the projector learns from what the other hears."""
    mixed = replace(case, silent=(0, 1, 2, 3), micro_batch=1, steps=3)
    batches = batches_of(mixed, student_of(mixed), ranks=2)
    hears = [any(prompt.features is not None for prompt in batch.features) for batch in batches]
    rounds = list(zip(hears[::2], hears[1::2], strict=True))
    assert (True, False) in rounds or (False, True) in rounds
    expected = in_one_process(mixed)
    assert all(moved > 0 for name, moved in expected.moved.items() if "projector" in name)
    check_alike(pair(replace(mixed, settings={"zero": zero})), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero": 3, "activation_checkpointing": True},
        {"zero": 2, "offload_optimizer": True},
        {"zero": 3, "offload_optimizer": True, "offload_parameters": True},
    ],
    ids=["recomputed", "optimizer offloaded", "all offloaded"],
)
def test_what_saves_memory_changes_nothing(pair: Run, case: Case, witness: Outcome, settings) -> None:
    found = pair(replace(case, steps=5, settings=settings))
    assert found.losses == pytest.approx(witness.losses[:5], abs=LOSS)


@pytest.mark.parametrize("zero", [0, 3])
def test_bfloat16_learns_nearly_the_same(pair: Run, case: Case, witness: Outcome, zero: int) -> None:
    found = pair(replace(case, steps=5, settings={"zero": zero, "dtype": "bfloat16"}))
    assert found.losses == pytest.approx(witness.losses[:5], abs=0.05)
    assert all(value.dtype == torch.bfloat16 for value in found.weights.values())


def test_the_importance_of_tokens_is_that_of_one_process(pair: Run, case: Case) -> None:
    """Ratios of sampled tokens: their shares, means and the largest are taken over both ranks."""
    weighed = replace(case, steps=2, sampled=True, objective=Objective(ImportanceConfig(level="sequence", cap=1.5)))
    found, expected = pair(replace(weighed, settings={"zero": 1})), in_one_process(weighed)
    for ours, theirs in zip(found.learned, expected.learned, strict=True):
        assert ours.metrics.keys() == theirs.metrics.keys()
        assert all(ours.metrics[name] == pytest.approx(value, rel=1e-3) for name, value in theirs.metrics.items())
    assert 0 < expected.learned[0].metrics["importance/truncated_share"] < 1


@pytest.mark.parametrize(("zero", "lora"), [(0, LORA), (3, LORA), (3, None)])
def test_a_mixed_objective_is_that_of_one_process(pair: Run, case: Case, zero: int, lora) -> None:
    """Reverse KL, capped and weighed by itself, and the teacher's own words, some of which are learned by nothing else.

    Micro-batches of one audio: of five audios on two ranks, one batch is a copy that counts nothing.
    """
    objective = Objective(ImportanceConfig(cap=1.5), kl_cap_nats=3, divergence_gain=2)
    mixed = replace(case, steps=3, mixed=True, objective=objective, micro_batch=1, lora=lora, lr=1e-3)
    found, expected = pair(replace(mixed, settings={"zero": zero})), in_one_process(replace(mixed, micro_batch=5))
    check_alike(found, expected, weight=WEIGHT if lora else 0.01)
    for ours, theirs in zip(found.learned, expected.learned, strict=True):
        assert ours.metrics.keys() == theirs.metrics.keys()
        assert all(ours.metrics[name] == pytest.approx(value, rel=1e-3) for name, value in theirs.metrics.items())
    first, last = expected.learned[0].metrics, expected.learned[-1].metrics
    assert 0 < first["kl/clipped_share"] < 1
    assert last["train/sft_nats"] < first["train/sft_nats"]
    assert "kl/clipped_share" not in expected.evaluated.metrics


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_gradient_that_is_not_finite_stops_all_ranks(pair: Run, case: Case, zero: int) -> None:
    with pytest.raises(FloatingPointError, match="step 1"):
        pair(replace(case, steps=1, temperature=float("nan"), settings={"zero": zero}))


def test_a_state_goes_from_one_learner_to_another(
    alone: Run, pair: Run, case: Case, witness: Outcome, tmp_path: Path
) -> None:
    """torch, then two ranks of ZeRO 3, one of ZeRO 0, two of ZeRO 2, torch: one curve, and no step twice."""
    chain = [(in_one_process, 0), (pair, 3), (alone, 0), (pair, 2), (in_one_process, 0)]
    losses, before = [], None
    for number, (run, zero) in enumerate(chain):
        after = tmp_path / str(number)
        after.mkdir()
        losses += run(replace(case, steps=3, settings={"zero": zero}, restore=before, save=after)).losses
        before = after
    assert losses == pytest.approx(witness.losses[:15], abs=LOSS)
    states = [read(tmp_path / str(number)) for number in range(len(chain))]
    assert [state.steps_done for state in states] == [3, 6, 9, 12, 15]
    assert [len(state.random) for state in states] == [1, 2, 1, 2, 1]
    assert all(state.parameters.keys() == state.exp_avg.keys() == states[0].parameters.keys() for state in states)


def test_the_exported_folder_is_that_of_one_process(pair: Run, case: Case, tmp_path: Path) -> None:
    short = replace(case, steps=2)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    in_one_process(replace(short, export=tmp_path / "one"))
    pair(replace(short, settings={"zero": 3}, export=tmp_path / "two"))
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "two" / file), load_file(tmp_path / "one" / file)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[name], value, atol=WEIGHT) for name, value in theirs.items())
    assert Student.load(tmp_path / "two").placeholder_id


@pytest.fixture(scope="module")
def learner(patient: Cluster, case: Case) -> Iterator[ClusterLearner]:
    """Two ranks of ZeRO 3 as a stage has them."""
    prepare = {"stage": "distill", "lora": LORA}
    task = Task(StudentPlace(case.folder, "tiny"), prepare, case.optim, DeepspeedConfig(zero=3), small=0)
    found = ClusterLearner.start(patient, 2, task)
    yield found
    found.close()


def test_ranks_as_actors_learn_save_publish_and_survive_a_kill(
    learner: ClusterLearner, case: Case, witness: Outcome, tmp_path: Path
) -> None:
    """kill -9 in the middle of a step: it is Lost; new ranks go on from the saved state as if nothing had been."""
    batches = batches_of(case, learner.student, ranks=2)
    losses = [learner.step(batches, Loss()).metrics["train/loss"] for _ in range(3)]
    learner.save(tmp_path)
    killed = _kill_when_busy(learner)
    with pytest.raises(Lost, match="learner 1: died"):
        _step_on(learner, batches)
    killed.join()
    learner.restart()
    assert learner.steps_done == 0
    learner.restore(tmp_path)
    assert learner.steps_done == 3
    losses += [learner.step(batches, Loss()).metrics["train/loss"] for _ in range(3)]
    assert losses == pytest.approx(witness.losses[:6], abs=LOSS)


def _step_on(learner: ClusterLearner, batches: list[TokenBatch]) -> None:
    for _ in range(200):
        learner.step(batches, Loss())


def _kill_when_busy(learner: ClusterLearner) -> threading.Thread:
    import ray

    victim = learner.actors[1]
    pid = ray.get(victim.handle.pulse.remote()).pid

    def kill() -> None:
        first = ray.get(victim.handle.pulse.remote()).progress
        while ray.get(victim.handle.pulse.remote()).progress < first + 1:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_weights_come_in_buckets_that_may_go_one_by_one(learner: ClusterLearner, tmp_path: Path) -> None:
    """Names and values are those of the exported model; what does not learn is not sent."""
    found: dict[str, torch.Tensor] = {}
    for bucket in learner.publish(tmp_path, bucket_bytes=20_000):
        assert list(tmp_path.iterdir()) == [bucket]
        tensors = load_file(bucket)
        assert sum(value.nbytes for value in tensors.values()) < 40_000
        assert not found.keys() & tensors.keys()
        found |= tensors
        bucket.unlink()
    (tmp_path / "model").mkdir()
    learner.export(tmp_path / "model")
    exported = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in found.items())
    assert {name.split(".")[0] for name in found} == {"language_model", "multi_modal_projector"}
    assert not any("lm_head" in name or "embed_tokens" in name for name in found)
    assert {name: value.sum() for name, value in learner.weights()} == {n: value.sum() for n, value in found.items()}


def test_a_loss_from_a_users_file_reaches_the_ranks(learner: ClusterLearner, case: Case, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from rlspeech.losses.cross_entropy import Loss as Plain\n"
        "@dataclass(frozen=True)\n"
        "class Loss:\n"
        "    scale: float = 2.0\n"
        "    def __call__(self, policy, batch):\n"
        "        loss, metrics = Plain()(policy, batch)\n"
        "        return self.scale * loss, metrics\n"
    )
    batches = batches_of(case, learner.student, ranks=2)
    mine = load_class("losses", str(tmp_path / "mine.py"), "Loss", {"scale": 3.0})
    plain = learner.evaluate(batches, Loss()).metrics["train/loss"]
    assert learner.evaluate(batches, mine).metrics["train/loss"] == pytest.approx(3 * plain, rel=1e-5)


def test_merged_weights_of_what_learns_are_a_part_of_all(case: Case) -> None:
    student = student_of(case)
    every, learned = dict(merged_weights(student)), dict(merged_weights(student, learned_only=True))
    assert learned.keys() < every.keys()
    assert {student.published_name(name) for name in Student.load(case.folder).model.state_dict()} == every.keys()
    assert all(torch.equal(every[name], value) for name, value in learned.items())
    layers = [module for module in student.model.modules() if hasattr(module, "get_delta_weight")]
    assert len([name for name in learned if "projector" not in name]) == len(layers)


def test_replies_to_one_text_prompt_share_a_row_and_different_ones_do_not(case: Case) -> None:
    student = student_of(case)
    rollouts = rollouts_of(student, silent=range(5))
    twice = [*rollouts, *rollouts]
    batches = batches_of(replace(case, silent=range(5)), student)
    assert sum(len(batch.input_ids) for batch in batches) == len(rollouts)
    assert len({rollout.prompt.token_ids for rollout in twice}) == len(rollouts)
