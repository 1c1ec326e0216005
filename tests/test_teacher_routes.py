"""Several teachers: rows are scored by the teacher that they name, with its weight, and a wrong name is told."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlspeech.config import DistillConfig, TeacherConfig
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import build_teacher, build_teachers
from rlspeech.errors import UserError
from rlspeech.recipe import load
from rlspeech.stages import distill
from rlspeech.stages.hearing import flat, hear, listen, read_samples, recordings_of
from rlspeech.students.tiny import Student
from rlspeech.types import Completion, Rollout


@pytest.fixture
def asked(small_student: Path, spoken: Path):
    """A student, four of its prompts, and a reply to each."""
    student = Student.load(small_student)
    config = load(DistillConfig, "tiny/distill", {})
    samples = recordings_of(read_samples(spoken / "train.jsonl", config.data, ("audio", "transcript")), 2)[:4]
    samples, prompts = flat(hear(student, listen(samples)))
    samples = [replace(sample, teacher="" if index % 2 else "summaries") for index, sample in enumerate(samples)]
    replies = [Completion((10 + index, 20, 2), (-1.0,) * 3, "", "stop") for index in range(len(samples))]
    return student, samples, prompts, replies


def test_each_row_is_scored_by_its_teacher_with_its_weight(asked, small_teacher, teacher_folder) -> None:
    student, samples, prompts, replies = asked
    config = DistillConfig.model_validate_json(
        json.dumps(
            {
                "student": "tiny",
                "run_dir": "x",
                "data": {"train": "x"},
                "optim": {"steps": 1},
                "teacher": str(small_teacher),
                "reading": {"top_k": 8},
                "teachers": {"summaries": {"model": str(teacher_folder), "weight": 0.25}},
            }
        )
    )

    def make(config, folder, reading, top_k):
        return build_teacher(folder, reading, student, top_k=top_k)

    routed = build_teachers(config, student, make)
    scored = routed.score(samples, replies)
    folders = {"summaries": teacher_folder, "": small_teacher}
    single = {name: build_teacher(folder, TeacherConfig(), student, top_k=8) for name, folder in folders.items()}
    for index, (sample, one) in enumerate(zip(samples, scored, strict=True)):
        alone = single[sample.teacher].score([sample], [replies[index]])[0]
        assert one.weight == (0.25 if sample.teacher else 1.0)
        assert torch.allclose(one.logprobs, alone.logprobs, atol=1e-4)
        assert torch.equal(one.topk_ids, alone.topk_ids)
    rollouts = [Rollout(*parts) for parts in zip(samples, prompts, replies, strict=True)]
    (batch,) = make_batches(student, rollouts, micro_batch=8, scored=scored, teacher_head=routed.head())
    weights = {index: batch.weights[batch.rollout == index].unique().tolist() for index in range(4)}
    assert weights == {0: [0.25], 1: [1.0], 2: [0.25], 3: [1.0]}


def test_the_top_tokens_of_a_teacher_in_process_are_those_of_its_whole_vocabulary(asked, small_teacher) -> None:
    student, samples, _, replies = asked
    teacher = build_teacher(small_teacher, TeacherConfig(), student)
    whole = teacher.score(samples, replies)
    best = build_teacher(small_teacher, TeacherConfig(), student, top_k=16).score(samples, replies)
    for one, other in zip(whole, best, strict=True):
        logprobs = torch.log_softmax(one.hidden @ teacher.head().T, -1).topk(16)
        assert torch.allclose(other.topk_logprobs, logprobs.values, atol=1e-4)
        assert other.hidden is None


def test_a_row_that_names_an_unknown_teacher_is_refused_before_any_model_loads(spoken, small_teacher, tmp_path) -> None:
    rows = [json.loads(line) for line in (spoken / "train.jsonl").read_text().splitlines()]
    manifest = spoken / "routed.jsonl"
    manifest.write_text("".join(json.dumps(row | {"teacher": "summarries"}) + "\n" for row in rows))
    config = load(
        DistillConfig,
        "tiny/distill",
        {
            "teacher": str(small_teacher),
            "run_dir": str(tmp_path / "run"),
            "data.train": str(manifest),
            "data.tests": "{}",
        },
    )
    with pytest.raises(UserError, match=r"teacher = 'summarries', which \[teachers\] does not name: none"):
        distill.run(config)
    assert not (tmp_path / "run").exists()
