"""Metrics of a stage as charts: what to draw in which panel, and where on the page. The template draws the lines."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 420, 190  # of a chart, in the units of its viewBox
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24
SMOOTHED_FROM = 40  # points; a longer line is drawn faint, with its running mean over it
MARKED_TO = 12  # points; a shorter line gets a mark at each
MOST_POINTS = 300  # of a faint line
MOST_BANDS = 40  # stretches of the x axis that tell their values under the pointer

NO_RANGE = 1e-9  # of the values; what differs by less is drawn as equal
LEAST = 1e-30


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str  # "%": shares are shown as per cent
    keys: str  # regular expression of the metrics in it; its group, if any, names the line
    smooth: bool = True  # a long line has its running mean drawn over it


PANELS = (
    Panel("Frame loss", "nats per frame", r"frames/loss"),
    Panel("Frames placed on the right token", "%", r"frames/accuracy_share"),
    Panel("Loss", "nats per token", r"train/loss"),
    Panel("Right next tokens", "%", r"train/correct(?:_share)?"),
    Panel("KL to the teacher", "nats per token", r"kl/(?!sampler_learner)(\w+)_nats"),
    Panel("Reply length", "tokens", r"rollout/length_tokens"),
    Panel("Replies that loop or are cut", "%", r"rollout/(\w+)_share"),
    Panel("Sampler against learner", "nats per token", r"kl/sampler_learner(\w*)_nats"),
    Panel("Speed", "tokens/s", r"(\w+)/tokens_per_s"),
    Panel("Gradient norm", "before clipping", r"train/grad_norm"),
    Panel("Learning rate", "", r"train/lr", smooth=False),
    Panel("Time of a step", "s", r"time/(\w+)_s"),
)
NAMES = {"": "mean", "_max": "largest", "sample": "sampling", "score": "teacher", "rollout": "sampling"}
KEPT_NAMES = {"learn": "learner", "repetition": "looping", "cut": "cut at the limit", "train_k1": "train (k1)"}


@dataclass(frozen=True)
class Line:
    """Points of SVG polylines: `faint` are the values as measured where `points` are their running mean."""

    label: str
    first: str
    last: str
    points: str
    faint: str = ""
    marks: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Band:
    """A stretch of the x axis and what it tells under the pointer."""

    x: float
    width: float
    text: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    bands: tuple[Band, ...]

    @property
    def told(self) -> str:
        """The chart in words, for those who cannot see it."""
        lines = (f"{line.label or self.title} from {line.first} to {line.last}" for line in self.lines)
        return f"{self.title}{f' ({self.unit})' if self.unit else ''}: {'; '.join(lines)}"


Series = Mapping[str, Sequence[tuple[float, float]]]  # metric -> (step, value) by step


def charts(records: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], list[Chart]]:
    """Charts of the panels above, in their order, and one for every metric that is in none of them."""
    series = series_of(records)
    known: list[Chart] = []
    left = dict(series)
    for panel in PANELS:
        lines = {}
        for key in series:
            if key in left and (match := re.fullmatch(panel.keys, key)):
                lines[_label(match)] = left.pop(key)
        if lines:
            first = sorted(lines, key=lambda label: label != "train")
            known.append(chart(panel.title, panel.unit, {label: lines[label] for label in first}, smooth=panel.smooth))
    return known, [chart(key, "", {"": points}) for key, points in left.items()]


def series_of(records: Sequence[Mapping[str, Any]]) -> Series:
    """Every metric by its step: `frames/step` counts the steps of `frames/...`, `step` those of all others.

    Of two records of one step the later counts. What is no finite number is left out.
    """
    found: dict[str, dict[float, float]] = {}
    for record in records:
        for key, value in record.items():
            area, slash, name = key.partition("/")
            step = record.get(f"{area}/step", record.get("step"))
            if slash and name != "step" and _is_number(value) and _is_number(step):
                found.setdefault(key, {})[step] = float(value)
    return {key: sorted(points.items()) for key, points in found.items()}


def chart(title: str, unit: str, lines: Series, *, smooth: bool = True) -> Chart:
    scale = 100 if unit == "%" else 1
    scaled = {label: [(step, value * scale) for step, value in points] for label, points in lines.items()}
    steps = [step for points in scaled.values() for step, _ in points]
    values = [value for points in scaled.values() for _, value in points]
    y_values = ticks(*_y_range(values), 4)
    x_low, x_high = min(steps), max(steps)
    x_values = [value for value in ticks(x_low, x_high, 5) if x_low <= value <= x_high and value == int(value)]
    place = _Place(x_low, x_high, y_values[0], y_values[-1])
    return Chart(
        title,
        unit,
        tuple(_line(label, points, place, smooth=smooth) for label, points in scaled.items()),
        tuple(Tick(place.x(value), f"{value:.0f}") for value in x_values),
        tuple(Tick(place.y(value), number(value)) for value in y_values),
        _bands(scaled, place),
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that reach from `low` or below to `high` or above.

    >>> ticks(0, 2.3, 4)
    [0.0, 1.0, 2.0, 3.0]
    >>> ticks(0.0, 0.0, 4)
    [0.0, 0.5, 1.0]
    """
    if high - low <= max(NO_RANGE * max(abs(low), abs(high)), LEAST):
        high = low + (abs(low) if abs(low) > LEAST else 1)
    rough = (high - low) / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def number(value: float) -> str:
    """Three digits.

    >>> number(0.12345), number(1234.5), number(4e-5), number(0), number(-1.5)
    ('0.123', '1,234', '4e-5', '0', '-1.5')
    """
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e6:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class _Place:
    """From values to the page."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, step: float) -> float:
        share = (step - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    def points(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(step):g},{self.y(value):g}" for step, value in points)


def _y_range(values: Sequence[float]) -> tuple[float, float]:
    """Down to zero, but where all of the values are far from it."""
    low, high = min(values), max(values)
    return (0.0, high) if 0 <= low <= 0.7 * high else (low, high)


def _line(label: str, points: Sequence[tuple[float, float]], place: _Place, *, smooth: bool) -> Line:
    smooth = smooth and len(points) > SMOOTHED_FROM
    marks = tuple((place.x(step), place.y(value)) for step, value in points) if len(points) <= MARKED_TO else ()
    return Line(
        label,
        number(points[0][1]),
        number(points[-1][1]),
        place.points(thinned(running_mean(points))) if smooth else place.points(thinned(points)),
        place.points(thinned(points)) if smooth else "",
        marks,
    )


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value and its neighbours: a twentieth of the line, fewer towards its ends, so that no value lags."""
    reach = max(1, len(points) // 40)
    smooth = []
    for index, (step, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        window = [value for _, value in points[index - near : index + near + 1]]
        smooth.append((step, sum(window) / len(window)))
    return smooth


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them: the lowest and the highest of each stretch, so that no peak is lost."""
    if len(points) <= MOST_POINTS:
        return list(points)
    edges = [len(points) * index * 2 // MOST_POINTS for index in range(MOST_POINTS // 2 + 1)]
    kept = []
    for first, after in pairwise(edges):
        stretch = points[first:after]
        kept += sorted({min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])})
    return kept


def _bands(lines: Series, place: _Place) -> tuple[Band, ...]:
    values = {label: dict(points) for label, points in lines.items()}
    steps = sorted({step for points in values.values() for step in points})
    if len(steps) > MOST_BANDS:
        steps = [steps[round(index * (len(steps) - 1) / (MOST_BANDS - 1))] for index in range(MOST_BANDS)]
    centres = [place.x(step) for step in steps]
    edges = [LEFT, *((a + b) / 2 for a, b in pairwise(centres)), WIDTH - RIGHT]
    bands = []
    for step, (left, right) in zip(steps, pairwise(edges), strict=True):
        told = [f"{label} {number(found[step])}".strip() for label, found in values.items() if step in found]
        bands.append(Band(round(left, 1), round(right - left, 1), f"step {step:g}: {', '.join(told)}"))
    return tuple(bands)


def _label(match: re.Match[str]) -> str:
    if not match.re.groups:
        return ""
    name = match[1]
    return NAMES.get(name) or KEPT_NAMES.get(name) or name.replace("_", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
