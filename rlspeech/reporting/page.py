"""The report: jobs as one HTML page that holds everything it shows and asks nothing of any network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlspeech.reporting import curves
from rlspeech.reporting.curves import Chart, charts
from rlspeech.reporting.read_runs import Job, Stage, roads_of
from rlspeech.reporting.samples import Shown, Step, first_and_last, legend, shown_samples
from rlspeech.reporting.summary import summary_of
from rlspeech.reporting.tables import Table, Tile, by_kind, held_out, overview, tiles

HERE = Path(__file__).parent
SHOWN_SETTINGS = (
    ("optim.steps", "steps"),
    ("optim.batch", "batch"),
    ("optim.lr", "learning rate"),
    ("lora.rank", "LoRA rank"),
    ("loss", "loss"),
    ("sampling.temperature", "temperature"),
)
TITLES = {
    "align": "the projector learns to place speech where the language model can read it",
    "sft": "projector and adapter learn to answer instructions about audio",
    "distill": "the student's own replies move towards what the teacher would have written",
    "pairs": "the student writes several replies to each audio, of which pairs are made: one faultless, one rejected",
    "dpo": "of two replies to the same audio the faultless one is made more likely, the rejected one less",
    "rlbr": "of its own replies and the right transcript, what the rewards prefer is made more likely",
}


@dataclass(frozen=True)
class StageView:
    name: str
    title: str
    state: str
    finished: bool
    facts: tuple[tuple[str, str], ...]
    settings: str
    charts: Sequence[Chart]
    more_charts: Sequence[Chart]
    steps: Sequence[Step]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class JobView:
    name: str
    anchor: str
    folder: str
    facts: tuple[tuple[str, str], ...]
    command: str
    tiles: Sequence[Sequence[Tile]]  # of each road
    tables: Sequence[Table]
    kinds: Table | None
    stages: Sequence[StageView]
    samples: Sequence[Shown]
    missing: tuple[str, ...]


def page(jobs: Sequence[Job], *, samples: int) -> str:
    """The HTML; `samples` of each job are shown with their sound. Reads no file but the recordings."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    views = [job_view(job, f"run-{index}", samples) for index, job in enumerate(jobs, 1)]
    return environment.get_template("page.html").render(
        jobs=views,
        overview=overview([summary_of(job) for job in jobs]) if len(jobs) > 1 else None,
        legend=legend(),
        style=(HERE / "style.css").read_text(encoding="utf-8"),
        made=_day(datetime.now(UTC).isoformat()),
        size=curves,
    )


def job_view(job: Job, anchor: str, samples: int) -> JobView:
    roads = roads_of(job)
    missing = [f"{folder.name}: this evaluation has not finished" for folder in job.unfinished]
    if not job.evaluations:
        missing.append("No evaluation was run, so there are no held-out numbers and no samples: see rlspeech evaluate.")
    if not job.stages:
        missing.append("No learning stage is in this folder, so there are no curves.")
    return JobView(
        job.name,
        anchor,
        str(job.folder),
        tuple(_facts(job)),
        " ".join(map(str, _environment(job).get("command", []))),
        [tiles(summary_of(road)) for road in roads],
        [held_out(road, summary_of(road)) for road in roads],
        next(filter(None, map(by_kind, roads)), None),
        [stage_view(stage) for stage in job.stages],
        shown_samples(job, samples),
        tuple(missing),
    )


def stage_view(stage: Stage) -> StageView:
    settings = flat(stage.settings)
    steps = max((record["step"] for record in stage.metrics if isinstance(record.get("step"), int)), default=0)
    known, more = charts([*stage.frames, *stage.metrics])
    missing = (
        []
        if stage.metrics or stage.verb == "pairs"
        else ["No step was recorded in metrics.jsonl, so there are no curves of this stage."]
    )
    if stage.verb in ("distill", "dpo", "rlbr") and not stage.rollouts:
        missing.append("No rollout was written down in rollouts.jsonl.")
    state = "finished" if stage.done else f"not finished: {steps} of {settings.get('optim.steps', 'unknown')} steps"
    facts = [(name, _text(settings[key])) for key, name in SHOWN_SETTINGS if key in settings]
    if stage.verb == "pairs" and stage.done:
        facts.append(("pairs", str(stage.done.get("pairs", "unknown"))))
    if lasted := _lasted(stage):
        facts.append(("took", lasted))
    if stage.resumes:
        facts.append(("resumed", f"{stage.resumes} time{'s' * (stage.resumes > 1)}"))
    return StageView(
        stage.name,
        TITLES.get(stage.verb, ""),
        state,
        stage.done is not None,
        tuple(facts),
        "\n".join(f"{key} = {_text(value)}" for key, value in settings.items()),
        known,
        more,
        first_and_last(stage),
        tuple(missing),
    )


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flat({"seed": 1, "optim": {"lr": 0.1}})
    {'seed': 1, 'optim.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _facts(job: Job) -> list[tuple[str, str]]:
    """What the header tells of a job; what is not known is said to be unknown."""
    first = job.stages[0].settings if job.stages else {}
    teachers = [stage.settings.get("teacher") for stage in job.stages]
    teachers += [evaluation.results.teacher for evaluation in job.evaluations]
    student = first.get("student") or next((e.results.student for e in job.evaluations), None)
    environment = _environment(job)
    packages = environment.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in ("rlspeech", "torch", "transformers") if name in packages]
    python = [f"Python {environment['python']}"] if environment.get("python") else []
    machine = [str(environment["platform"])] if environment.get("platform") else []
    machine += [f"{environment['cores']} cores"] if environment.get("cores") else []
    machine += [f"{environment['memory_gib']} GiB"] if environment.get("memory_gib") else []
    seed = job.settings.get("seed", first.get("seed"))
    started = environment.get("started")
    found = {
        "Student": student,
        "Teacher": next((teacher for teacher in teachers if teacher), "none"),
        "Started": _day(started) if started else None,
        "Seed": None if seed is None else str(seed),
        "Machine": ", ".join(machine),
        "Software": ", ".join([*python, *versions]),
        "Revision": _revision(environment.get("revision")),
    }
    return [(name, value or "unknown") for name, value in found.items()]


def _environment(job: Job) -> Mapping[str, Any]:
    found = [job.environment, *(stage.environment for stage in job.stages)]
    return next((environment for environment in found if environment), {})


def _revision(revision: str | None) -> str | None:
    """A "+" tells that files differed from it."""
    if not revision:
        return None
    return f"{revision[:12]}, with changes" if revision.endswith("+") else revision[:12]


def _lasted(stage: Stage) -> str:
    try:
        started = datetime.fromisoformat(stage.environment["started"])
        finished = datetime.fromisoformat((stage.done or {})["finished"])
    except (KeyError, TypeError, ValueError):
        return ""
    seconds = round((finished - started).total_seconds())
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min {seconds % 60} s"


def _day(moment: str) -> str:
    try:
        return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return moment


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
