"""Where a stage starts: what it names, or the checkpoint of the stage before, which is run first where missing."""

from pathlib import Path

import pytest

from rlspeech.config import DistillConfig, SftConfig
from rlspeech.errors import UserError
from rlspeech.recipe import dump_toml, load
from rlspeech.stages import sft
from rlspeech.stages.chain import starting_point


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    given = {"run_dir": f"{tmp_path}/distill", "data.train": "d/train.jsonl", "seed": "3", "student": "tiny"}
    return load(DistillConfig, "tiny/distill", given)


def finish(config: SftConfig) -> None:
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "config.toml").write_text(dump_toml(config))
    (config.run_dir / "done.json").write_text("{}")


def test_a_folder_is_taken_as_it_is(config, small_student) -> None:
    assert starting_point(config.model_copy(update={"student": str(small_student)})) == str(small_student)


def test_a_missing_stage_runs_first_on_the_same_data_with_the_same_seed(config, monkeypatch, tmp_path) -> None:
    calls: list[SftConfig] = []

    def run(before: SftConfig, *, resume: bool) -> None:
        assert resume
        calls.append(before)
        finish(before)

    monkeypatch.setattr(sft, "run", run)
    assert starting_point(config) == str(tmp_path / "sft/checkpoint")
    [before] = calls
    assert (before.seed, before.after, before.run_dir) == (3, "align", tmp_path / "sft")
    assert str(before.data.train) == "d/train.jsonl"
    assert starting_point(config) == str(tmp_path / "sft/checkpoint")
    assert len(calls) == 1  # a finished one is not run again
    with pytest.raises(UserError, match="made with seed = 3, this run wants 4"):
        starting_point(config.model_copy(update={"seed": 4}))


def test_a_folder_that_happens_to_have_the_short_name_is_not_the_student(config, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    finish(load(SftConfig, "tiny/sft", {"run_dir": f"{tmp_path}/sft", "data.train": "d/train.jsonl", "seed": "3"}))
    assert starting_point(config) == str(tmp_path / "sft/checkpoint")
