"""`rlspeech dpo` on Ray: two DeepSpeed ranks learn from pairs what one process learns."""

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
    """The reference's log-probs are computed by the ranks; both replies of a pair are on one of them."""
    student = write_student(tmp_path / "student", tiny_folder, head_dim=32)
    calls = tmp_path / "calls"
    synth.run(SynthConfig(synth="calls", out=calls, sets={"train": 4, "test": 2}, noise_share=0))
    rows = [json.loads(line) for line in (calls / "train.jsonl").read_text().splitlines()]
    pairs = [
        {
            "prompt": [{"role": "user", "content": "Transcribe the speech."}],
            "chosen": [{"role": "assistant", "content": row["transcript"]}],
            "rejected": [{"role": "assistant", "content": f"{row['transcript'].split()[0]} " * 12}],
            "audio": row["audio"],
        }
        for row in rows
    ]
    (calls / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    flags = [f"--student={student}", f"--pairs={calls}/pairs.jsonl"]
    flags += [f"--data.tests.{name}={calls}/test.jsonl" for name in ("test_voice", "test_text")]
    flags += ["--optim.steps=3", "--optim.batch=4", "--optim.micro-batch=1", "--optim.warmup-steps=1"]
    flags += ["--sampling.max-tokens=8", "--held-out.samples=1", "--vllm.max-model-len=512", "--vllm.max-num-seqs=8"]
    flags += [f"--data.train={calls}/train.jsonl", "--data.kinds=transcribe", "--data.synth=none"]
    flags += ["--engines.rollouts=vllm"]
    cluster = ["--engines.learner=deepspeed", "--cluster={learners = 2}", "--deepspeed.zero=2"]
    told = {}
    for name, more in (("one", []), ("ray", cluster)):
        command = [sys.executable, "-m", "rlspeech", "dpo", "tiny/dpo", f"--run-dir={tmp_path}/{name}", *flags, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        told[name] = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for ours, theirs in zip(told["ray"][1:], told["one"][1:], strict=True):
        for key in ("train/loss", "train/margin", "train/logps_chosen", "train/logps_rejected"):
            assert ours[key] == pytest.approx(theirs[key], rel=2e-2, abs=2e-3), key
    first, last = told["ray"][1], told["ray"][-1]
    assert first["train/margin"] == pytest.approx(0, abs=1e-4)
    assert last["train/margin"] > first["train/margin"]
    assert (tmp_path / "ray" / "checkpoint" / "config.json").is_file()
