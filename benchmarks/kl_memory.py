"""Peak memory and time of the full-vocabulary reverse KL, ours against the plain one, forward and backward.

plain: log_softmax of the [N, V] logits of both sides, and autograd. ours: rlspeech.maths.distill.full_vocabulary, which
projects a chunk of tokens at a time. The upstream gradient differs from token to token, as importance weights make it.
With a head that learns, `ours` is measured twice: with those weights announced, and without (the backward pass then
projects again).

Every measurement is a fresh process. Memory is its peak above what it held with the inputs made and the kernels warm:
resident memory on a CPU (read from Linux's /proc), allocated memory on a GPU. Variants take turns and the least time of
each counts, so that other work on the machine disturbs all alike. Where it disturbs too much, the processor's seconds
(CPU s) with --threads 1 tell more than the clock's. Goal: memory at most 1/8, time at most 1.15 of plain.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import Tensor

from rlspeech.maths.distill import full_vocabulary

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # hidden, head, teacher's hidden, teacher's head, weights
MIB = 2**20
COLUMNS = {"mib": "4.0f", "s": "7.2f", "cpu_s": "5.2f"}


def plain(hidden_ND: Tensor, head_VD: Tensor, teacher_ND: Tensor, teacher_head_VD: Tensor, weights_N: Tensor) -> Tensor:
    q_NV = torch.log_softmax(hidden_ND @ head_VD.T, dim=-1)
    p_NV = torch.log_softmax(teacher_ND @ teacher_head_VD.T, dim=-1)
    return (q_NV.exp() * (q_NV - p_NV)).sum(-1) @ weights_N


def ours(*inputs: Tensor, announced: bool) -> Tensor:
    *sides, weights_N = inputs
    return full_vocabulary(*sides, weights_N=weights_N if announced else None).nats @ weights_N


VARIANTS: dict[str, Callable[..., Tensor]] = {
    "plain": plain,
    "ours": lambda *inputs: ours(*inputs, announced=True),
    "ours, not announced": lambda *inputs: ours(*inputs, announced=False),
}


def make_inputs(tokens: int, vocabulary: int, hidden: int, *, head_learns: bool, device: str) -> Inputs:
    """A student near its teacher: the KL is some tenths of a nat."""
    generator = torch.Generator().manual_seed(0)
    states, noise = (torch.randn(tokens, hidden, generator=generator) for _ in range(2))
    head = torch.randn(vocabulary, hidden, generator=generator) / math.sqrt(hidden)
    weights = torch.rand(tokens, generator=generator) / tokens
    both = (3 * states, head, 3 * states + 0.7 * noise, head.clone(), weights)
    student, student_head, *others = (tensor.to(device) for tensor in both)
    return student.requires_grad_(), student_head.requires_grad_(head_learns), *others


def measure(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds and MiB of this process, and the value and the norm of the gradient, which all variants share."""
    torch.set_num_threads(args.threads)
    call = VARIANTS[variant]

    def once(tokens: int) -> tuple[float, float]:
        value = call(*(tensor[:tokens] if tensor.shape[0] == args.tokens else tensor for tensor in inputs))
        gradients = torch.autograd.grad(value, [tensor for tensor in inputs if tensor.requires_grad])
        return value.item(), math.sqrt(sum(float(gradient.norm() ** 2) for gradient in gradients))

    inputs = make_inputs(
        args.tokens, args.vocabulary, args.hidden, head_learns=args.head == "learned", device=args.device
    )
    once(2)
    base = forget_peak(args.device)
    times, cpu_times = [], []
    for _ in range(args.runs):
        started, cpu_started = time.perf_counter(), time.process_time()
        value, norm = once(args.tokens)
        times.append(time.perf_counter() - started)
        cpu_times.append(time.process_time() - cpu_started)
    mib = (peak_bytes(args.device) - base) / MIB
    return {"s": min(times), "cpu_s": min(cpu_times), "mib": mib, "value": value, "norm": norm}


def forget_peak(device: str) -> int:
    """Bytes held now; peak_bytes begins anew from here."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    return status_bytes("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def in_a_fresh_process(variant: str, head: str, argv: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, *argv, "--variant", variant, "--head", head]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(head: str, variants: list[str], args: argparse.Namespace, argv: list[str]) -> None:
    found: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for _ in range(args.repeats):
        for variant in variants:
            found[variant].append(in_a_fresh_process(variant, head, argv))
    least = {v: {key: min(one[key] for one in every) for key in every[0]} for v, every in found.items()}
    base = least["plain"]
    for variant, values in least.items():
        assert math.isclose(values["value"], base["value"], rel_tol=1e-4), (values, base)
        assert math.isclose(values["norm"], base["norm"], rel_tol=1e-4), (values, base)
        cells = [f"{values[key]:{form}} | {values[key] / base[key]:5.3f}" for key, form in COLUMNS.items()]
        print(f"| {head:7} | {variant:19} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes of each variant")
    parser.add_argument("--runs", type=int, default=3, help="runs in each process, the fastest counts")
    parser.add_argument("--variant", choices=VARIANTS, help="measure one alone, in this process, and print JSON")
    parser.add_argument("--head", choices=["frozen", "learned"], help="with --variant")
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args.variant, args)))
        return
    argv = sys.argv[1:]
    gpu = "" if args.device == "cpu" else f"; {torch.cuda.get_device_name()}"
    sizes = f"{args.tokens} tokens, vocabulary {args.vocabulary}, hidden size {args.hidden}, float32"
    print(f"{describe()}{gpu}\n\n{args.threads} threads, {sizes}\n")
    print("| head    | variant             |  MiB | ratio | clock s | ratio | CPU s | ratio |")
    print("|---" * 8 + "|")
    compare("frozen", ["plain", "ours"], args, argv)
    compare("learned", list(VARIANTS), args, argv)


if __name__ == "__main__":
    main()
