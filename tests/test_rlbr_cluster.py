"""`rlspeech rlbr` on Ray: a vLLM engine writes, two DeepSpeed ranks learn, rewards beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small import write_student

from rlspeech.config import SynthConfig
from rlspeech.stages import synth


@pytest.mark.slow
def test_on_a_cluster_it_learns_what_one_process_learns(tiny_folder: Path, tmp_path: Path) -> None:
    """Two updates a step, the reference in each group, a KL term: in one process and on two ranks the same numbers."""
    student = write_student(tmp_path / "student", tiny_folder, head_dim=32)
    calls = tmp_path / "calls"
    synth.run(SynthConfig(synth="calls", out=calls, sets={"train": 8, "test": 2}, noise_share=0))
    flags = [f"--student={student}", f"--data.train={calls}/train.jsonl", f"--data.tests.test={calls}/test.jsonl"]
    flags += ["--optim.steps=2", "--optim.batch=4", "--optim.micro-batch=1", "--sampling.n=2", "--updates=2"]
    flags += ["--sampling.max-tokens=24", "--held-out.samples=1", "--vllm.max-model-len=512", "--vllm.max-num-seqs=8"]
    flags += ["--loss-options.kl_beta=0.05", "--engines.rollouts=vllm"]
    cluster = ["--engines.learner=deepspeed", "--cluster={learners = 2}", "--deepspeed.zero=2"]
    told = {}
    for name, more in (("one", []), ("ray", cluster)):
        command = [sys.executable, "-m", "rlspeech", "rlbr", "tiny/rlbr", f"--run-dir={tmp_path}/{name}", *flags, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        told[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(told["ray"][1:], told["one"][1:], strict=True):
        for key in ("train/loss", "train/ratio", "kl/train_nats", "groups/reference_advantage", "reward/sum"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-2, abs=2e-3), key
        assert ours["kl/sampler_learner_max_nats"] < 1e-3
        assert ours["groups/reference_share"] == 1
    assert (tmp_path / "ray" / "checkpoint" / "config.json").is_file()
