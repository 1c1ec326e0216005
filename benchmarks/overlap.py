"""Does sampling hide behind learning? Seconds of a step on Ray with max_policy_lag 0 and 1.

Two short runs of recipes/tiny/distill_ray.toml, one rollout engine, one teacher engine and one learner rank, each with
`--threads` CPU threads. Printed for each: the median seconds of a step, of what is done before learning (weights,
sampling, scoring) and of learning. With lag 0 a step is the sum of the two; the goal with lag 1 is at most 1.15 times
the longer of them, on a machine with cores for both at once. The first two steps are left out: caches are cold.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from machine import describe

WARM_UP = 2


def run(lag: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Metrics of the steps of one run."""
    settings = {
        "--max-policy-lag": lag,
        "--threads": arguments.threads,
        "--cluster.learners": 1,
        "--optim.steps": arguments.steps + WARM_UP,
        "--optim.batch": arguments.batch,
        "--held-out.samples": 1,
        "--checkpoints.every-steps": 1000,
        "--data.train": Path(arguments.data) / "train.jsonl",
        "--data.tests.test_voice": Path(arguments.data) / "test_voice.jsonl",
        "--data.tests.test_text": Path(arguments.data) / "test_text.jsonl",
        "--student": arguments.student,
        "--run-dir": folder,
    }
    flags = [str(part) for pair in settings.items() for part in pair]
    command = [sys.executable, "-m", "rlspeech", "distill", "tiny/distill_ray", *flags, "--quiet"]
    subprocess.run(command, check=True)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] > WARM_UP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--student", default="runs/tiny/quickstart/sft/checkpoint", help="folder (default: %(default)s)"
    )
    parser.add_argument("--data", default="runs/tiny/quickstart/data", help="manifests (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps that count (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="audios a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each engine (default: %(default)s)")
    arguments = parser.parse_args()
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        for lag in (0, 1):
            rows = run(lag, arguments, Path(folder) / f"lag-{lag}")
            step_s = median(row["time/step_s"] for row in rows)
            before_s = median(row["time/sync_s"] + row["time/sample_s"] + row["time/score_s"] for row in rows)
            learn_s = median(row["time/learn_s"] for row in rows)
            longest = max(before_s, learn_s)
            print(
                f"max_policy_lag {lag}: step {step_s:.2f} s, before it {before_s:.2f} s, learning {learn_s:.2f} s;"
                f" step / longer part {step_s / longest:.2f}, step / sum {step_s / (before_s + learn_s):.2f}"
            )


if __name__ == "__main__":
    main()
