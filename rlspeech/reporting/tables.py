"""Held-out numbers as tables for the page: before and after, by kind of instruction, and one line a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlspeech.reporting.read_runs import Evaluation, Job, Scores, SetScores
from rlspeech.reporting.summary import Summary, mean, percent, short_names

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Measure:
    """A column: `better` picks the best of its values."""

    name: str
    field: str
    better: Callable[[Sequence[float]], float]
    text: Callable[[float], str]
    told: str


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    told: str = ""  # why there is no number
    share: float | None = None  # 0..1, drawn as a bar


@dataclass(frozen=True)
class Line:
    name: str
    cells: tuple[Cell, ...]
    reference: bool = False  # the teacher or the cascade: what the student is held against


@dataclass(frozen=True)
class Table:
    """`groups`: headings over `columns`, with how many columns each spans."""

    columns: tuple[tuple[str, str], ...]  # name and what it means
    lines: tuple[Line, ...]
    groups: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Tile:
    """One number at the top: the last evaluation's, and the first one's."""

    name: str
    now: str
    then: str
    told: str


MEASURES = (
    Measure("WER", "wer", min, percent, "word errors of the transcripts, lower is better"),
    Measure("right", "fuzzy", max, percent, "share of answers that are right, higher is better"),
    Measure("exact", "exact", max, percent, "share of answers that are the reference word for word, higher is better"),
    Measure("KL", "kl_nats", min, lambda value: f"{value:.3f}", "nats per token from the teacher, lower is better"),
    Measure("loops", "repetition", min, percent, "mean share of a reply that loops, lower is better"),
)
BIASING = (  # shown where rare words were measured
    Measure("U-WER", "u_wer", min, percent, "word errors of the words that are not rare, lower is better"),
    Measure("B-WER", "b_wer", min, percent, "word errors of the rare words, lower is better"),
)
FAULTS = (  # shown where the detectors looked at the replies
    Measure("repeating", "repetitive", min, percent, "share of replies that repeat themselves, lower is better"),
    Measure("unsaid", "unsupported", min, percent, "share of replies that say what is not said, lower is better"),
)
GAP = ("gap closed", "share of the gap between teacher and student, in right answers, that is closed since the start")


def held_out(job: Job, summary: Summary) -> Table:
    """A row for each evaluation, the best of each column marked, and the cascade and the teacher to hold it against."""
    measures = _measures(job.evaluations)
    students = [_values(measures, one.results.sets, summary.sets, "student") for one in job.evaluations]
    best = [_best(measure, [row[i] for row in students]) for i, measure in enumerate(measures * len(summary.sets))]
    closed = [row.gap_closed for row in summary.rows]
    best_closed = max((value for value in closed if value is not None), default=None) if len(closed) > 1 else None
    lines = []
    for evaluation, row, values in zip(job.evaluations, summary.rows, students, strict=True):
        each = zip(values, best, measures * len(summary.sets), strict=True)
        cells = [_cell(value, top, measure) for value, top, measure in each]
        known = row.gap_closed is not None
        gap = (
            Cell(percent(row.gap_closed, 0), row.gap_closed == best_closed)
            if known
            else Cell(NONE, told=row.why_no_gap)
        )
        lines.append(Line(evaluation.after, (*cells, gap)))
    for role in ("cascade", "teacher"):
        having = [e for e in job.evaluations if any(getattr(s, role) for s in e.results.sets.values())]
        if having:
            values = _values(measures, having[-1].results.sets, summary.sets, role)
            cells = [_cell(v, None, m) for v, m in zip(values, measures * len(summary.sets), strict=True)]
            name = f"cascade (after {having[-1].after})" if role == "cascade" else role
            lines.append(Line(name, (*cells, Cell("")), reference=True))
    columns = tuple((measure.name, measure.told) for _ in summary.sets for measure in measures)
    groups = tuple((name, len(measures)) for name in summary.sets)
    return Table((*columns, GAP), tuple(lines), (*groups, ("all sets", 1)))


def by_kind(job: Job) -> Table | None:
    """Share of right answers of each kind of instruction, the mean over the sets; None where it was not measured."""
    named = [(evaluation.after, evaluation.results.sets, "student") for evaluation in job.evaluations]
    if job.evaluations:
        named.append(("teacher", job.evaluations[-1].results.sets, "teacher"))
    columns = [(name, _kinds(sets, role)) for name, sets, role in named]
    columns = [(name, found) for name, found in columns if found]
    kinds = sorted({kind for _, found in columns for kind in found})
    if not kinds:
        return None
    lines = [Line(kind, tuple(_share(found.get(kind)) for _, found in columns)) for kind in kinds]
    return Table(tuple((name, "") for name, _ in columns), tuple(lines))


def overview(summaries: Sequence[Summary]) -> Table:
    """One line a run: its last evaluation."""
    columns = (("after", "the stage that was evaluated last"), *((m.name, m.told) for m in MEASURES), GAP)
    lines = []
    for summary in summaries:
        if not summary.rows:
            lines.append(Line(summary.name, (Cell("no evaluation"), *(Cell(NONE) for _ in columns[1:]))))
            continue
        row = summary.rows[-1]
        values = (mean(row.wer.values()), row.fuzzy, row.exact, row.kl_nats, row.repetition)
        cells = (_cell(value, None, measure) for value, measure in zip(values, MEASURES, strict=True))
        gap = Cell(percent(row.gap_closed, 0) or NONE, told=row.why_no_gap)
        lines.append(Line(summary.name, (Cell(row.after), *cells, gap)))
    return Table(columns, tuple(lines))


def tiles(summary: Summary) -> list[Tile]:
    """The numbers that tell most, as far as they were measured."""
    if not summary.rows:
        return []
    first, last = summary.rows[0], summary.rows[-1]
    names = short_names(summary.sets)
    sets = ", ".join(f"{names[name]} {percent(rate)}" for name, rate in last.wer.items() if rate is not None)
    found = [
        ("Word errors", mean(last.wer.values()), mean(first.wer.values()), percent, sets),
        ("Errors of rare words", last.b_wer, first.b_wer, percent, f"of all others {percent(last.u_wer) or NONE}"),
        ("Right answers", last.fuzzy, first.fuzzy, percent, f"teacher {percent(last.teacher) or NONE}"),
        ("KL to the teacher", last.kl_nats, first.kl_nats, lambda nats: f"{nats:.3f}", "nats per token, held out"),
    ]
    shown = [
        Tile(name, text(now), text(then) if then is not None and len(summary.rows) > 1 else "", told)
        for name, now, then, text, told in found
        if now is not None
    ]
    if len(summary.rows) == 1 or all(row.fuzzy is None for row in summary.rows):
        return shown
    told = last.why_no_gap or "of the distance to the teacher in right answers"
    return [*shown, Tile("Gap closed", percent(last.gap_closed, 0) or NONE, "", told)]


def _measures(evaluations: Sequence[Evaluation]) -> tuple[Measure, ...]:
    """Those of every run, those of faults where they were looked for, and of rare words where one was measured."""
    students = [scores.student for evaluation in evaluations for scores in evaluation.results.sets.values()]
    faults = FAULTS if any(one.unsupported is not None for one in students) else ()
    rare = BIASING if any(one.b_wer is not None for one in students) else ()
    return (*MEASURES, *faults, *rare)


def _values(
    measures: Sequence[Measure], sets: Mapping[str, SetScores], names: Sequence[str], role: str
) -> list[float | None]:
    found: list[Scores | None] = [getattr(sets[name], role) if name in sets else None for name in names]
    return [getattr(scores, measure.field) if scores else None for scores in found for measure in measures]


def _best(measure: Measure, column: Sequence[float | None]) -> float | None:
    """None where there is nothing to be better than."""
    known = [value for value in column if value is not None]
    return measure.better(known) if len(set(known)) > 1 else None


def _cell(value: float | None, best: float | None, measure: Measure) -> Cell:
    if value is None:
        return Cell(NONE, told="not measured")
    return Cell(measure.text(value), best=value == best)


def _share(value: float | None) -> Cell:
    return Cell(NONE, told="not measured") if value is None else Cell(percent(value, 0), share=min(max(value, 0), 1))


def _kinds(sets: Mapping[str, SetScores], role: str) -> dict[str, float | None]:
    found: list[Any] = [scores.by_kind for s in sets.values() if (scores := getattr(s, role))]
    kinds = dict.fromkeys(kind for shares in found for kind in shares)
    return {kind: mean(shares.get(kind) for shares in found) for kind in kinds}
