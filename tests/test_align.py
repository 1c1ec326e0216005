"""maths.align: the least spans between the common boundaries of two tokenizations, on hand-made and random ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.maths.align import Spans, align


def one(left: list[int], right: list[int]) -> Spans:
    [spans] = align([left], [right])
    return spans


def told(spans: Spans) -> tuple[list[int], list[int], int]:
    return spans.left.tolist(), spans.right.tolist(), spans.number


def by_hand(left: list[int], right: list[int]) -> list[tuple[int, int]]:
    """Byte ranges of the spans, by sets."""
    ends = [set(np.cumsum(side).tolist()) - {0} for side in (left, right)]
    cuts = sorted(ends[0] & ends[1])
    return list(zip([0, *cuts], cuts, strict=False))


def test_a_span_ends_where_both_sides_have_a_boundary() -> None:
    # |ab|cde|f |    against    |a|b|cdef|
    assert told(one([2, 3, 1], [1, 1, 4])) == ([0, 1, 1], [0, 0, 1], 2)
    # |abc|def|   against   |ab|cd|ef|: no common boundary but the end
    assert told(one([3, 3], [2, 2, 2])) == ([0, 0], [0, 0, 0], 1)


def test_ranges_and_lonely_spans_worked_by_hand() -> None:
    spans = one([2, 3, 1, 4], [1, 1, 3, 1, 4])
    assert spans.left_ranges().tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert spans.right_ranges().tolist() == [[0, 2], [2, 3], [3, 4], [4, 5]]
    assert spans.alone().tolist() == [False, True, True, True]


def test_a_token_without_bytes_belongs_to_the_span_that_ends_where_it_stands() -> None:
    assert told(one([2, 0, 3], [2, 3])) == ([0, 0, 1], [0, 1], 2)
    assert told(one([2, 3], [2, 3, 0])) == ([0, 1], [0, 1, 1], 2)
    assert told(one([1, 0, 1], [2])) == ([0, 0, 0], [0], 1)  # inside a span


def test_a_token_without_bytes_at_the_beginning_belongs_to_the_first_span() -> None:
    assert told(one([0, 2, 3], [2, 3])) == ([0, 0, 1], [0, 1], 2)
    # not to the last span of the reply before it
    spans = align([[4], [0, 2]], [[4], [0, 0, 2]])
    assert told(spans[0]) == ([0], [0], 1)
    assert told(spans[1]) == ([0, 0], [0, 0, 0], 1)


def test_an_empty_reply_has_no_spans() -> None:
    spans = one([], [])
    assert told(spans) == ([], [], 0)
    assert spans.left_ranges().shape == spans.right_ranges().shape == (0, 2)
    assert spans.alone().tolist() == []
    assert align([], []) == []


def test_tokens_without_any_byte_are_one_span() -> None:
    assert told(one([0, 0], [0])) == ([0, 0], [0], 1)
    assert told(one([0], [])) == ([0], [], 1)
    assert one([0], []).right_ranges().tolist() == [[0, 0]]


@pytest.mark.parametrize(("left", "right"), [([2, 1], [2]), ([], [1]), ([3], [1, 1])])
def test_sides_of_different_length_are_refused(left: list[int], right: list[int]) -> None:
    with pytest.raises(ValueError, match=r"reply 1: \d bytes on the left, \d on the right"):
        align([[1], left], [[1], right])


def test_negative_lengths_and_unequal_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        align([[2, -1]], [[1]])
    with pytest.raises(ValueError, match="1 replies on the left, 0 on the right"):
        align([[1]], [])


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Two cuttings of the same bytes, with tokens of no bytes here and there."""
    total = draw(st.integers(0, 40))
    sides = []
    for _ in range(2):
        inner = sorted(draw(st.lists(st.integers(0, total), max_size=12)))
        sides.append(np.diff([0, *inner, total]).tolist() if total or inner else [])
    return sides[0], sides[1]


replies = st.lists(two_sides(), max_size=5)


@given(replies)
def test_spans_are_those_between_common_boundaries_whatever_else_is_in_the_batch(
    batch: list[tuple[list[int], list[int]]],
) -> None:
    found = align([left for left, _ in batch], [right for _, right in batch])
    for (left, right), spans in zip(batch, found, strict=True):
        wanted = by_hand(left, right)
        if not wanted:
            assert spans.number == int(bool(left or right))
            continue
        assert spans.number == len(wanted)
        for lengths, ranges in ((left, spans.left_ranges()), (right, spans.right_ranges())):
            ends = np.concatenate([[0], np.cumsum(lengths)])
            assert [(ends[a], ends[b]) for a, b in ranges] == wanted  # tiled, and cut at boundaries of this side
            assert ranges[0, 0] == 0
            assert ranges[-1, 1] == len(lengths)  # no token is left out


@given(replies)
def test_the_sides_can_change_places(batch: list[tuple[list[int], list[int]]]) -> None:
    lefts, rights = [left for left, _ in batch], [right for _, right in batch]
    for here, there in zip(align(lefts, rights), align(rights, lefts), strict=True):
        assert told(here) == (there.right.tolist(), there.left.tolist(), there.number)


@given(st.lists(st.integers(1, 9), max_size=30))
def test_the_same_tokens_on_both_sides_are_each_a_span(lengths: list[int]) -> None:
    spans = one(lengths, lengths)
    assert spans.left.tolist() == list(range(len(lengths)))
    assert spans.alone().all()


@given(two_sides())
def test_lonely_spans_have_one_token_on_each_side(sides: tuple[list[int], list[int]]) -> None:
    spans = one(*sides)
    counts = [np.diff(ranges, axis=1)[:, 0] for ranges in (spans.left_ranges(), spans.right_ranges())]
    assert spans.alone().tolist() == ((counts[0] == 1) & (counts[1] == 1)).tolist()
