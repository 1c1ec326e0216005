"""Bad input: one line, status 2, nothing lost, before any model loads."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rlspeech.cli import main

ROW = {"id": "a", "audio": "a.wav", "transcript": "Hello.", "instruction": "Transcribe.", "answer": "Hello."}


def write(folder: Path, row: dict, wave: np.ndarray | None = None, rate_hz: int = 16_000) -> None:
    if wave is not None:
        soundfile.write(folder / "a.wav", wave, rate_hz, subtype="FLOAT")
    (folder / "m.jsonl").write_text(json.dumps(row) + "\n")


def good(folder: Path) -> None:
    write(folder, ROW, np.full(16_000, 0.1, np.float32))


def cut_off(folder: Path) -> None:
    good(folder)
    os.truncate(folder / "a.wav", 20_000)


def text_as_audio(folder: Path) -> None:
    good(folder)
    (folder / "a.wav").write_text("not a sound")


def used_run_folder(folder: Path) -> None:
    good(folder)
    (folder / "run").mkdir()
    (folder / "run/config.toml").write_text("")


def nothing(folder: Path) -> None:
    pass


NAN = np.array([0.1] * 8_000 + [np.nan] * 8_000, np.float32)
FAULTS: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "missing recipe": (good, ["tiny/distil"], "did you mean"),
    "unknown key": (good, ["--optim.lrr", "1"], "did you mean '--optim.lr'"),
    "wrong type": (good, ["--optim.steps", "many"], "optim.steps"),
    "out of range": (good, ["--optim.lr", "-1"], "greater than 0"),
    "unknown loss": (good, ["--loss", "revers_kl"], "did you mean 'reverse_kl'"),
    "unknown student": (good, ["--student", "tinny"], "did you mean 'tiny'"),
    "unknown teacher": (good, ["--teacher", "tiny-lm"], "did you mean 'tiny-llm'"),
    "speech teacher": (good, ["--teacher", "tiny"], "a speech model where a text model is needed"),
    "missing manifest": (nothing, [], "m.jsonl"),
    "missing audio": (lambda f: write(f, ROW), [], "m.jsonl:1: "),
    "empty audio": (lambda f: write(f, ROW, np.zeros(0, np.float32)), [], "m.jsonl:1: "),
    "truncated audio": (cut_off, [], "m.jsonl:1: "),
    "not audio": (text_as_audio, [], "m.jsonl:1: "),
    "NaN samples": (lambda f: write(f, ROW, NAN), [], "a.wav"),
    "no transcript": (lambda f: write(f, {**ROW, "transcript": ""}, np.ones(16_000)), [], "m.jsonl:1: transcript"),
    "empty instruction": (lambda f: write(f, {**ROW, "instruction": " "}, np.ones(16_000)), [], "m.jsonl:1: "),
    "not JSON": (lambda f: (f / "m.jsonl").write_text("{\n") and None, [], "m.jsonl:1: "),
    "run folder in use": (used_run_folder, [], "--resume"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_input_is_one_line_and_status_2(fault, tmp_path, capsys, small_student, small_teacher) -> None:
    prepare, flags, expected = FAULTS[fault]
    prepare(tmp_path)
    command = ["distill", *([] if flags and not flags[0].startswith("--") else ["tiny/distill"])]
    command += [
        "--quiet",
        "--data.train",
        f"{tmp_path}/m.jsonl",
        "--data.synth",
        "none",
        "--run-dir",
        f"{tmp_path}/run",
    ]
    command += ["--data.tests", "{}", "--reading.kinds", "[]", "--optim.steps", "1"]
    for name, value in (("--student", small_student), ("--teacher", small_teacher)):
        command += [] if name in flags else [name, str(value)]
    assert main([*command, *flags]) == 2
    said = capsys.readouterr().err.strip()
    assert expected in said
    assert len(said.splitlines()) == 1
    assert said.startswith("rlspeech: error: ")
    assert "Traceback" not in said
    if fault != "run folder in use":
        assert not [file for file in tmp_path.glob("run/*") if not file.name.startswith(".")]


@pytest.mark.parametrize(("channels", "rate_hz"), [(2, 16_000), (1, 8_000), (2, 44_100)])
def test_other_rates_and_stereo_are_mended_not_refused(
    tmp_path, small_student, small_teacher, channels: int, rate_hz: int
) -> None:
    time_s = np.arange(rate_hz) / rate_hz
    wave = np.stack([np.sin(2 * np.pi * 300 * time_s)] * channels, axis=1).astype(np.float32)
    write(tmp_path, ROW, wave, rate_hz)
    command = ["distill", "tiny/distill", "--student", str(small_student), "--teacher", str(small_teacher), "--quiet"]
    command += ["--data.train", f"{tmp_path}/m.jsonl", "--data.synth", "none", "--run-dir", f"{tmp_path}/run"]
    command += ["--data.tests", "{}", "--reading.kinds", "[]", "--optim.steps", "1", "--sampling.max-tokens", "2"]
    assert main(command) == 0


def test_a_checkpoint_with_python_code_is_refused_unless_allowed(tmp_path, small_student, capsys) -> None:
    folder = tmp_path / "student"
    folder.mkdir()
    for file in small_student.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "modeling_own.py").write_text("raise SystemExit('run')\n")
    good(tmp_path)
    command = ["sft", "tiny/sft", "--student", str(folder), "--data.train", f"{tmp_path}/m.jsonl", "--quiet"]
    command += ["--data.tests", "{}", "--optim.steps", "1", "--run-dir", f"{tmp_path}/run"]
    assert main(command) == 2
    assert "--trust-remote-code" in capsys.readouterr().err
