"""What run folders hold, as values: jobs, their learning stages in the order of the road, and their evaluations.

A job is a folder of stage folders (`rlspeech pipeline` makes one), or one stage folder by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlspeech.errors import UserError
from rlspeech.reporting.files import read_json, read_jsonl, read_toml

START = "start"  # `after` of the evaluation before the first stage
ROAD = ("align", "sft", "distill", "pairs", "dpo", "rlbr")  # where the clock does not tell the order
NO_STAGE = ("pipeline", "synth", "report")
EVALUATE = "evaluate"
DEEPEST = 2  # folders between the one that is given and a job in it, as runs/tiny/quickstart in runs

Read = TypeVar("Read", bound=BaseModel)


class Part(BaseModel):
    """Fields that a later version adds are let through; fields that are missing are None or empty."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)


class Scores(Part):
    """Rates in 0..1; the word error rate may pass 1."""

    samples: int | None = None
    wer: float | None = None
    u_wer: float | None = None
    b_wer: float | None = None
    exact: float | None = None
    fuzzy: float | None = None
    repetition: float | None = None
    repetitive: float | None = None
    unsupported: float | None = None
    kl_nats: float | None = None
    by_kind: dict[str, float | None] = {}


class SetScores(Part):
    student: Scores = Scores()
    teacher: Scores | None = None
    cascade: Scores | None = None


class Reply(Part):
    """One reply: of an evaluation, or of a rollout during learning. Token i was `kl_nats[i]` from the teacher."""

    step: int | None = None
    id: str
    set: str = ""
    kind: str | None = None
    key: str | None = None  # the words that a right answer holds
    audio: str | None = None  # relative to the folder that the record is in
    instruction: str | None = None
    transcript: str | None = None
    reference: str | None = None
    lang: str = "en"
    reply: str | None = None
    finish: str | None = None
    teacher_reply: str | None = None
    cascade_reply: str | None = None
    tokens: list[str] = []
    kl_nats: list[float | None] = []


class Results(Part):
    """evaluation.json"""

    student: str | None = None
    teacher: str | None = None
    after: str = START
    sets: dict[str, SetScores] = {}
    samples: list[Reply] = []


@dataclass(frozen=True)
class Evaluation:
    folder: Path
    results: Results

    @property
    def after(self) -> str:
        return self.results.after


@dataclass(frozen=True)
class Stage:
    """A learning stage. What its folder lacks is empty."""

    folder: Path
    verb: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    done: Mapping[str, Any] | None = None
    resumes: int = 0
    metrics: Sequence[Mapping[str, Any]] = ()
    frames: Sequence[Mapping[str, Any]] = ()  # the first part of align
    rollouts: Sequence[Reply] = ()

    @property
    def name(self) -> str:
        """Its folder's where that is named after its verb, as sft_calls is."""
        return self.folder.name if self.folder.name.startswith(self.verb) else self.verb


@dataclass(frozen=True)
class Job:
    """Stages and evaluations in the order of the road. `unfinished`: evaluation folders without a result."""

    folder: Path
    stages: tuple[Stage, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    unfinished: tuple[Path, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def read_jobs(folder: Path) -> list[Job]:
    """The jobs in a folder: it may be a stage, a job, or a folder of either.

    Raises UserError where there is no such folder, it holds no run, or a file in it is damaged.
    """
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; --run-dir must be the folder of a run, or of runs")
    jobs = _jobs(folder) if verb_of(folder) is None else [_job(folder, [folder])]
    if not jobs:
        raise UserError(f"{folder}: holds no run: neither it nor its folders have a config.toml or an evaluation.json")
    return jobs


def verb_of(folder: Path) -> str | None:
    """The verb whose stage folder this is; None where it is none."""
    if (folder / "evaluation.json").is_file():
        return EVALUATE
    settings = read_toml(folder / "config.toml")
    verb = (settings or {}).get("stage")
    return verb if isinstance(verb, str) and verb not in NO_STAGE else None


def _jobs(folder: Path, depth: int = DEEPEST) -> list[Job]:
    """Stage folders named after their verbs, as sft and sft_calls, are one job; others are jobs by themselves."""
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    verbs = {child: verb for child in children if (verb := verb_of(child)) is not None}
    together = [
        child for child, verb in verbs.items() if child.name == verb or child.name.startswith((f"{verb}-", f"{verb}_"))
    ]
    jobs = [_job(folder, together)] if together else []
    for child in children:
        if child in verbs:
            jobs += [_job(child, [child])] if child not in together else []
        elif depth:
            jobs += _jobs(child, depth - 1)
    return jobs


def _job(folder: Path, parts: Sequence[Path]) -> Job:
    stages = sorted((_stage(part) for part in parts if verb_of(part) != EVALUATE), key=_began)
    places = [stage.name for stage in stages]
    evaluations, unfinished = [], []
    for part in (part for part in parts if verb_of(part) == EVALUATE):
        found = read_json(part / "evaluation.json")
        if found is None:
            unfinished.append(part)
        else:
            evaluations.append(Evaluation(part, _validated(Results, found, part / "evaluation.json")))
    return Job(
        folder,
        tuple(stages),
        tuple(sorted(evaluations, key=lambda evaluation: (_place(evaluation.after, places), evaluation.folder.name))),
        tuple(unfinished),
        read_toml(folder / "config.toml") or {},
        _table(folder / "environment.json"),
    )


def _stage(folder: Path) -> Stage:
    settings = read_toml(folder / "config.toml") or {}
    rollouts = folder / "rollouts.jsonl"
    return Stage(
        folder,
        settings.get("stage", folder.name),
        settings,
        _table(folder / "environment.json"),
        _table(folder / "done.json") or None,
        len(read_jsonl(folder / "resumed.jsonl")),
        read_jsonl(folder / "metrics.jsonl"),
        read_jsonl(folder / "frames.jsonl"),
        [_validated(Reply, record, rollouts) for record in read_jsonl(rollouts)],
    )


def _began(stage: Stage) -> tuple[str, int, str]:
    rank = _rank(stage.verb)
    return str(stage.environment.get("started", "")), rank, stage.folder.name


def _rank(stage: str) -> int:
    """Of a verb, or of a folder that is named after one."""
    verb = stage.partition("_")[0]
    return ROAD.index(verb) if verb in ROAD else len(ROAD)


def _place(after: str, stages: Sequence[str]) -> tuple[int, int]:
    """Index of the stage that an evaluation follows, and its rank where that stage, or any, is not here."""
    if after == START:
        return -1, -1
    rank = _rank(after)
    if after in stages:
        return len(stages) - 1 - stages[::-1].index(after), rank
    earlier = [index for index, name in enumerate(stages) if _rank(name) < rank or rank == len(ROAD)]
    return max(earlier, default=-1), rank


def roads_of(job: Job) -> list[Job]:
    """The job once for each choice of held-out sets, with the evaluations that have one of them, in order."""
    roads: list[tuple[set[str], list[Evaluation]]] = []
    for evaluation in job.evaluations:
        sets = set(evaluation.results.sets)
        known, found = next((road for road in roads if road[0] & sets), (set(), []))
        if not found:
            roads.append((known, found))
        known |= sets
        found.append(evaluation)
    return [replace(job, evaluations=tuple(found)) for _, found in roads]


def _table(file: Path) -> Mapping[str, Any]:
    found = read_json(file)
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{file}:1: not a JSON object; make the file anew")
    return found or {}


def _validated(kind: type[Read], found: Any, file: Path) -> Read:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{file}: {f'{where}: ' if where else ''}{message}; make the file anew") from error
