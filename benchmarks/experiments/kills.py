"""`rlspeech pipeline`, killed at random moments and started again, beside the same job left alone: the same numbers?

Ends with status 1 where a held-out number, a reply or a pair differs. docs/dpo.md tells what was found.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from rlspeech.config import EvaluateConfig, PipelineConfig
from rlspeech.recipe import CONFIGS, dump_toml, find_recipe, load, stage_of

FIRST_S = 4.0  # no kill before the command has begun
LEARNS = {"optim.steps": "3", "checkpoints.every_steps": "1", "held_out.samples": "1"}
SHORT = {  # settings of a stage's shortened recipe
    "align": {"frames.steps": "80", "optim.steps": "3", "checkpoints.every_steps": "1"},
    "sft": {"optim.steps": "4", "checkpoints.every_steps": "1"},
    "distill": LEARNS,
    "pairs": {"recordings": "6", "batch": "2"},
    "dpo": LEARNS,
    "rlbr": LEARNS,
}


def main() -> None:
    args = arguments()
    if args.short:
        args.recipe = shortened(args.recipe, args.out / "recipes")
    whole: Path = args.uncut or args.out / "whole"
    if not (whole / "done.json").is_file():
        start(args, whole).wait()
    length_s = json.loads((whole / "done.json").read_text())["seconds"]
    rng, cut = random.Random(args.seed), args.out / "cut"
    for number in range(1, args.kills + 1):
        after_s = rng.uniform(FIRST_S, max(2 * FIRST_S, args.share * length_s / args.kills))
        if not killed(start(args, cut), after_s):
            raise SystemExit(f"{cut}: finished before kill {number}; lower --share")
        print(f"kill {number} of {args.kills}, {after_s:.0f} s after the start, in {under_way(cut)}", flush=True)
    if status := start(args, cut).wait():
        raise SystemExit(f"{cut}: ended with status {status}")
    different = [name for name in results(whole, cut) if told(whole / name) != told(cut / name)]
    print(f"{len(results(whole, cut))} files compared; different: {', '.join(different) or 'none'}")
    raise SystemExit(bool(different))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--recipe", default="tiny/summarize", help="of the pipeline")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"), help="folder of both runs")
    parser.add_argument("--uncut", type=Path, help="run folder of the same job that was left alone; default: made here")
    parser.add_argument("--short", action="store_true", help="a few steps of each stage")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--share", type=float, default=1.2, help="of the uncut time, twice the mean of all times to a kill together"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    return parser.parse_args()


def shortened(recipe: str, folder: Path) -> str:
    """The pipeline with a few steps of each stage: its recipes, written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    config = load(PipelineConfig, find_recipe(recipe), {})
    stages: list[str] = []
    for name in config.stages:
        file = find_recipe(name)
        if (verb := stage_of(file)) in SHORT:
            (folder / file.name).write_text(dump_toml(load(CONFIGS[verb], file, SHORT[verb])))
            stages.append(str(folder / file.name))
        else:
            stages.append(str(name))
    evaluate = find_recipe(config.evaluate or "tiny/evaluate")
    (folder / evaluate.name).write_text(dump_toml(load(EvaluateConfig, evaluate, {"evaluation.samples": "2"})))
    update = {"stages": stages, "evaluate": folder / evaluate.name}
    (folder / "pipeline.toml").write_text(dump_toml(config.model_copy(update=update)))
    return str(folder / "pipeline.toml")


def start(args: argparse.Namespace, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "rlspeech", "pipeline", args.recipe, f"--run-dir={folder}", "--resume", "--quiet"]
    return subprocess.Popen(command, start_new_session=True)


def killed(process: subprocess.Popen, after_s: float) -> bool:
    """All that it has started, too, without a word; False where it had ended."""
    time.sleep(after_s)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def under_way(folder: Path) -> str:
    """The stage or evaluation that was begun last."""
    begun = [file for file in folder.glob("*/config.toml") if not (file.parent / "done.json").exists()]
    return max(begun, key=lambda file: file.stat().st_mtime).parent.name if begun else "no stage"


def results(*folders: Path) -> list[str]:
    """Evaluations and pairs of any of the runs."""
    patterns = ("evaluate-*/evaluation.json", "*/pairs.jsonl", "*/metrics.jsonl")
    return sorted({str(file.relative_to(one)) for one in folders for p in patterns for file in one.glob(p)})


def told(file: Path) -> object:
    """What must be equal: all but times, and the names of folders."""
    if not file.is_file():
        return None
    if file.name == "evaluation.json":
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [{key: value for key, value in row.items() if key != "audio"} for row in found["samples"]]
        return found["sets"], rows
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not is_timed(key)} for row in rows]


def is_timed(key: str) -> bool:
    return key == "audio" or key.startswith("time/") or key.endswith("tokens_per_s")


if __name__ == "__main__":
    main()
