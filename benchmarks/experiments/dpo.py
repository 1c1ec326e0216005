"""Faults in the replies of the tiny student before and after DPO, on held-out speech; docs/dpo.md.

Speech with long lists, on which a small student loops: sft and distill on it, and then for each seed pairs of the
student's own replies, DPO on them, and the evaluation of before and after. What is finished is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0))
MEASURES: Mapping[str, str] = {
    "repetitive": "repeating",
    "unsupported": "unsaid",
    "wer": "WER",
    "answerable": "right, of questions with an answer",
    "not_said": "right, of questions without",
    "kl_nats": "KL to the teacher, nats a token",
    "kl_faultless": "the same, of questions answered without a fault before",
    "kl_reply": "KL to the teacher, nats a reply",
}
START, NOT_SAID = "start", "not_said"
TOKENS = 48  # of a reply at most


def main() -> None:
    args = arguments()
    out: Path = args.out
    student = distilled(args)
    evaluate(args, student, START)
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(partial(preferring, args, student), args.seeds))
    show(out, [f"dpo-{seed}" for seed in args.seeds])
    show_list(out, f"dpo-{args.seeds[0]}")


def preferring(args: argparse.Namespace, student: Path, seed: int) -> None:
    """Pairs of the student's replies, DPO on them, and what comes of it."""
    out: Path = args.out
    pairs, dpo = out / f"pairs-{seed}", out / f"dpo-{seed}"
    data = ["--data.train", out / "data/train.jsonl", "--data.synth=None"]
    own = [*data, "--student", student, "--seed", seed, "--resume", "--threads", args.threads]
    replies = ["--replies.max-tokens", TOKENS, "--recordings", args.recordings, "--batch", 8]
    rlspeech("pairs", "tiny/pairs", *own, "--run-dir", pairs, *replies)
    more = ["--pairs", pairs / "pairs.jsonl", "--optim.steps", args.steps, "--optim.batch", 16]
    more += ["--held-out.samples", 1, "--sampling.max-tokens", TOKENS, *tests(out)]
    rlspeech("dpo", "tiny/dpo", *own, "--run-dir", dpo, *more)
    evaluate(args, dpo / "checkpoint", f"dpo-{seed}")


def distilled(args: argparse.Namespace) -> Path:
    """The student that all begin with."""
    out: Path = args.out
    synth = ["--out", out / "data", "--options={long_lists = 0.4}"]
    rlspeech("synth", "tiny/synth", *synth)
    own = [*tests(out), "--data.train", out / "data/train.jsonl", "--resume", "--threads", args.threads]
    rlspeech("sft", "tiny/sft", *own, "--student", args.student, "--run-dir", out / "sft")
    more = ["--student", out / "sft/checkpoint", "--run-dir", out / "distill", "--sampling.max-tokens", TOKENS]
    rlspeech("distill", "tiny/distill", *own, *more, "--optim.steps", 11)
    return out / "distill/checkpoint"


def tests(out: Path) -> list[object]:
    sets = [f"--data.tests.{name}={out / 'data' / name}.jsonl" for name in ("test_voice", "test_text")]
    return [*sets, "--data.synth=None"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny-dpo"), help="folder of all runs")
    start = Path("runs/tiny/quickstart/align/checkpoint")
    parser.add_argument("--student", type=Path, default=start, help="aligned student that sft begins with")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of replies, pairs and DPO")
    parser.add_argument("--recordings", type=int, default=24, help="whose replies make pairs")
    parser.add_argument("--steps", type=int, default=24, help="of DPO, 16 pairs each")
    parser.add_argument("--samples", type=int, default=20, help="held-out recordings of each set")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at once, each with its share of the cores")
    args = parser.parse_args()
    args.threads = CORES // args.jobs or 1
    return args


def evaluate(args: argparse.Namespace, student: Path, name: str) -> None:
    folder = args.out / f"evaluate-{name}"
    if not (folder / "done.json").is_file():
        limits = ["--evaluation.samples", args.samples, "--evaluation.max-tokens", TOKENS, "--threads", args.threads]
        options = ["--student", student, "--run-dir", folder, "--after", name, *limits, *tests(args.out)]
        first = args.out / f"evaluate-{START}"
        rlspeech("evaluate", "tiny/evaluate", *options, *(["--reuse", first] if first.is_dir() else []))


def rlspeech(*words: object) -> None:
    """A command in a process of its own."""
    command = [sys.executable, "-m", "rlspeech", *map(str, words)]
    threads = str(words[words.index("--threads") + 1]) if "--threads" in words else str(CORES)
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    if (found := subprocess.run(command, env=environment, check=False)).returncode:
        raise SystemExit(f"{' '.join(command)}: status {found.returncode}")


def show(out: Path, after: list[str]) -> None:
    """A table in Markdown: the mean over the held-out sets; after DPO mean and standard deviation over the seeds."""
    before, found = scores(out, START), [scores(out, name) for name in after]
    print(f"| | before | after, {len(after)} seeds | relative |\n|---|---|---|---|")
    for key, name in MEASURES.items():
        values = [one[key] for one in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.mean(values)
        change = f"{mean / before[key] - 1:+.0%}" if before[key] else ""
        as_text = (lambda value: f"{value:.2f}") if key.startswith("kl") else (lambda value: f"{value:.1%}")
        print(f"| {name} | {as_text(before[key])} | {as_text(mean)} ± {as_text(spread)} | {change} |")


def show_list(out: Path, after: str) -> None:
    """The first question for a list that a loop was the answer to, with the reply after DPO."""
    was, now = ({one["id"]: one for one in evaluation(out, name)["samples"]} for name in (START, after))
    looped = [key for key, one in was.items() if one["kind"] == "list" and "repeated_lines" in one["faults"]]
    again = sum("repeated_lines" in now[key]["faults"] for key in looped)
    print(f"\nquestions for a list: {len(looped)} looped before, {again} of them in {after}")
    for key in looped[:1]:
        print(f"transcript: {was[key]['transcript']}\nbefore: {was[key]['reply']}\nafter: {now[key]['reply']}")


def evaluation(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"evaluate-{name}/evaluation.json").read_text(encoding="utf-8"))


def scores(out: Path, name: str) -> dict[str, float]:
    """Means over the held-out sets."""
    found = evaluation(out, name)
    faultless = {one["id"] for one in evaluation(out, START)["samples"] if not one["faults"]}
    rows = []
    for place, one in found["sets"].items():
        kinds = Counter(row["kind"] for row in found["samples"] if row["set"] == place)
        right = one["student"]["by_kind"]
        answered = [kind for kind in right if kind != NOT_SAID]
        share = sum(right[kind] * kinds[kind] for kind in answered) / sum(kinds[kind] for kind in answered)
        compared = [row for row in found["samples"] if row["set"] == place and row["kl_nats"]]
        same = [value for row in compared if row["id"] in faultless for value in row["kl_nats"]]
        kl = {
            "kl_reply": statistics.mean(sum(row["kl_nats"]) for row in compared),
            "kl_faultless": statistics.mean(same),
        }
        rows.append({**one["student"], **kl, "answerable": share, NOT_SAID: right[NOT_SAID]})
    return {key: statistics.mean(row[key] for row in rows) for key in MEASURES}


if __name__ == "__main__":
    main()
