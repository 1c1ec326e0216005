"""`rlspeech pairs` on Ray: a vLLM engine writes, another one that reads the transcript scores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlspeech.cli import main
from rlspeech.config import TestsConfig
from rlspeech.engines.cluster import Cluster
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.teacher_vllm import VllmTeacher
from rlspeech.protocols import Sampling
from rlspeech.stages.hearing import flat, hear, listen, read_samples, recordings_of

GIVEN = ["--recordings=2", "--data.kinds=who,list", "--data.synth=none", "--reading.kinds=who,list"]
GIVEN += ["--reading.prompt={transcript} {instruction}", "--reading.system=none", "--reading.examples=none"]
GIVEN += ["--vllm.max-model-len=512", "--vllm.max-num-seqs=8", "--vllm.kv-cache-gib=0.25", "--replies.max-tokens=8"]
GIVEN += ["--replies.n=2", "--replies.temperatures=0.7,1.0", "--seed=3", "--batch=2", "--engines.rollouts=vllm"]
GIVEN += ["--detectors.names=word_loop", "--choosing.unlikely-nats=1e-4", "--choosing.length-ratio=9"]


@pytest.mark.slow
def test_on_a_cluster_it_writes_what_one_process_writes(
    cluster: Cluster,
    vllm_student: Path,
    vllm_teacher: Path,
    vllm_student_engine: VllmRollouts,
    vllm_teacher_engine: VllmTeacher,
    spoken: Path,
    tmp_path: Path,
) -> None:
    """Replies are drawn by sample and seed, wherever they are drawn; likelihoods are a teacher's in here."""
    import ray

    address = ray.get_runtime_context().gcs_address
    train = spoken / "train.jsonl"
    given = [f"--student={vllm_student}", f"--teacher={vllm_teacher}", f"--data.train={train}", *GIVEN]
    workers = [f"--cluster={{address = '{address}', rollout_workers = 1}}", "--engines.teacher=vllm"]
    command = [sys.executable, "-m", "rlspeech", "pairs", "tiny/pairs", f"--run-dir={tmp_path}/run"]
    done = subprocess.run([*command, *given, *workers], capture_output=True, text=True, timeout=400, check=False)
    assert (tmp_path / "run" / "replies.jsonl").is_file(), done.stderr[-3000:]
    (row,) = (json.loads(line) for line in (tmp_path / "run" / "replies.jsonl").read_text().splitlines())

    asked = read_samples(train, TestsConfig(), ("audio", "transcript"), kinds=("who", "list"))
    samples, prompts = flat(hear(vllm_student_engine.student, listen(recordings_of(asked, 2)), reply_tokens=8))
    for place, temperature in enumerate((0.7, 1.0)):
        sampling = Sampling(max_tokens=8, temperature=temperature, n=2, seed=3 * 1_000_003 * 101 + place)
        rollouts = vllm_student_engine.generate(samples, prompts, sampling)
        scored = vllm_teacher_engine.score([one.sample for one in rollouts], [one.completion for one in rollouts])
        for index, sample in enumerate(row["samples"]):
            assert sample["id"] == samples[index].id
            theirs = sample["replies"][2 * place : 2 * place + 2]
            for one, ours, score in zip(theirs, rollouts[2 * index :], scored[2 * index :], strict=False):
                assert one["text"] == ours.completion.text
                bytes_written = len(ours.completion.text.encode())
                assert one["nats_per_byte"] == pytest.approx(float(score.logprobs.sum()) / bytes_written, abs=1e-3)
    assert [one["origin"] for one in row["samples"][0]["replies"][4:]] == ["teacher"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--cluster={}", "[cluster] wants engines.rollouts = 'vllm', got 'transformers'"),
        ("--cluster={} --engines.rollouts=vllm", "[cluster] wants engines.teacher = 'vllm' or a URL as teacher"),
        (
            "--cluster={learners=2} --engines.rollouts=vllm --teacher=http://127.0.0.1:9",
            "cluster.learners = 2: nobody learns here; leave it out",
        ),
        ("--engines.learner=deepspeed", "engines.learner = 'deepspeed': nobody learns here; leave it out"),
        ("--engines.teacher=vllm --teacher=none", "engines.teacher = 'vllm': there is no teacher to load"),
        ("--engines.rollouts=vllm --vllm.max-model-len=24", "replies.max_tokens = 24 leaves no room for a prompt"),
    ],
)
def test_engines_that_cannot_act_are_one_line(given: str, line: str, tmp_path: Path, capsys) -> None:
    assert main(["pairs", "tiny/pairs", f"--run-dir={tmp_path}/run", *given.split(" ")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told
    assert not (tmp_path / "run").exists()
