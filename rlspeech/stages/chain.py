"""The checkpoint a stage starts from: the stage before is run first where it has not been."""

import importlib
import logging
import tomllib
from pathlib import Path
from typing import cast

from rlspeech.catalog import resolve
from rlspeech.config import Stage
from rlspeech.config_dpo import PairsConfig
from rlspeech.errors import UserError
from rlspeech.recipe import CONFIGS, find_recipe, load, shipped_recipes, stage_of

log = logging.getLogger(__name__)

BEFORE = ("align", "sft", "distill")  # verbs of what a stage may start from


def starting_point(config: Stage | PairsConfig) -> str:
    """What `student` names, or, with `after`, the checkpoint of that stage in the run folder beside this one.

    A student given as a folder is taken as it is. Where the stage before has no finished run, its recipe of the same
    family is run on the same data with the same seed; one that was cut off is resumed.
    """
    if config.after is None or resolve(config.student).folder is not None:
        return config.student
    recipe = f"{config.student}/{config.after}"
    known = [name.partition("/")[2] for name in shipped_recipes() if name.startswith(f"{config.student}/")]
    if config.after not in known or (verb := stage_of(find_recipe(recipe))) not in BEFORE:
        raise UserError(f"after = {config.after!r}: no recipe {recipe} of {', '.join(BEFORE)}")
    folder = config.run_dir.parent / config.after
    before = _settings(config, verb, recipe, folder)
    if not (folder / "done.json").is_file():
        log.info("%s: no finished run in %s, so `%s` runs first", config.student, folder, config.after)
        importlib.import_module(f"rlspeech.stages.{verb}").run(before, resume=True)
    else:
        refuse_another(folder, before)
    return str(folder / "checkpoint")


def _settings(config: Stage | PairsConfig, verb: str, recipe: str, folder: Path) -> Stage:
    given = {"student": config.student, "run_dir": str(folder)}
    before = cast("Stage", load(CONFIGS[verb], find_recipe(recipe), given))
    shared = {"train": config.data.train, "tests": config.data.tests, "synth": config.data.synth}
    own = {"seed": config.seed, "threads": config.threads, "trust_remote_code": config.trust_remote_code}
    return before.model_copy(update={"data": before.data.model_copy(update=shared), **own})


def refuse_another(
    folder: Path, before: Stage | PairsConfig, *, instead: str = "name its checkpoint as --student"
) -> None:
    """A finished run of another seed or other data is no start for this one: it would be taken in silence."""
    made = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    wanted = {"seed": before.seed, "student": before.student, "data.train": str(before.data.train)}
    found = {"seed": made.get("seed"), "student": made.get("student"), "data.train": made.get("data", {}).get("train")}
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(
                f"{folder}: made with {key} = {found[key]!r}, this run wants {value!r}; "
                f"{instead}, or choose another --run-dir"
            )
