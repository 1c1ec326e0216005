"""The stages on spoken exchanges and small random-weight models: what they write, refuse and resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AudioFlamingo3ForConditionalGeneration, AutoProcessor

from rlspeech.cli import main
from rlspeech.data.mixing import batch_of_step


@pytest.fixture
def flags(spoken: Path) -> list[str]:
    tests = [f"--data.tests.{name}={spoken / name}.jsonl" for name in ("test_voice", "test_text")]
    return [f"--data.train={spoken}/train.jsonl", *tests, "--optim.batch=2", "--optim.micro-batch=1", "--quiet"]


def run(verb: str, recipe: str, student: Path, folder: Path, *flags: str) -> int:
    return main([verb, recipe, f"--student={student}", f"--run-dir={folder}", *flags])


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def distill(student: Path, teacher: Path, folder: Path, flags: list[str], *more: str) -> int:
    own = ["--optim.steps=3", "--sampling.max-tokens=6", "--held-out.samples=1", "--held-out.every-steps=2"]
    return run("distill", "tiny/distill", student, folder, f"--teacher={teacher}", *own, *flags, *more)


def test_align_trains_the_projector_alone_and_records_both_parts(small_student, flags, tmp_path) -> None:
    steps = ("--optim.steps=3", "--frames.steps=4")
    assert run("align", "tiny/align", small_student, tmp_path / "a", *steps, *flags) == 0
    assert [row["step"] for row in lines(tmp_path / "a/metrics.jsonl")] == [1, 2, 3]
    assert [row["frames/step"] for row in lines(tmp_path / "a/frames.jsonl")] == [1, 2, 3, 4]
    before = load_file(small_student / "model.safetensors")
    after = load_file(tmp_path / "a/checkpoint/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("multi_modal_projector") for name in changed)


def test_sft_ends_in_a_folder_that_transformers_loads_with_card_processor_and_adapter(
    small_student, flags, tmp_path
) -> None:
    assert run("sft", "tiny/sft", small_student, tmp_path / "s", "--optim.steps=3", *flags) == 0
    folder = tmp_path / "s/checkpoint"
    model = AudioFlamingo3ForConditionalGeneration.from_pretrained(folder)
    assert model.num_parameters() > 0
    assert AutoProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids("<sound>") == 49_152
    assert (folder / "adapter/adapter_model.safetensors").is_file()
    assert "library_name: transformers" in (folder / "README.md").read_text()
    before, after = (load_file(f / "model.safetensors") for f in (small_student, folder))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("audio_tower"))


def test_distill_records_divergence_agreement_and_speed(small_student, small_teacher, flags, tmp_path) -> None:
    assert distill(small_student, small_teacher, tmp_path / "d", flags) == 0
    rows = lines(tmp_path / "d/metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["kl/train_nats"] > 0
        assert abs(row["kl/sampler_learner_nats"]) < 1e-4
        for name in ("rollout/length_tokens", "rollout/repetition_share", "rollout/tokens_per_s"):
            assert name in row
        assert row["teacher/tokens_per_s"] > 0
        assert row["learn/tokens_per_s"] > 0
        assert row["data/audio_s"] > 1
        assert row["learn/positions"] > row["train/tokens"]
        assert row["learn/padding_share"] == 0  # of micro-batches of one
    held_out = [row["step"] for row in rows if "kl/test_voice_nats" in row]
    assert held_out == [0, 2, 3]
    for rollout in lines(tmp_path / "d/rollouts.jsonl"):
        assert len(rollout["tokens"]) == len(rollout["kl_nats"]) == 6


@pytest.mark.parametrize("loss", ["forward_kl", "jsd", "k1"])
def test_every_estimator_is_one_setting(small_student, small_teacher, flags, tmp_path, loss: str) -> None:
    assert distill(small_student, small_teacher, tmp_path / loss, flags, f"--loss={loss}", "--optim.steps=1") == 0
    row = lines(tmp_path / loss / "metrics.jsonl")[-1]
    assert row["kl/train_k1_nats" if loss == "k1" else "kl/train_nats"] > 0


def test_a_projector_that_is_not_to_learn_stays(small_student, small_teacher, flags, tmp_path) -> None:
    assert distill(small_student, small_teacher, tmp_path / "d", flags, "--train-projector=false") == 0
    before, after = (load_file(f / "model.safetensors") for f in (small_student, tmp_path / "d/checkpoint"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("language_model.model.layers") for name in changed)


def test_settings_that_cannot_act_together_are_refused(small_student, small_teacher, flags, tmp_path, capsys) -> None:
    for more, expected in (
        (["--loss=k1", "--sampling.temperature=0.7"], "wants temperature 1 and top_p 1"),
        (["--loss=cross_entropy"], "leaves the teacher out"),
        (["--loss=grpo"], "learns from rewards and leaves the teacher out"),
        (["--data.kinds=not_said"], "have none in common"),
        (["--sampling.temperature=0"], "sampling.temperature"),
    ):
        assert distill(small_student, small_teacher, tmp_path / "d", flags, *more) == 2
        assert expected in capsys.readouterr().err


def test_a_mistyped_manifest_makes_no_data(small_student, spoken, tmp_path, capsys) -> None:
    flags = [f"--data.train={tmp_path}/trian.jsonl", "--data.tests", "{}", "--quiet"]
    assert run("sft", "tiny/sft", small_student, tmp_path / "s", *flags) == 2
    assert "trian.jsonl" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_distilling_brings_the_student_towards_the_teacher(small_student, small_teacher, flags, tmp_path) -> None:
    more = ("--optim.steps=30", "--optim.lr=3e-2", "--optim.warmup-steps=0", "--lora=none", "--held-out.every-steps=99")
    assert distill(small_student, small_teacher, tmp_path / "d", flags, *more) == 0
    rows = lines(tmp_path / "d/metrics.jsonl")
    assert rows[-1]["kl/test_text_nats"] < 0.9 * rows[0]["kl/test_text_nats"]


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_was_cut_off_ends_as_an_uncut_one(
    small_student, small_teacher, flags, tmp_path, monkeypatch, after: int
) -> None:
    """The cut: an interrupt in step 2 or 3 of 4, before or after the state of step 2 was written."""
    from rlspeech.engines.learner_torch import TorchLearner

    steps = ("--optim.steps=4", "--checkpoints.every-steps=2")
    assert distill(small_student, small_teacher, tmp_path / "straight", flags, *steps) == 0
    step = TorchLearner.step

    def cut(self, *args, **kwargs):
        if self.steps_done == after:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TorchLearner, "step", cut)
        assert distill(small_student, small_teacher, tmp_path / "cut", flags, *steps) == 130
    assert not (tmp_path / "cut/checkpoint").exists()
    assert distill(small_student, small_teacher, tmp_path / "cut", flags, *steps, "--resume") == 0
    timed = ("time/", "tokens_per_s")
    straight, resumed = (
        [
            {k: v for k, v in row.items() if not any(t in k for t in timed)}
            for row in lines(tmp_path / f / "metrics.jsonl")
        ]
        for f in ("straight", "cut")
    )
    assert resumed == straight
    ours, theirs = (load_file(tmp_path / f / "checkpoint/model.safetensors") for f in ("cut", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_evaluate_scores_student_teacher_and_cascade(small_student, small_teacher, spoken, tmp_path) -> None:
    flags = [f"--data.tests.{name}={spoken / name}.jsonl" for name in ("test_voice", "test_text")]
    more = (f"--teacher={small_teacher}", "--evaluation.samples=1", "--evaluation.max-tokens=6", "--quiet")
    more += ("--evaluation.compare-below-wer=1000",)
    assert run("evaluate", "tiny/evaluate", small_student, tmp_path / "e", *more, *flags) == 0
    found = json.loads((tmp_path / "e/evaluation.json").read_text())
    assert set(found["sets"]) == {"test_voice", "test_text"}
    scores = found["sets"]["test_text"]
    assert set(scores) == {"student", "teacher", "cascade"}
    assert scores["student"]["kl_nats"] > 0
    assert scores["student"]["samples"] == scores["teacher"]["samples"]
    for row in found["samples"]:
        assert (tmp_path / "e" / row["audio"]).resolve().is_file()
        asked = row["kind"] != "not_said"  # recipes/tiny/evaluate.toml: the teacher is not asked
        assert len(row["kl_nats"]) == (len(row["tokens"]) if asked else 0)
        assert row["teacher_reply"] is not None


def test_a_pipeline_runs_its_stages_evaluates_between_them_and_resumes(
    small_student, small_teacher, spoken, tmp_path, monkeypatch
) -> None:
    """The road of `make quickstart`, with small models: recipes of the tiny pair, shortened."""
    from rlspeech.config import AlignConfig, DistillConfig, EvaluateConfig, SftConfig
    from rlspeech.recipe import dump_toml, load

    data = {f"data.tests.{name}": f"{spoken / name}.jsonl" for name in ("test_voice", "test_text")}
    learned = data | {"data.train": f"{spoken}/train.jsonl", "optim.steps": "2", "optim.batch": "2"}
    teacher = {"teacher": str(small_teacher)}
    recipes = {
        "align": load(AlignConfig, "tiny/align", learned | {"student": str(small_student), "frames.steps": "2"}),
        "sft": load(SftConfig, "tiny/sft", learned),
        "distill": load(DistillConfig, "tiny/distill", learned | teacher | {"sampling.max-tokens": "4"}),
        "evaluate": load(EvaluateConfig, "tiny/evaluate", data | teacher | {"evaluation.max-tokens": "4"}),
    }
    for name, config in recipes.items():
        (tmp_path / f"{name}.toml").write_text(dump_toml(config))
    monkeypatch.chdir(tmp_path)
    stages = "--stages=align.toml,sft.toml,distill.toml"
    command = ["pipeline", "tiny/quickstart", stages, "--evaluate=evaluate.toml", "--run-dir=job", "--quiet"]
    assert main(command) == 0
    assert json.loads(Path("job/evaluate-sft/evaluation.json").read_text())["after"] == "sft"
    config = Path("job/distill/config.toml").read_text()
    assert "job/sft/checkpoint" in config
    assert "<audio" in Path("job/report.html").read_text()
    assert main(command) == 2  # in use
    stamp = Path("job/distill/done.json").read_text()
    assert main([*command, "--resume"]) == 0
    assert Path("job/distill/done.json").read_text() == stamp


def test_epochs_have_no_gaps_and_a_step_is_a_function_of_the_seed() -> None:
    steps = [batch_of_step(step, size=5, batch=2, seed=1) for step in range(5)]
    drawn = [index for step in steps for index in step]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert batch_of_step(3, size=5, batch=2, seed=1) == steps[3]
    assert any(batch_of_step(s, size=5, batch=2, seed=2) != steps[s] for s in range(5))


def test_the_quick_start_is_two_roads_each_with_its_own_evaluations(tmp_path, caplog) -> None:
    from rlspeech.config import PipelineConfig
    from rlspeech.recipe import load
    from rlspeech.stages.pipeline import read_parts

    config = load(PipelineConfig, "tiny/quickstart", {"run_dir": f"{tmp_path}/job", "seed": "7"})
    parts, made = read_parts(config)
    starts = {part.name: part.config.student.removeprefix(f"{tmp_path}/job/") for part in parts}
    assert starts == {
        "align": "tiny",
        "sft": "align/checkpoint",
        "distill": "sft/checkpoint",
        "pairs": "distill/checkpoint",
        "dpo": "distill/checkpoint",
        "align_calls": "tiny",
        "sft_calls": "align_calls/checkpoint",
        "rlbr": "sft_calls/checkpoint",
    }
    assert {part.config.seed for part in parts} == {7}
    assert [synth.synth for synth in made] == ["exchanges", "calls"]
    assert not caplog.records
    read_parts(config.model_copy(update={"stages": ["tiny/align"], "evaluations": {"rlbr": Path("tiny/evaluate")}}))
    assert "evaluations.rlbr: not used, no stage of this job has that name: align" in caplog.text
