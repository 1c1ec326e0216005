"""Whole runs of `distill` on vLLM and DeepSpeed, in one process and on Ray, with every role killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from served import ask_about_audio, await_end, family_of, served
from small import write_student, write_teacher

from rlspeech.config import TestsConfig
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.protocols import Sampling
from rlspeech.stages.hearing import flat, hear, listen, read_samples, recordings_of
from rlspeech.students.tiny import Student

STEPS = 4  # role k is killed in step k + 1
SETTINGS = {
    "--optim.steps": STEPS,
    "--optim.batch": 4,
    "--optim.micro-batch": 1,
    "--optim.lr": 1e-3,
    "--sampling.max-tokens": 12,
    "--sampling.n": 2,
    "--held-out.samples": 1,
    "--checkpoints.every-steps": 1,
    "--vllm.max-model-len": 512,
    "--vllm.max-num-seqs": 8,
    "--reading.top-k": 64,
    "--checkpoints.keep": 2,
}


@pytest.fixture(scope="module")
def models(tiny_folder: Path, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random-weight models that vLLM loads: its attention wants heads of 32."""
    folder = tmp_path_factory.mktemp("models")
    student = write_student(folder / "student", tiny_folder, head_dim=32)
    return student, write_teacher(folder / "teacher", teacher_folder, head_dim=32)


def command(recipe: str, run_dir: Path, models: Sequence[Path], spoken: Path, *more: str) -> list[str]:
    student, teacher = models
    given = {
        **SETTINGS,
        "--student": student,
        "--teacher": teacher,
        "--run-dir": run_dir,
        "--data.train": spoken / "train.jsonl",
        "--data.tests.test_voice": spoken / "test_voice.jsonl",
        "--data.tests.test_text": spoken / "test_text.jsonl",
    }
    flags = [str(part) for pair in given.items() for part in pair]
    return [sys.executable, "-m", "rlspeech", "distill", recipe, *flags, *more]


def metrics(run_dir: Path) -> list[dict]:
    file = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


@dataclass
class Run:
    """A command under way, and every process that it has had: what is left of them can be told when it has ended."""

    process: subprocess.Popen
    seen: set[int] = field(default_factory=set)

    def titles(self) -> dict[int, str]:
        """Command lines of its processes by id: Ray names one after its work."""
        found = {}
        for pid in family_of(self.process.pid):
            try:
                found[pid] = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:  # it has ended
                continue
        self.seen |= set(found)
        return found

    def wait(self, within_s: float) -> int:
        deadline_s = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < deadline_s:
            self.titles()
            time.sleep(0.2)
        return self.process.wait(1)


@pytest.fixture(scope="module")
def plain(models, spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Metrics of the run in one process with vLLM: what the cluster's run has to give too."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    engines = ("--engines.rollouts", "vllm", "--engines.teacher", "vllm")
    done = subprocess.run(
        command("tiny/distill", run_dir, models, spoken, *engines), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return metrics(run_dir)


@pytest.fixture(scope="module")
def struck(models, spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[int]]:
    """A run on Ray of which each role is killed in the middle of a step; its folder, its log, what it left running."""
    run_dir = tmp_path_factory.mktemp("struck") / "run"
    log = run_dir.parent / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            command("tiny/distill_ray", run_dir, models, spoken, "--cluster.heartbeat-s", "0.5"), stderr=out
        )
        run = Run(process)
        try:
            for step, work in enumerate(("RolloutWorker.generate", "TeacherWorker.score", "LearnerRank.step"), 1):
                strike(run, run_dir, after_step=step, work=work)
            code = run.wait(300)
        finally:
            process.kill()
    assert code == 0, log.read_text()[-3000:]
    return run_dir, log.read_text(), await_end([*run.seen], 5)


def strike(run: Run, run_dir: Path, *, after_step: int, work: str) -> None:
    """kill -9 to an actor that is at this work, once the step is recorded: Ray names a process after its work."""
    deadline_s = time.monotonic() + 240
    while time.monotonic() < deadline_s and run.process.poll() is None:
        if any(row["step"] >= after_step for row in metrics(run_dir)):
            found = [pid for pid, line in run.titles().items() if f"ray::{work}" in line]
            if found:
                os.kill(found[0], signal.SIGKILL)
                return
        time.sleep(0.01)
    pytest.fail(f"no {work} after step {after_step}; the command's status is {run.process.poll()}")


def test_a_run_survives_the_death_of_every_role_in_the_middle_of_a_step(struck) -> None:
    run_dir, log, _ = struck
    assert (run_dir / "done.json").is_file()
    assert "rollout 0: died; started again" in log
    assert "teacher 0: died; started again" in log
    assert "the learner is started again (1 of 3 restarts)" in log


def test_nothing_is_lost_or_counted_twice(struck, plain) -> None:
    """Every step once, of as many tokens, with the losses of the run that nobody disturbed, in one process."""
    rows = metrics(struck[0])
    assert [row["step"] for row in rows] == [row["step"] for row in plain] == list(range(STEPS + 1))
    for ours_, theirs in zip(rows[1:], plain[1:], strict=True):
        assert ours_["train/tokens"] == theirs["train/tokens"]
        assert ours_["train/loss"] == pytest.approx(theirs["train/loss"], abs=2e-3)
        assert ours_["rollout/policy_lag_max_steps"] == 0


def test_both_runs_measure_the_same_things(struck, plain) -> None:
    assert [sorted(row) for row in metrics(struck[0])] == [sorted(row) for row in plain]


def test_the_sampler_has_the_learners_weights_at_every_step(struck) -> None:
    """In float32, sampler and learner agree on every token to 1e-3: what they differ in is the order of sums."""
    assert all(row["kl/sampler_learner_max_nats"] < 1e-3 for row in metrics(struck[0])[1:])


@pytest.mark.slow
def test_the_checkpoint_is_served_by_vllm_and_answers_about_audio_as_in_transformers(
    struck, spoken: Path, tmp_path
) -> None:
    """And when the command is killed, so that it can end nothing itself, vLLM's processes end all the same."""
    checkpoint = struck[0] / "checkpoint"
    student = Student.load(checkpoint)
    found = recordings_of(read_samples(spoken / "train.jsonl", TestsConfig(), ("audio",)), 1)[:2]
    samples, prompts = flat(hear(student, listen(found)))
    ours = TransformersRollouts(student).generate(samples, prompts, Sampling(max_tokens=12))
    with served(checkpoint, tmp_path, "--vllm.max-model-len=512", "--vllm.max-num-seqs=4") as server:
        for rollout in ours:
            wav, instruction = rollout.sample.audio.path, rollout.sample.instruction
            theirs = ask_about_audio(server.url, wav, instruction, max_tokens=12)
            assert theirs.strip() == rollout.completion.text.strip()
        family = server.family()
        server.process.kill()
        assert await_end(family) == []


def test_no_process_is_left(struck) -> None:
    assert struck[2] == []


def heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("sign", "status", "when"),
    [(signal.SIGTERM, 143, "ray::RolloutWorker"), (signal.SIGINT, 130, "ray::LearnerRank")],
)
def test_a_signal_ends_a_run_and_leaves_no_process(sign, status, when, models, spoken: Path, tmp_path: Path) -> None:
    """While the engines load."""
    arguments = command("tiny/distill_ray", tmp_path / "run", models, spoken)
    # Where the suite runs in the background of a shell, Ctrl-C is ignored by what it starts: here it is not.
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    run = Run(process)
    deadline_s = time.monotonic() + 120
    while not any(when in line for line in run.titles().values()) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    time.sleep(1)
    assert len(run.titles()) > 5  # Ray's own, too
    process.send_signal(sign)
    log = process.communicate(timeout=60)[1]
    assert process.returncode == status, log
    assert "Traceback" not in log
    assert await_end([*run.seen], 5) == []
