import json
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest

from rlspeech.config import ReportConfig, SftConfig
from rlspeech.errors import UserError
from rlspeech.recipe import load
from rlspeech.run_dir import RunDir, environment, masked

FLAGS = {"student": "tiny", "run_dir": "x", "data.train": "a.jsonl", "optim.steps": "3"}


def config(**flags: str) -> SftConfig:
    return load(SftConfig, None, FLAGS | {name.replace("__", "."): value for name, value in flags.items()})


@pytest.fixture
def run(tmp_path):
    run = RunDir.open(tmp_path / "run", config(), resume=False)
    yield run
    run.close()


def reopened(run: RunDir, settings: SftConfig | None = None) -> RunDir:
    run.close()
    return RunDir.open(run.path, settings or config(), resume=True)


def test_a_new_run_records_settings_and_environment(run):
    assert load(SftConfig, run.path / "config.toml", {}) == config()
    recorded = json.loads((run.path / "environment.json").read_text())
    assert recorded["cores"] >= 1
    assert isinstance(recorded["command"], list)
    assert recorded["packages"]["numpy"]


def test_a_used_folder_is_refused(run):
    run.close()
    with pytest.raises(UserError, match=r"in use by an earlier run; go on with --resume or choose another --run-dir"):
        RunDir.open(run.path, config(), resume=False)
    reopened(run).close()  # the refusal has given the lock back


def test_a_folder_of_other_files_is_not_resumed(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for resume, what in [(False, "in use"), (True, r"no config.toml, so no run to resume")]:
        with pytest.raises(UserError, match=what):
            RunDir.open(tmp_path, config(), resume=resume)
    with pytest.raises(UserError, match="a file; --run-dir must be a folder"):
        RunDir.open(tmp_path / "mine.txt", config(), resume=False)


def test_resume_of_an_unused_folder_starts_it(tmp_path):
    run = RunDir.open(tmp_path / "a" / "b", config(), resume=True)
    assert (run.path / "config.toml").is_file()
    run.close()


def test_resume_with_other_settings_names_the_first_that_differs(run):
    run.close()
    with pytest.raises(UserError, match=r"optim.lr was 0.0001, now 0.002; resume with the same settings"):
        RunDir.open(run.path, config(optim__lr="2e-3", seed="0"), resume=True)
    with pytest.raises(UserError, match=r"lora.rank was 16, now None"):
        RunDir.open(run.path, config(lora="none"), resume=True)


def test_steps_data_and_threads_may_change_on_resume(run):
    other = config(optim__steps="9", threads="1", run_dir="y", data__tests__a="c.jsonl")
    again = reopened(run, other)
    assert len(again.records("resumed.jsonl")) == 1
    again.close()


def test_two_processes_cannot_use_one_folder(run):
    code = (
        "from pathlib import Path; from rlspeech.run_dir import RunDir; from rlspeech.recipe import load\n"
        "from rlspeech.config import ReportConfig\n"
        f"RunDir.open(Path({str(run.path)!r}), load(ReportConfig, None, {{'run_dir': 'x'}}), resume=True)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "in use by a run that goes on now (process " in other.stderr
    run.close()
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "a recipe of 'sft', given to 'report'" in other.stderr  # past the lock


def test_json_is_replaced_whole_and_strict(run):
    run.write_json("a.json", {"path": Path("x"), "loss": nan, "nested": [1.5, (2, True)], "text": "é"})
    assert run.read_json("a.json") == {"path": "x", "loss": None, "nested": [1.5, [2, True]], "text": "é"}
    assert run.read_json("b.json") is None
    assert not list(run.path.glob(".a.json*"))


def test_records_past_a_step_and_a_torn_line_are_dropped(run):
    for step in (1, 2, 3):
        run.append("metrics.jsonl", {"step": step, "text": "a\u2028b"})
    run.append("metrics.jsonl", {"note": "kept"})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "to')
    run.truncate("metrics.jsonl", 2)
    assert [record.get("step") for record in run.records("metrics.jsonl")] == [1, 2, None]
    run.append("metrics.jsonl", {"step": 3})
    assert len(run.records("metrics.jsonl")) == 4
    run.truncate("none.jsonl", 2)
    assert run.records("none.jsonl") == []


def test_the_newest_states_are_kept(run):
    assert run.latest_state() is None
    for step in (20, 40, 60):
        with run.new_state(step, keep=2) as folder:
            (folder / "x").write_text(str(step))
    step, folder = run.latest_state()
    assert (step, folder.name, (folder / "x").read_text()) == (60, "step-000060", "60")
    assert sorted(path.name for path in (run.path / "state").iterdir()) == ["step-000040", "step-000060"]


def test_states_are_ordered_by_number_past_a_million(run):
    for step in (999_999, 1_000_000):
        with run.new_state(step, keep=1):
            pass
    assert run.latest_state()[0] == 1_000_000


def test_a_state_that_fails_to_be_written_leaves_nothing(run):
    with run.new_state(20):
        pass
    with pytest.raises(ZeroDivisionError), run.new_state(40):
        raise ZeroDivisionError
    assert run.latest_state()[0] == 20
    assert len(list((run.path / "state").iterdir())) == 1


def test_a_state_torn_by_a_kill_is_passed_over_and_removed(run):
    with run.new_state(20):
        pass
    torn = [run.path / "state" / "step-000040", run.path / "state" / ".step-000060.1", run.path / ".checkpoint.1"]
    for folder in torn:
        folder.mkdir()
    assert run.latest_state()[0] == 20
    again = reopened(run)
    assert not any(folder.exists() for folder in torn)
    assert again.latest_state()[0] == 20
    again.close()


def test_a_checkpoint_takes_the_place_of_the_one_before(run):
    assert not run.checkpoint.exists()
    for text in ("first", "second"):
        with run.new_checkpoint() as folder:
            (folder / "x").write_text(text)
    assert (run.checkpoint / "x").read_text() == "second"
    with pytest.raises(FileNotFoundError), run.new_checkpoint() as folder:
        (folder / "no" / "x").write_text("third")
    assert (run.checkpoint / "x").read_text() == "second"


def test_a_kill_between_the_two_renames_loses_no_checkpoint(run):
    with run.new_checkpoint() as folder:
        (folder / "x").write_text("first")
    run.checkpoint.rename(run.path / ".checkpoint.old")
    again = reopened(run)
    assert (again.checkpoint / "x").read_text() == "first"
    again.close()


def test_a_run_is_finished_once_it_says_so(run):
    assert not run.finished
    run.finish({"wer": 0.5})
    assert run.finished
    assert run.read_json("done.json")["wer"] == 0.5


def test_secrets_are_masked_on_the_command_line():
    line = "x --hf-token hf_123456789 --api_key=abc --sampling.max_tokens 64 https://me:pw@host/x --seed 1"
    shown = "x --hf-token *** --api_key=*** --sampling.max_tokens 64 https://***@host/x --seed 1"
    assert " ".join(masked(line.split())) == shown
    assert masked(["--prompt", "use sk-abcdefghijk please"]) == ["--prompt", "use *** please"]


def test_the_environment_tells_versions_and_machine():
    found = environment(["x"])
    assert found["python"].startswith("3.")
    assert found["memory_gib"] > 0


def test_any_config_can_open_a_folder(tmp_path):
    RunDir.open(tmp_path / "r", load(ReportConfig, None, {"run_dir": "x"}), resume=False).close()
