"""RLBR against plain word errors as the reward, groups without the reference, and more supervised steps; docs/rlbr.md.

The tiny pair on sentences with invented names: no name of the test set, said or only listed, is in the training set.
One start for all; each arm learns from it with several seeds and the same budget. What is finished is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlspeech.maths.text import raw_words

CORES = len(os.sched_getaffinity(0))
SIZES = (10, 50, 100)
MEASURES = {"b_wer": "B-WER", "u_wer": "U-WER", "wer": "WER"}
START = "start"
ARMS: Mapping[str, Sequence[str]] = {
    "rlbr": [],
    "plain": ["--rewards.biasing.reward", "wer"],
    "no-reference": ["--groups.reference", "off"],
    "sft": [],  # no rewards: the transcripts of as many audios as the others see, with lists
}
LEARNING = ["--held-out.samples", "10", "--held-out.every-steps", "1000", "--checkpoints.every-steps", "1000"]
LEARNING += ["--optim.micro-batch", "3"]


def main() -> None:
    args = arguments()
    out: Path = args.out
    lists = [f"--lists.options={{size_low = 5, size_high = {args.longest}, hard = 0.5}}"]
    rlspeech(CORES, "align", "tiny/align_calls", "--run-dir", out / "align_calls", "--resume")
    sft = ["--student", out / "align_calls/checkpoint", "--run-dir", out / "sft_calls", "--optim.steps", args.sft_steps]
    rlspeech(CORES, "sft", "tiny/sft_calls", *sft, *LEARNING, "--resume")
    start = out / "sft_calls/checkpoint"
    threads = CORES // args.jobs or 1
    runs = [(arm, seed) for seed in args.seeds for arm in args.arms]

    def one(run: tuple[str, int]) -> None:
        arm, seed = run
        folder = out / f"{arm}-{seed}"
        verb, recipe = ("sft", "tiny/sft_calls") if arm == "sft" else ("rlbr", "tiny/rlbr")
        more = ["--seed", seed, "--optim.steps", args.steps, "--optim.batch", args.batch, *lists, *LEARNING]
        more += ["--sampling.n", args.n, "--optim.lr", args.lr, *ARMS[arm]] if verb == "rlbr" else []
        rlspeech(threads, verb, recipe, "--student", start, "--run-dir", folder, *more, "--resume")
        evaluate(args, folder / "checkpoint", f"{arm}-{seed}")

    with ThreadPoolExecutor(args.jobs) as pool:
        first = pool.submit(evaluate, args, start, START)
        list(pool.map(one, runs))
        first.result()
    show(out, args.arms, args.seeds)
    show_misses(out, [START, *(f"{arm}-{args.seeds[0]}" for arm in args.arms)])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-calls/experiment"), help="folder of all runs")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="what is compared")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of each arm")
    parser.add_argument("--sft-steps", type=int, default=30, help="steps of the supervised start, without lists")
    parser.add_argument("--steps", type=int, default=22, help="steps of each arm")
    parser.add_argument("--batch", type=int, default=8, help="audios a step")
    parser.add_argument("--n", type=int, default=4, help="replies to each")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of each arm")
    parser.add_argument("--longest", type=int, default=40, help="longest list that is learned from")
    parser.add_argument("--samples", type=int, default=48, help="held-out sentences")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each with its share of the cores")
    return parser.parse_args()


def evaluate(args: argparse.Namespace, student: Path, name: str) -> None:
    folder = args.out / f"evaluate-{name}"
    if (folder / "done.json").is_file():
        return
    options = ["--student", student, f"--lists.sizes={[*SIZES]}", "--evaluation.samples", args.samples, "--after", name]
    rlspeech(CORES // args.jobs or 1, "evaluate", "tiny/evaluate_calls", "--run-dir", folder, *options)


def rlspeech(threads: int, *words: object) -> None:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "rlspeech", *map(str, words), "--threads", str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found = subprocess.run(command, env=environment, check=False)
    if found.returncode:
        raise SystemExit(f"{' '.join(command)}: status {found.returncode}")


def show(out: Path, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """A table in Markdown: means over the seeds, and their standard deviation; the change is relative to the start."""
    start = scores(out, START)
    print("| run | list | " + " | ".join(MEASURES.values()) + " | B-WER, relative to the start |")
    print("|---|---|" + "---|" * (len(MEASURES) + 1))
    for size in SIZES:
        print(f"| start | {size} | " + " | ".join(f"{start[size][key]:.1%}" for key in MEASURES) + " | |")
        for arm in arms:
            found = [scores(out, f"{arm}-{seed}")[size] for seed in seeds]
            cells = [spread([one[key] for one in found]) for key in MEASURES]
            change = [one["b_wer"] / start[size]["b_wer"] - 1 for one in found]
            print(f"| {arm} | {size} | " + " | ".join(cells) + f" | {spread(change, sign='+')} |")


def show_misses(out: Path, names: Sequence[str]) -> None:
    """What is written where a rare word is missed: another word of the list, or one of the student's own."""
    print("\n| run | list | names missed | of these, with another listed name in the reply |\n|---|---|---|---|")
    for name in names:
        found = json.loads((out / f"evaluate-{name}/evaluation.json").read_text(encoding="utf-8"))["samples"]
        for size in SIZES:
            rows = [row for row in found if row["set"] == f"test_calls_{size}"]
            missed = [swapped for row in rows for swapped in swaps(row)]
            total = sum(len(rare_words(row)) for row in rows)
            print(f"| {name} | {size} | {len(missed)} of {total} | {sum(missed) / max(1, len(missed)):.0%} |")


def rare_words(row: Mapping[str, Any]) -> set[str]:
    """Listed words that are said: the calls say no other listed ones."""
    return {one for one in listed(row) if one in f" {' '.join(raw_words(row['reference']))} "}


def listed(row: Mapping[str, Any]) -> set[str]:
    words = row["instruction"].partition("These words may be said: ")[2].split(", ")
    return {f" {' '.join(raw_words(word))} " for word in words if word}


def swaps(row: Mapping[str, Any]) -> list[bool]:
    """Of each rare word that the reply has not: whether it has a listed one that is not said."""
    reply, rare = f" {' '.join(raw_words(row['reply']))} ", rare_words(row)
    has_another = any(one in reply for one in listed(row) - rare)
    return [has_another for one in rare if one not in reply]


def scores(out: Path, name: str) -> dict[int, dict[str, float]]:
    sets = json.loads((out / f"evaluate-{name}/evaluation.json").read_text(encoding="utf-8"))["sets"]
    return {size: sets[f"test_calls_{size}"]["student"] for size in SIZES}


def spread(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.1%} ± {100 * deviation:.1f}"


if __name__ == "__main__":
    main()
