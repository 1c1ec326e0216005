"""Our rollouts against vLLM's own `generate` on the same requests: tokens a second. Goal: at least 0.95 of vLLM's.

The student is `tiny`; each prompt hears its own audio. Both get the same prompts and the same settings (log-probs,
fixed lengths) and have the same caches, emptied before every run. They take turns; the best of each are compared, and
the medians are shown, which tell how quiet the machine was.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from machine import describe

from rlspeech.catalog import fetch, resolve
from rlspeech.config_engines import VllmConfig
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.vllm_engine import Layout, start
from rlspeech.protocols import Sampling
from rlspeech.students.tiny import Student
from rlspeech.types import Prompt, Sample, Waveform

WARM_UP = 2  # runs of each: kernels are compiled in them


class Endless:
    """The student whose replies end at a token that is never drawn: all have one length."""

    def __init__(self, student: Student) -> None:
        self._student, self.end_token_id = student, student.placeholder_id

    def __getattr__(self, name: str) -> object:
        return getattr(self._student, name)


def asked(student: Student, count: int) -> tuple[list[Sample], list[Prompt]]:
    samples = [Sample(str(index), "Transcribe the speech.") for index in range(count)]
    sounds = [np.random.default_rng(index).normal(scale=0.1, size=48_000).astype(np.float32) for index in range(count)]
    prompts = [
        replace(student.render(sample, Waveform(sound, 16_000)), audio_key=sample.id)
        for sample, sound in zip(samples, sounds, strict=True)
    ]
    return samples, prompts


def tokens_per_s(call: Callable[[], int]) -> float:
    started = time.perf_counter()
    tokens = call()
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--n", type=int, default=4, help="replies to each prompt")
    parser.add_argument("--tokens", type=int, default=16, help="of each reply")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    folder = fetch(resolve("tiny"))
    settings = VllmConfig(max_model_len=512, max_num_seqs=32, kv_cache_gib=0.5)
    student = Endless(Student.load(folder, weights=False))
    rollouts = VllmRollouts(start(folder, settings, Layout()), student, settings)
    samples, prompts = asked(student, args.prompts)
    sampling = Sampling(args.tokens, temperature=1.0, n=args.n)

    def ours() -> int:
        found = rollouts.generate(samples, prompts, sampling)
        return sum(len(one.completion.token_ids) for one in found)

    def theirs() -> int:
        given = [student.vllm_input(prompt) for prompt in prompts]
        how = [rollouts.params(sampling, seed) for seed in range(args.prompts)]
        found = rollouts.llm.generate(given, how, use_tqdm=False)
        return sum(len(reply.token_ids) for one in found for reply in one.outputs)

    speeds: dict[str, list[float]] = {"vLLM": [], "ours": []}
    for _ in range(args.repeats + WARM_UP):
        for name, call in (("vLLM", theirs), ("ours", ours)):
            rollouts.forget()
            speeds[name].append(tokens_per_s(call))
    warm = {name: found[WARM_UP:] for name, found in speeds.items()}
    print(f"{describe()}\n\n{torch.get_num_threads()} threads, {args.prompts} prompts, {args.n} replies to each\n")
    print("| rollouts | best tokens/s | of vLLM's | median | of vLLM's |\n|---|---|---|---|---|")
    for name, found in warm.items():
        best, middle = max(found), median(found)
        shares = best / max(warm["vLLM"]), middle / median(warm["vLLM"])
        print(f"| {name:8} | {best:13.1f} | {shares[0]:9.3f} | {middle:6.1f} | {shares[1]:9.3f} |")


if __name__ == "__main__":
    main()
