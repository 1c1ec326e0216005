"""What a learner has learned, a live vLLM engine samples with: every way that weights take into it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rlspeech.config import OptimConfig
from rlspeech.config_engines import VllmConfig
from rlspeech.engines import vllm_shared_memory
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.merging import merged_weights
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.vllm_engine import Layout, start
from rlspeech.engines.weight_transfer import Client, Source
from rlspeech.losses.cross_entropy import Loss as CrossEntropy
from rlspeech.protocols import Sampling
from rlspeech.students.tiny import Student
from rlspeech.types import Prompt, Sample, Waveform

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
SAMPLING = Sampling(max_tokens=6, temperature=1.0, n=2, seed=3)
SAME, OTHER = 1e-3, 0.1  # nats: what float32 may differ by, and what two sets of weights differ by at least


@pytest.fixture
def rollouts(vllm_student_engine: VllmRollouts, vllm_student: Path) -> Iterator[VllmRollouts]:
    """The session's engine; afterwards it has the weights of the folder again."""
    yield vllm_student_engine
    vllm_student_engine.begin_update()
    vllm_student_engine.update(vllm_student / "model.safetensors")
    vllm_student_engine.end_update(0)


def asked(student: Student) -> tuple[list[Sample], list[Prompt]]:
    samples, prompts = [], []
    for index in range(2):
        noise = np.random.default_rng(index).normal(scale=0.1, size=16_000).astype(np.float32)
        sample = Sample(str(index), "What is said?", reference=f"Answer {index}, and more of it.")
        samples.append(sample)
        prompts.append(replace(student.render(sample, Waveform(noise, 16_000)), audio_key=f"sync/{index}"))
    return samples, prompts


def taught(folder: Path, lora: dict | None = LORA) -> TorchLearner:
    """A learner after two large steps of adapter and projector; without an adapter, of the whole decoder."""
    student = Student.load(folder)
    student.prepare("distill", lora)
    learner = TorchLearner.of(student, OptimConfig(steps=10, lr=2e-2 if lora else 3e-3, projector_lr=3e-2))
    step(learner)
    step(learner)
    return learner


def step(learner: TorchLearner) -> None:
    student = learner.student
    batches = make_batches(student, reference_rollouts(student, *asked(student)), micro_batch=2)
    learner.step(batches, CrossEntropy())


def gap(rollouts: VllmRollouts, learner: TorchLearner) -> float:
    """Largest difference between sampler and learner on fresh replies [nats]."""
    replies = rollouts.generate(*asked(learner.student), SAMPLING)
    assert {reply.completion.policy_version for reply in replies} == {rollouts.version}
    batches = make_batches(learner.student, replies, micro_batch=2)
    return learner.evaluate(batches, CrossEntropy()).metrics["kl/sampler_learner_max_nats"]


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapter", "whole"])
def test_after_a_sync_the_sampler_has_the_learners_logprobs(rollouts, vllm_student: Path, lora) -> None:
    """The audio was heard before: what the old projector made of it is in every cache."""
    learner = taught(vllm_student, lora)
    assert gap(rollouts, learner) > OTHER
    rollouts.load_weights(learner, version=2)
    assert gap(rollouts, learner) < SAME
    assert rollouts.version == 2
    assert rollouts.llm.get_weight_version() == "2"


def test_without_the_encoders_cache_reset_old_audio_would_be_heard(rollouts, vllm_student: Path, monkeypatch) -> None:
    """Why the reset is there: vLLM serves what it has encoded before."""
    learner = taught(vllm_student)
    gap(rollouts, learner)
    monkeypatch.setattr(rollouts.llm.llm_engine, "reset_encoder_cache", lambda: None)
    rollouts.load_weights(learner, version=1)
    assert gap(rollouts, learner) > OTHER


def test_files_of_another_process_are_taken_in_any_pieces(rollouts, vllm_student: Path, tmp_path: Path) -> None:
    """One parameter a file, so that every fused layer comes in pieces; each file is gone when it was read."""
    learner = taught(vllm_student)
    rollouts.begin_update()
    for number, (name, value) in enumerate(learner.weights()):
        file = tmp_path / f"{number}.safetensors"
        save_file({name: value.contiguous()}, file)
        rollouts.update(file)
        file.unlink()
    rollouts.end_update(5)
    assert gap(rollouts, learner) < SAME


def test_buckets_are_as_large_as_asked(rollouts, vllm_student: Path, monkeypatch) -> None:
    learner = taught(vllm_student)
    sizes = []
    receive = rollouts.receive
    monkeypatch.setattr(rollouts, "bucket_mib", 1)
    monkeypatch.setattr(rollouts, "receive", lambda info: (sizes.append(_mib(info)), receive(info)))
    rollouts.load_weights(learner, version=1)
    *full, _, completed = sizes
    largest = max(value.nbytes for _, value in learner.weights()) / 2**20
    assert full
    assert all(1 <= size < 1 + largest for size in full)
    assert completed == 0  # what is read from the checkpoint comes by name
    assert gap(rollouts, learner) < SAME


def _mib(info: dict) -> float:
    return sum(value.nbytes for _, value in info.get("tensors", ())) / 2**20


def test_what_is_fused_with_what_learns_is_sent_with_it(vllm_student: Path) -> None:
    layer = "language_model.model.layers.0.self_attn"
    ((file, names),) = vllm_shared_memory.beside([f"{layer}.q_proj.weight"], vllm_student).items()
    assert file == vllm_student / "model.safetensors"
    expected = {f"{layer}.{proj}_proj.{kind}" for proj in "qkv" for kind in ("weight", "bias")}
    assert set(names) == (expected | {f"{layer}.o_proj.weight"}) - {f"{layer}.q_proj.weight"}


def test_a_part_of_what_vllm_has_fused_leaves_the_rest_as_it_was(rollouts, vllm_student: Path) -> None:
    """As with an adapter on few projections. What is sent is what vLLM has already: nothing may change."""
    student = Student.load(vllm_student)
    sent = ("q_proj.weight", "gate_proj.weight")
    same = [(name, value) for name, value in merged_weights(student) if name.endswith(sent)]

    class Partial(TorchLearner):
        def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
            return iter(same)

    learner = Partial(student, OptimConfig(steps=1), None)
    rollouts.load_weights(learner, version=1)
    assert gap(rollouts, learner) < SAME


def test_an_adapter_is_applied_by_vllm_itself(vllm_student: Path, tmp_path: Path) -> None:
    learner = taught(vllm_student)
    settings = VllmConfig(max_model_len=512, max_num_seqs=4, kv_cache_gib=0.25)
    llm = start(vllm_student, settings, Layout(adapter_rank=LORA["rank"]))
    rollouts = VllmRollouts(llm, Student.load(vllm_student, weights=False), settings)
    assert gap(rollouts, learner) > OTHER
    for version in (1, 2):
        (folder := tmp_path / str(version)).mkdir()
        learner.student.save_adapter(folder)
        projector = {name: value for name, value in learner.weights() if learner.student.is_projector(name)}
        save_file(projector, folder / "projector.safetensors")
        rollouts.load_adapter(folder, version)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        assert gap(rollouts, learner) < SAME
        assert rollouts.version == version
        step(learner)
        assert gap(rollouts, learner) > SAME


def test_a_source_says_beforehand_what_it_sends(vllm_student: Path) -> None:
    """vLLM's own senders size the receivers' buffers by it, and check it against what comes."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine

    learner = taught(vllm_student)
    source = Source(learner.weights, vllm_student, torch.device("cpu"))
    sent = list(NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata()))
    names = [name for name, _ in sent]
    assert len(names) == len(set(names))
    assert {name for name, _ in learner.weights()} < set(names)
    exact = dict(merged_weights(learner.student))
    assert all(torch.equal(value, exact[name]) for name, value in sent)


def test_a_client_drives_workers_as_vllms_senders_do(rollouts, vllm_student: Path) -> None:
    """The four calls of vLLM's sender, in its order, with all that the source has."""
    learner = taught(vllm_student)
    client = Client(lambda method, *given: getattr(rollouts, method)(*given), version=7)
    client.init_weight_transfer_engine({})
    client.start_weight_update()
    client.update_weights({"tensors": list(Source(learner.weights, vllm_student, torch.device("cpu")))})
    client.finish_weight_update()
    assert rollouts.version == 7
    assert gap(rollouts, learner) < SAME


def test_weights_that_are_no_numbers_are_an_error_and_no_reply(rollouts, vllm_student: Path) -> None:
    student = Student.load(vllm_student)
    rollouts.llm.apply_model(
        lambda model: model.get_parameter("language_model.model.norm.weight").data.fill_(torch.nan)
    )
    with pytest.raises(FloatingPointError, match="gives no numbers"):
        rollouts.generate(*asked(student), SAMPLING)


def test_sleeping_is_nothing_on_a_cpu(rollouts, vllm_student: Path) -> None:
    learner = taught(vllm_student)
    rollouts.load_weights(learner, version=1)
    rollouts.sleep()
    rollouts.wake()
    assert gap(rollouts, learner) < SAME
