"""Weights into a live vLLM engine: bytes a second against a plain copy of the same bytes, by way and by bucket size.

The student is `tiny` with LoRA on all linear layers of its language model and a projector that learns. Ways:

copy      memcpy of the tensors that are sent: what no way can beat
merge     adapters added to the matrices they adapt, in the learner
tensors   to an engine in the learner's process
files     as on a cluster on a CPU: written to shared memory by the learner, mapped by the sampler, a bucket at a time

Ways take turns and the least time of each counts.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import describe
from safetensors.torch import save_file
from torch import Tensor

from rlspeech.catalog import fetch, resolve
from rlspeech.config import OptimConfig
from rlspeech.config_engines import VllmConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.vllm_engine import Layout, start
from rlspeech.students.tiny import Student

MIB = 2**20
Weights = list[tuple[str, Tensor]]


def buckets(weights: Weights, size_mib: int) -> Iterator[Weights]:
    bucket: Weights = []
    for named in weights:
        bucket.append(named)
        if sum(value.nbytes for _, value in bucket) >= size_mib * MIB:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def by_tensors(rollouts: VllmRollouts, weights: Weights, size_mib: int) -> None:
    rollouts.begin_update()
    for bucket in buckets(weights, size_mib):
        rollouts.receive({"tensors": bucket})
    rollouts.end_update(1)


def by_files(rollouts: VllmRollouts, weights: Weights, size_mib: int, folder: Path) -> None:
    rollouts.begin_update()
    for number, bucket in enumerate(buckets(weights, size_mib)):
        file = folder / f"{number}.safetensors"
        save_file({name: value.contiguous() for name, value in bucket}, file)
        rollouts.update(file)
        file.unlink()
    rollouts.end_update(1)


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, nargs="+", default=[16, 64, 256, 1024])
    args = parser.parse_args()
    folder = fetch(resolve("tiny"))
    student = Student.load(folder)
    student.prepare("distill", {"rank": 16, "alpha": 32.0, "dropout": 0.0})
    learner = TorchLearner.of(student, OptimConfig(steps=1))
    settings = VllmConfig(max_model_len=1024, max_num_seqs=8, kv_cache_gib=0.25)
    rollouts = VllmRollouts(start(folder, settings, Layout()), student, settings)
    weights = [(name, value.clone()) for name, value in learner.weights()]
    size_mib = sum(value.nbytes for _, value in weights) / MIB
    room = [torch.empty_like(value) for _, value in weights]
    with TemporaryDirectory(dir="/dev/shm") as shared:
        ways: dict[str, Callable[[], object]] = {
            "copy": lambda: [to.copy_(value) for to, (_, value) in zip(room, weights, strict=True)],
            "merge": lambda: list(learner.weights()),
        }
        for size in args.bucket_mib:
            ways[f"tensors, {size} MiB"] = lambda size=size: by_tensors(rollouts, weights, size)
            ways[f"files, {size} MiB"] = lambda size=size: by_files(rollouts, weights, size, Path(shared))
        times = {way: [] for way in ways}
        for _ in range(args.repeats):
            for way, call in ways.items():
                times[way].append(timed(call))
    least = {way: min(found) for way, found in times.items()}
    print(f"{describe()}\n\n{len(weights)} tensors, {size_mib:.0f} MiB, float32, {torch.get_num_threads()} threads\n")
    print("| way               | seconds | MiB/s | of a copy's speed |\n|---|---|---|---|")
    for way, seconds in least.items():
        print(f"| {way:17} | {seconds:7.3f} | {size_mib / seconds:5.0f} | {least['copy'] / seconds:17.3f} |")


if __name__ == "__main__":
    main()
