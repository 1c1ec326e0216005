"""Stages in order as one job that can be resumed, each from the checkpoint of another: by default the one before."""

import importlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspeech.config import AlignConfig, EvaluateConfig, PipelineConfig, ReportConfig, Stage, SynthConfig
from rlspeech.config_dpo import DpoConfig, PairsConfig
from rlspeech.errors import UserError
from rlspeech.recipe import CONFIGS, find_recipe, load, stage_of
from rlspeech.run_dir import RunDir
from rlspeech.stages.plan import check_can_run

log = logging.getLogger(__name__)

LEARNING = ("align", "sft", "distill", "dpo", "rlbr")
KNOWN = (*LEARNING, "pairs")


@dataclass(frozen=True)
class Part:
    """One stage of the job: its name, which is its recipe's and its folder's, its verb and settings."""

    name: str
    verb: str
    config: Stage | PairsConfig

    @property
    def learns(self) -> bool:
        return not isinstance(self.config, PairsConfig)

    @property
    def checkpoint(self) -> str:
        """Where the next stage begins. Pairs are those of a student, and leave it as it is."""
        return str(self.config.run_dir / "checkpoint") if self.learns else self.config.student


def run(config: PipelineConfig, *, resume: bool = False) -> None:
    """Every recipe is read and checked before the first stage begins."""
    started_s = time.monotonic()
    parts, made = read_parts(config)
    folder = RunDir.open(config.run_dir, config, resume=resume)
    try:
        for synth in made:
            importlib.import_module("rlspeech.stages.synth").run(synth)
        _run_parts(config, parts)
        importlib.import_module("rlspeech.stages.report").run(ReportConfig(run_dir=config.run_dir))
        folder.finish({"stage": "pipeline", "seconds": time.monotonic() - started_s})
    finally:
        folder.close()
    log.info("%s: %d stages in %.0f s", config.run_dir, len(parts), time.monotonic() - started_s)


def read_parts(config: PipelineConfig) -> tuple[list[Part], list[SynthConfig]]:
    """The learning stages with their folders and starting points filled in, and the data to be made first."""
    parts: list[Part] = []
    made: list[SynthConfig] = []
    for name in config.stages:
        recipe = find_recipe(name)
        verb = stage_of(recipe)
        if verb == "synth":
            made.append(load(SynthConfig, recipe, {}))
            continue
        if verb not in KNOWN:
            known = ", ".join(KNOWN)
            raise UserError(f"{recipe}: stage {verb!r} cannot be part of a pipeline; {known} and synth can")
        stage = recipe.stem
        if stage in [part.name for part in parts]:
            raise UserError(f"{recipe}: a second stage {stage!r}; their folders have the names of their recipes")
        settings = load(CONFIGS[verb], recipe, {})
        if verb in LEARNING:
            check_can_run(settings)
        update = {"run_dir": config.run_dir / stage, "seed": config.seed, **_start(settings, parts)}
        parts.append(Part(stage, verb, settings.model_copy(update=update)))
    if not any(part.learns for part in parts):
        raise UserError("stages: names no stage that learns")
    known = [part.name for part in parts if part.learns]
    for name in config.evaluations:
        if name not in known:
            log.warning("evaluations.%s: not used, no stage of this job has that name: %s", name, ", ".join(known))
    for path in {*config.evaluations.values(), *([config.evaluate] if config.evaluate else [])}:
        load(EvaluateConfig, find_recipe(path), {})
    return parts, made


def _start(settings: Stage | PairsConfig, earlier: Sequence[Part]) -> dict[str, Any]:
    """From the stage that `after` names where it is part of this job, else from the one before.

    Stage 0 without `after` starts from its own student: a road beside the first one. DPO has the pairs of the last
    stage `pairs` before it, and starts from the student whose replies they are.
    """
    named = [part for part in earlier if part.name == settings.after]
    if not earlier or (isinstance(settings, AlignConfig) and not named):
        return {}
    pairs = [part for part in earlier if not part.learns]
    if isinstance(settings, DpoConfig) and pairs and not named:
        named = pairs
    start = {"student": (named or earlier)[-1].checkpoint, "after": None}
    if isinstance(settings, DpoConfig) and pairs and not settings.online:
        start |= {"pairs": pairs[-1].config.run_dir / "pairs.jsonl", "make": None}
    return start


def _run_parts(config: PipelineConfig, parts: Sequence[Part]) -> None:
    """Evaluations stand before the first stage and after each; what is finished is not run again."""
    _evaluate(config, "start", parts[0].config.student, None)
    previous = "start"
    for part in parts:
        log.info("== %s", part.name)
        importlib.import_module(f"rlspeech.stages.{part.verb}").run(part.config, resume=True)
        if part.learns:
            _evaluate(config, part.name, part.checkpoint, previous)
            previous = part.name


def _evaluate(config: PipelineConfig, after: str, student: str, previous: str | None) -> None:
    recipe = config.evaluations.get(after, config.evaluate)
    if recipe is None:
        return
    folder = config.run_dir / f"evaluate-{after}"
    if (folder / "done.json").is_file():
        return
    _drop_unfinished(folder)
    settings = load(EvaluateConfig, find_recipe(recipe), {"student": student, "run_dir": str(folder)})
    reuse = config.run_dir / f"evaluate-{previous}" if previous else None
    update = {"after": after, "seed": config.seed, "reuse": reuse}
    importlib.import_module("rlspeech.stages.evaluate").run(settings.model_copy(update=update))


def _drop_unfinished(folder: Path) -> None:
    """An evaluation that was cut off holds its settings and no result: it is made anew."""
    for name in ("config.toml", "environment.json", ".lock"):
        (folder / name).unlink(missing_ok=True)
