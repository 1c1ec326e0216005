"""The checkpoint a stage starts from: the stage before is run first where it has not been."""

import importlib
import logging
from pathlib import Path

from rlspeech.config import AlignConfig, DistillConfig, SftConfig, Stage
from rlspeech.errors import UserError
from rlspeech.recipe import find_recipe, load

log = logging.getLogger(__name__)

BEFORE: dict[str, type[Stage]] = {"align": AlignConfig, "sft": SftConfig, "distill": DistillConfig}


def starting_point(config: Stage) -> str:
    """What `student` names, or, with `after`, the checkpoint of that stage in the run folder beside this one.

    A student given as a folder is taken as it is. Where the stage before has no finished run, its recipe of the same
    family is run on the same data with the same seed; one that was cut off is resumed.
    """
    if config.after is None or Path(config.student).is_dir():
        return config.student
    if config.after not in BEFORE:
        raise UserError(f"after = {config.after!r}: no such stage; known: {', '.join(BEFORE)}")
    folder = config.run_dir.parent / config.after
    if not (folder / "done.json").is_file():
        log.info("%s: no finished run in %s, so `%s` runs first", config.student, folder, config.after)
        before = _settings(config, config.after, folder)
        importlib.import_module(f"rlspeech.stages.{config.after}").run(before, resume=True)
    return str(folder / "checkpoint")


def _settings(config: Stage, stage: str, folder: Path) -> Stage:
    given = {"student": config.student, "run_dir": str(folder)}
    before = load(BEFORE[stage], find_recipe(f"{config.student}/{stage}"), given)
    shared = {"train": config.data.train, "tests": config.data.tests, "synth": config.data.synth}
    data = before.data.model_copy(update=shared)
    return before.model_copy(update={"data": data, "seed": config.seed, "threads": config.threads})
