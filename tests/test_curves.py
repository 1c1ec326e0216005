"""Curves: which metric is drawn where, and that no value is lost or made up on the way."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.reporting.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_BANDS,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    chart,
    charts,
    running_mean,
    series_of,
    thinned,
    ticks,
)

VALUES = st.floats(-1e6, 1e6)


def test_points_stand_where_the_ticks_say() -> None:
    """Values 0 and 2 on an axis of 0 to 2: the lower and the upper edge; steps 1 and 5: left and right."""
    drawn = chart("Loss", "", {"": [(1, 0.0), (5, 2.0)]})
    assert drawn.lines[0].points == f"{LEFT},{HEIGHT - BOTTOM} {WIDTH - RIGHT},{TOP}"
    assert [(tick.label, tick.at) for tick in drawn.y_ticks][:: len(drawn.y_ticks) - 1] == [
        ("0", HEIGHT - BOTTOM),
        ("2", TOP),
    ]
    assert (drawn.x_ticks[0].label, drawn.x_ticks[0].at) == ("1", LEFT)


def test_shares_are_drawn_as_per_cent() -> None:
    ((drawn,), _) = charts([{"step": 1, "rollout/repetition_share": 0.125}])
    assert (drawn.unit, drawn.lines[0].label, drawn.lines[0].last) == ("%", "looping", "12.5")


def test_frames_count_their_own_steps_and_the_later_of_two_records_counts() -> None:
    records = [{"frames/step": 7, "frames/loss": 3.0}, {"step": 1, "train/loss": 2.0}, {"step": 1, "train/loss": 1.0}]
    assert series_of(records) == {"frames/loss": [(7, 3.0)], "train/loss": [(1, 1.0)]}


def test_what_is_no_number_is_left_out() -> None:
    records = [{"step": 1, "a/b": None, "a/c": "x", "a/d": math.inf, "a/e": True, "loss": 1.0}, {"a/b": 1.0}]
    assert series_of(records) == {}


def test_every_metric_is_drawn_once() -> None:
    """The keys of a distillation, and one that nobody has heard of."""
    keys = ["train/loss", "kl/train_nats", "kl/voice_nats", "kl/sampler_learner_nats", "kl/sampler_learner_max_nats"]
    keys += ["rollout/length_tokens", "rollout/cut_share", "rollout/tokens_per_s", "teacher/tokens_per_s", "train/lr"]
    keys += ["train/grad_norm", "time/step_s", "time/learn_s", "reward/wer_mean", "train/tokens"]
    known, more = charts([{"step": 1, **dict.fromkeys(keys, 1.0)}])
    assert sum(len(drawn.lines) for drawn in [*known, *more]) == len(keys)
    assert [drawn.title for drawn in more] == ["reward/wer_mean", "train/tokens"]
    by_title = {drawn.title: [line.label for line in drawn.lines] for drawn in known}
    assert by_title["KL to the teacher"] == ["train", "voice"]
    assert by_title["Sampler against learner"] == ["mean", "largest"]
    assert by_title["Speed"] == ["sampling", "teacher"]


def test_a_running_mean_is_centred_and_meets_both_ends() -> None:
    line = [(float(step), float(step)) for step in range(100)]
    assert running_mean(line) == line  # of a straight line it is the line
    assert running_mean([(0, 0.0), (1, 3.0), (2, 0.0)]) == [(0, 0.0), (1, 1.0), (2, 0.0)]


def test_a_single_value_is_a_mark() -> None:
    drawn = chart("Loss", "", {"": [(3, 5.0)]})
    assert len(drawn.lines[0].marks) == 1
    assert [band.text for band in drawn.bands] == ["step 3: 5"]


def test_bands_cover_the_axis_without_gaps_and_are_few() -> None:
    drawn = chart("Loss", "", {"": [(step, 1.0) for step in range(1000)]})
    assert len(drawn.bands) == MOST_BANDS
    assert drawn.bands[0].x == LEFT
    for band, after in zip(drawn.bands, drawn.bands[1:], strict=False):
        assert band.x + band.width == pytest.approx(after.x, abs=0.11)
    assert drawn.bands[-1].x + drawn.bands[-1].width == pytest.approx(WIDTH - RIGHT, abs=0.11)


@given(st.lists(VALUES, min_size=1, max_size=2000))
def test_thinning_keeps_the_order_and_every_extreme(values: list[float]) -> None:
    points = list(enumerate(values))
    kept = thinned(points)
    assert len(kept) <= max(MOST_POINTS, 1)
    assert kept == sorted(kept)
    assert {min(values), max(values)} <= {value for _, value in kept}


@given(VALUES, VALUES)
def test_ticks_reach_around_the_values_and_are_few(one: float, other: float) -> None:
    low, high = sorted((one, other))
    found = ticks(low, high, 4)
    slack = 1e-6 * max(abs(low), abs(high), 1e-12)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 8


@given(st.lists(VALUES, min_size=1, max_size=60))
def test_no_line_leaves_its_frame(values: list[float]) -> None:
    drawn = chart("x", "", {"": list(enumerate(values))})
    for x, y in (map(float, point.split(",")) for point in drawn.lines[0].points.split()):
        assert LEFT <= x <= WIDTH - RIGHT
        assert TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1
