"""`rlspeech parity` passes where transformers and vLLM are one model, and names the first input that differs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlspeech.cli import main
from rlspeech.config import ParityConfig
from rlspeech.engines.merging import merged_weights
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.stages import parity
from rlspeech.stages.parity import Parity, compare
from rlspeech.students.tiny import Student
from rlspeech.types import Prompt, Sample, Waveform


@pytest.fixture(scope="module")
def student(vllm_student: Path) -> Student:
    return Student.load(vllm_student)


@pytest.fixture
def rollouts(vllm_student_engine: VllmRollouts, vllm_student: Path) -> Iterator[VllmRollouts]:
    """The session's engine; afterwards it has the weights of the folder again."""
    yield vllm_student_engine
    vllm_student_engine.begin_update()
    vllm_student_engine.update(vllm_student / "model.safetensors")
    vllm_student_engine.end_update(0)


def compared(student: Student, rollouts: VllmRollouts) -> Parity:
    samples, prompts = [], []
    for index in range(2):
        noise = np.random.default_rng(index).normal(scale=0.1, size=16_000).astype(np.float32)
        samples.append(Sample(str(index), "What is said?"))
        prompts.append(replace(student.render(samples[-1], Waveform(noise, 16_000)), audio_key=f"parity/{index}"))
    return compare(student, rollouts, samples, prompts, max_tokens=6, gate_nats=1e-3)


def spoil(rollouts: VllmRollouts, name: str) -> None:
    """Noise on one parameter of vLLM's model alone."""

    def noise(model: torch.nn.Module) -> None:
        value = model.get_parameter(name).data
        value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))

    rollouts.llm.apply_model(noise)
    rollouts.forget()


def test_one_checkpoint_passes(student: Student, rollouts: VllmRollouts) -> None:
    found = compared(student, rollouts)
    assert found.differs is None
    assert found.equal_replies == found.prompts == 2
    assert found.largest_gap_nats < 1e-3


@pytest.mark.parametrize(
    ("spoiled", "differs"),
    [
        ("multi_modal_projector.linear_2.bias", "projector output"),
        ("audio_tower.layer_norm.weight", "encoder output"),
        ("language_model.model.norm.weight", "logits"),
    ],
)
def test_the_first_input_that_differs_is_named(student: Student, rollouts: VllmRollouts, spoiled, differs) -> None:
    spoil(rollouts, spoiled)
    found = compared(student, rollouts)
    assert found.differs == differs
    assert found.largest_gap_nats > 1e-3


def test_audio_that_is_fed_otherwise_is_named(student: Student, rollouts: VllmRollouts, monkeypatch) -> None:
    monkeypatch.setattr(rollouts, "student", Louder(student))
    assert compared(student, rollouts).differs == "audio features"


class Louder:
    """A student that shows vLLM other sound, of the same length."""

    def __init__(self, student: Student) -> None:
        self._student = student

    def __getattr__(self, name: str):
        return getattr(self._student, name)

    def vllm_input(self, prompt: Prompt):
        return self._student.vllm_input(
            replace(prompt, features=(prompt.features[0][::-1].copy(),), audio_key="louder")
        )


class Politer(Louder):
    """A student that shows vLLM another text."""

    def vllm_input(self, prompt: Prompt):
        given = self._student.vllm_input(prompt)
        return given | {"prompt_token_ids": [*given["prompt_token_ids"], 400]}


def test_a_wrong_prompt_is_named(student: Student, rollouts: VllmRollouts, monkeypatch) -> None:
    monkeypatch.setattr(rollouts, "student", Politer(student))
    found = compared(student, rollouts)
    assert found.differs == "prompt ids"
    assert found.largest_gap_nats is None


def test_without_audio_a_few_exchanges_are_spoken(tmp_path: Path) -> None:
    samples = parity._samples(ParityConfig(student="tiny", prompts=3), tmp_path)
    assert len(samples) == 3
    assert all(sample.audio.path.is_file() for sample in samples)


def test_a_gate_that_does_not_pass_ends_the_command_with_status_1(
    rollouts: VllmRollouts, vllm_student: Path, spoken: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """The engine of the session stands in for one that the command would start."""
    monkeypatch.setattr(parity.vllm_engine, "start", lambda *given: rollouts.llm)
    flags = ["--student", str(vllm_student), "--data.tests.voice", str(spoken / "test_voice.jsonl")]
    flags += ["--vllm.max-model-len", "512", "--max-tokens", "4", "--run-dir", str(tmp_path), "--prompts", "2"]
    assert main(["parity", *flags]) == 0
    assert "2 of 2 equal" in capsys.readouterr().out
    assert json.loads((tmp_path / "parity.json").read_text())["differs"] is None
    spoil(rollouts, "multi_modal_projector.linear_2.bias")
    assert main(["parity", *flags]) == 1
    assert "the first thing to differ is projector output" in capsys.readouterr().err


def test_a_checkpoint_of_the_tiny_student_passes(tiny_folder: Path, spoken: Path, tmp_path: Path, capsys) -> None:
    """The real one, saved with an adapter that has an effect: the folder of a stage is one that vLLM loads natively."""
    tiny = Student.load(tiny_folder)
    tiny.prepare("sft", {"rank": 4, "alpha": 8.0, "dropout": 0.0})
    torch.manual_seed(0)
    for name, value in tiny.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    tiny.save(checkpoint, dict(merged_weights(tiny)))
    sound = sorted(spoken.rglob("*.wav"))[0]
    flags = ["--student", str(checkpoint), "--audio", str(sound), "--max-tokens", "12", "--vllm.kv-cache-gib", "0.25"]
    assert main(["parity", *flags]) == 0
    assert "1 of 1 equal" in capsys.readouterr().out
