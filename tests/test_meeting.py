"""Half an hour of speech through sft, distill and evaluate of a small Phi-4-multimodal."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import families.phi4mm as small
import numpy as np
import pytest
import torch

from rlspeech.cli import main
from rlspeech.data import audio
from rlspeech.embedded.espeak import render
from rlspeech.stages.hearing import flat, hear, listen
from rlspeech.students.phi4mm import Student
from rlspeech.types import Audio, Sample, Turn, Waveform

RATE_HZ = 16_000
MEETING_S = 1800
CONTEXT = 32_768
TURNS = (
    Turn("Anna", "We have twenty tents left, and the river is higher than last year.", "en-us+f2"),
    Turn("Ben", "Then we move the camp to the hill. Who tells the bakery?", "en-us+m3"),
    Turn("Anna", "I will. They close at noon on Thursday.", "en-us+f2"),
)


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of one meeting, in which the same is said over and over, and of two short remarks."""
    folder = tmp_path_factory.mktemp("meeting")
    said = render(TURNS, snr_db=None, silence_s=(0.2, 0.4), seed=0).wave.samples
    times = -(-MEETING_S * RATE_HZ // len(said))
    audio.write(folder / "long.wav", Waveform(np.tile(said, times)[: MEETING_S * RATE_HZ], RATE_HZ))
    text = " ".join(turn.text for turn in TURNS)
    rows = []  # the held-out loss is taken on the first
    for name, turn in zip(("one", "two"), TURNS[1:], strict=True):
        audio.write(folder / f"{name}.wav", render([turn], snr_db=None, silence_s=(0, 0), seed=0).wave)
        rows.append({"id": name, "audio": f"{name}.wav", "transcript": turn.text, "answer": "The bakery."})
    rows.append({"id": "long", "audio": "long.wav", "transcript": " ".join([text] * times), "answer": "On the hill."})
    asked = [row | {"instruction": "What is decided?", "kind": "summarize"} for row in rows]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder / "all.jsonl"


@pytest.fixture(scope="module")
def teacher(small_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for the transcript of half an hour."""
    folder = shutil.copytree(small_teacher, tmp_path_factory.mktemp("meeting") / "teacher")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_half_an_hour_goes_through_sft_distill_and_evaluate(meeting: Path, teacher: Path, tmp_path: Path) -> None:
    student = small.write(tmp_path / "student", context=CONTEXT)
    data = [f"--data.train={meeting}", f"--data.tests.all={meeting}", "--threads=2", "--quiet"]
    learned = ["--optim.steps=1", "--optim.batch=3", "--optim.micro-batch=3", "--optim.micro-batch-tokens=4096"]
    heard = ["--audio.windows-at-once=2", "--held-out.samples=1", "--held-out.every-steps=99"]
    sft, distill, scores = tmp_path / "sft", tmp_path / "distill", tmp_path / "scores"
    assert main(["sft", f"--student={student}", f"--run-dir={sft}", *data, *learned, *heard]) == 0
    models = [f"--student={sft}", f"--teacher={teacher}"]
    more = ["--sampling.max-tokens=6", f"--run-dir={distill}"]
    assert main(["distill", *models, *more, *data, *learned, *heard]) == 0
    tests = [f"--data.tests.all={meeting}", "--threads=2", "--audio.windows-at-once=2"]
    few = ["--evaluation.max-tokens=6", "--evaluation.compare-below-wer=99"]
    teachers = [f"--student={distill}", f"--teacher={teacher}", f"--run-dir={scores}"]
    assert main(["evaluate", *teachers, *tests, *few, "--quiet"]) == 0

    steps = [row for row in metrics(distill) if "train/loss" in row]
    assert len(steps) == 1
    for row in (*steps, *metrics(sft)):
        assert MEETING_S < row["data/audio_s"] < MEETING_S + 20
        assert row["learn/positions"] > row["data/audio_s"] / Student.frame_s
        assert row["learn/padding_share"] < 0.01
    assert all(row["kl/sampler_learner_max_nats"] < 1e-3 for row in steps)
    found = json.loads((scores / "evaluation.json").read_text())
    assert found["sets"]["all"]["student"]["kl_nats"] > 0
    loaded = Student.load(distill / "checkpoint", weights=False)
    samples = [Sample("long", "What is decided?", Audio(meeting.parent / "long.wav"))]
    (prompt,) = flat(hear(loaded, listen(samples)))[1]
    assert prompt.token_ids.count(loaded.placeholder_id) == pytest.approx(MEETING_S / loaded.frame_s, abs=1)
