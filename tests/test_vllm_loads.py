"""The folder that a stage writes is one that vLLM loads natively and answers from as transformers does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from rlspeech.config import TestsConfig
from rlspeech.engines.merging import merged_weights
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.protocols import Sampling
from rlspeech.stages.hearing import flat, hear, listen, read_samples, recordings_of
from rlspeech.students.tiny import Student


def test_vllm_answers_from_a_saved_checkpoint_as_transformers_does(tiny_folder: Path, spoken: Path, tmp_path) -> None:
    """The real tiny student with an adapter that has an effect: equal ids and replies, log-probs to 1e-3."""
    student = Student.load(tiny_folder)
    student.prepare("sft", {"rank": 4, "alpha": 8.0, "dropout": 0.0})
    torch.manual_seed(0)
    for name, value in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.02)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    student.save(checkpoint, dict(merged_weights(student)))
    samples = recordings_of(read_samples(spoken / "train.jsonl", TestsConfig(), ("audio",)), 1)[:3]
    samples, prompts = flat(hear(student, listen(samples)))
    ours = TransformersRollouts(student).generate(samples, prompts, Sampling(max_tokens=12))
    np.save(tmp_path / "sound.npy", prompts[0].features)
    form = "<|im_start|>user\n<sound>{}<|im_end|>\n<|im_start|>assistant\n"
    asked = json.dumps([form.format(sample.instruction) for sample in samples])
    script = Path(__file__).with_name("vllm_replies.py")
    command = [sys.executable, str(script), str(checkpoint), str(tmp_path / "sound.npy"), asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = json.loads(done.stdout.splitlines()[-1])
    for rollout, (prompt_ids, token_ids, logprobs) in zip(ours, theirs, strict=True):
        assert tuple(prompt_ids) == rollout.prompt.token_ids
        assert tuple(token_ids) == rollout.completion.token_ids
        assert np.allclose(logprobs, rollout.completion.logprobs, atol=1e-3)
