"""Held-out numbers of a job, a row for each evaluation: how good the student is, and how much of the gap is closed.

The gap is the text teacher's share of right answers minus the student's, the mean over the held-out sets.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rlspeech.errors import UserError
from rlspeech.reporting.files import write_text
from rlspeech.reporting.read_runs import Evaluation, Job, Scores, SetScores, read_jobs, roads_of

WIDTH = 100  # columns of a table in a log
MOST_SETS = 3  # with a column each; of more sets the mean is shown
DASH = "–"  # noqa: RUF001


@dataclass(frozen=True)
class Row:
    """One evaluation. Rates in 0..1, means over the held-out sets but for `wer`; None where it was not measured."""

    after: str
    wer: Mapping[str, float | None]  # of each set
    fuzzy: float | None  # share of answers that are right
    exact: float | None  # share that are the reference word for word
    kl_nats: float | None
    repetition: float | None
    cascade: float | None  # share of right answers of the teacher that reads the student's transcript
    teacher: float | None  # and of the teacher that reads the true one
    gap_closed: float | None
    u_wer: float | None = None  # of words that are not rare, and of those that are: means over the sets that tell them
    b_wer: float | None = None
    repetitive: float | None = None  # share of replies that repeat themselves
    unsupported: float | None = None  # share that say what is not in the transcript
    why_no_gap: str = ""  # why gap_closed is None


@dataclass(frozen=True)
class Summary:
    name: str
    sets: tuple[str, ...]
    roads: tuple[tuple[Row, ...], ...]  # by the sets that they were measured on

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for road in self.roads for row in road)


def summarise(folder: Path) -> Summary:
    """The summary of the one job in a folder. Raises UserError as read_jobs does, and where it holds several."""
    jobs = read_jobs(folder)
    if len(jobs) > 1:
        raise UserError(f"{folder}: holds {len(jobs)} runs; name one of them: {', '.join(job.name for job in jobs)}")
    return summary_of(jobs[0])


def summary_of(job: Job) -> Summary:
    """The gap of an evaluation is held against the first one of its road."""
    sets = tuple(dict.fromkeys(name for evaluation in job.evaluations for name in evaluation.results.sets))
    roads = tuple(tuple(_row(one, road.evaluations[0]) for one in road.evaluations) for road in roads_of(job))
    return Summary(job.name, sets, roads)


def gap_closed(before: Mapping[str, SetScores], after: Mapping[str, SetScores]) -> tuple[float | None, str]:
    """1 - gap after / gap before, over the sets that both have; below 0 where the gap grew.

    Returns (None, why) where there was no gap to close, or none can be known.
    """
    shared = [name for name in before if name in after]
    gaps = [(_gap(before[name]), _gap(after[name])) for name in shared]
    known = [(first, then) for first, then in gaps if first is not None and then is not None]
    if not known:
        taught = any(scores.teacher for found in (before, after) for scores in found.values())
        return None, "no accuracies to compare" if taught else "no teacher was evaluated"
    first, then = (sum(values) for values in zip(*known, strict=True))
    if first <= 0:
        return None, "no gap: the student was as good as the teacher at the first evaluation"
    return 1 - then / first, ""


def print_table(summary: Summary, console: Console | None = None) -> None:
    """A table for each road: rows of the same held-out sets. At most 100 columns where there is no terminal."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=WIDTH, color_system=None)
    if not summary.rows:
        console.print(f"{summary.name}: no evaluation, so no held-out numbers", markup=False)
        return
    dash = DASH if console.encoding.startswith("utf") else "-"
    title: str | None = escape(f"{summary.name}: held-out numbers")
    for rows in summary.roads:
        sets = tuple(name for name in summary.sets if any(name in row.wer for row in rows))
        console.print(_table(rows, sets, title, dash))
        title = None
        notes = ["right, exact, cascade, teacher: share of answers; closed: of the gap between teacher and right"]
        notes += [f"closed {dash}: {why}" for why in dict.fromkeys(row.why_no_gap for row in rows) if why]
        for note in notes if any(row.fuzzy is not None for row in rows) else []:
            console.print(f" {note}", style="dim", markup=False, highlight=False)


def _table(rows: Sequence[Row], sets: Sequence[str], title: str | None, dash: str) -> Table:
    """Where nothing but transcripts was asked for, columns without a value are left out."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE)
    table.add_column("after", no_wrap=True)
    columns = _columns(rows, sets)
    if all(row.fuzzy is None for row in rows):
        columns = [(name, value) for name, value in columns if any(map(value, rows))]
    for name, _ in columns:
        table.add_column(escape(name), justify="right")
    for row in rows:
        table.add_row(escape(row.after), *(value(row) or dash for _, value in columns))
    return table


def write_summary(summary: Summary, file: Path) -> None:
    """summary.json: the rows as they are here. Replaced as a whole."""
    told = {"name": summary.name, "sets": summary.sets, "rows": [asdict(row) for row in summary.rows]}
    write_text(file, json.dumps(told, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def percent(share: float | None, digits: int = 1) -> str:
    """
    >>> percent(0.1234), percent(-0.5), percent(None)
    ('12.3%', '-50.0%', '')
    """
    return "" if share is None else f"{share:.{digits}%}"


def short_names(sets: Sequence[str]) -> dict[str, str]:
    """Set names without the word that all of them begin with.

    >>> short_names(["test_voice", "test_text"]), short_names(["test_voice"])
    ({'test_voice': 'voice', 'test_text': 'text'}, {'test_voice': 'test_voice'})
    """
    heads = {name.partition("_")[0] for name in sets}
    tails = [name.partition("_")[2] for name in sets]
    cut = len(sets) > 1 and len(heads) == 1 and all(tails)
    return dict(zip(sets, tails if cut else sets, strict=True))


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _row(evaluation: Evaluation, first: Evaluation) -> Row:
    sets = evaluation.results.sets
    closed, why = gap_closed(first.results.sets, sets)
    students = [scores.student for scores in sets.values()]
    return Row(
        after=evaluation.after,
        wer={name: scores.student.wer for name, scores in sets.items()},
        fuzzy=mean(scores.fuzzy for scores in students),
        exact=mean(scores.exact for scores in students),
        kl_nats=mean(scores.kl_nats for scores in students),
        repetition=mean(scores.repetition for scores in students),
        cascade=mean(_fuzzy(scores.cascade) for scores in sets.values()),
        teacher=mean(_fuzzy(scores.teacher) for scores in sets.values()),
        gap_closed=closed,
        u_wer=mean(scores.u_wer for scores in students),
        b_wer=mean(scores.b_wer for scores in students),
        repetitive=mean(scores.repetitive for scores in students),
        unsupported=mean(scores.unsupported for scores in students),
        why_no_gap=why,
    )


def _gap(scores: SetScores) -> float | None:
    teacher, student = _fuzzy(scores.teacher), scores.student.fuzzy
    return None if teacher is None or student is None else teacher - student


def _fuzzy(scores: Scores | None) -> float | None:
    return scores.fuzzy if scores else None


def _columns(rows: Sequence[Row], sets: Sequence[str]) -> list[tuple[str, Callable[[Row], str]]]:
    def of(name: str) -> Callable[[Row], str]:
        return lambda row: percent(row.wer.get(name))

    names = short_names(sets)
    errors: list[tuple[str, Any]] = [(f"WER {names[name]}", of(name)) for name in sets]
    if len(sets) > MOST_SETS:
        errors = [("WER mean", lambda row: percent(mean(row.wer.values())))]
    if any(row.b_wer is not None for row in rows):
        errors += [("U-WER", lambda row: percent(row.u_wer)), ("B-WER", lambda row: percent(row.b_wer))]
    unsaid: list[tuple[str, Any]] = [("unsaid", lambda row: percent(row.unsupported))]
    return [
        *errors,
        ("right", lambda row: percent(row.fuzzy)),
        ("exact", lambda row: percent(row.exact)),
        ("KL nats", lambda row: "" if row.kl_nats is None else f"{row.kl_nats:.3f}"),
        ("repeats", lambda row: percent(row.repetition)),
        *(unsaid if any(row.unsupported is not None for row in rows) else []),
        ("cascade", lambda row: percent(row.cascade)),
        ("teacher", lambda row: percent(row.teacher)),
        ("closed", lambda row: percent(row.gap_closed, 0)),
    ]
