"""Two token sequences over the same bytes, cut where both have a boundary: the least spans that both can speak of.

Shape letters: B replies, N tokens on the left, M tokens on the right, S spans.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Spans(NamedTuple):
    """Spans of one reply: they tile its bytes, and no boundary that both sides have lies inside of one.

    Both sides have a token in every span, unless there are no bytes at all: then all tokens are in one span.
    """

    left: Ints  # [N] span of each token on the left, never falling
    right: Ints  # [M] span of each token on the right, never falling
    number: int  # S

    def left_ranges(self) -> Ints:
        """Half-open ranges of the left tokens of each span [S, 2]."""
        return _ranges(self.left, self.number)

    def right_ranges(self) -> Ints:
        """Half-open ranges of the right tokens of each span [S, 2]."""
        return _ranges(self.right, self.number)

    def alone(self) -> NDArray[np.bool_]:
        """Which spans are one token on both sides [S]."""
        both = [np.bincount(side, minlength=self.number) == 1 for side in (self.left, self.right)]
        return both[0] & both[1]


def align(lefts: Sequence[Any], rights: Sequence[Any]) -> list[Spans]:
    """Spans of each of B replies from the byte lengths of its tokens [N] and [M], as integers in any sequence.

    A token of no bytes belongs to the span that ends where it stands; at the very beginning to the first span.
    Raises ValueError where the two sides of a reply differ in their total, or a length is negative.

    >>> [spans] = align([[2, 3, 1]], [[1, 1, 4]])  # AA BBB C against A A BBBC
    >>> spans.left.tolist(), spans.right.tolist(), spans.number
    ([0, 1, 1], [0, 0, 1], 2)
    """
    if len(lefts) != len(rights):
        raise ValueError(f"{len(lefts)} replies on the left, {len(rights)} on the right")
    left, right = _Side.of(lefts), _Side.of(rights)
    if wrong := np.flatnonzero(left.totals != right.totals).tolist():
        first = wrong[0]
        raise ValueError(f"reply {first}: {left.totals[first]} bytes on the left, {right.totals[first]} on the right")

    # All replies lie on one tape, each from its own position 0 on: one more than the position where the last one ended.
    start = np.cumsum(left.totals + 1) - left.totals - 1
    end = start + left.totals
    common = left.boundaries(end) & right.boundaries(end)
    common[start] = False
    before = np.zeros(len(common) + 1, dtype=np.int32)  # of a position: common boundaries before it
    np.cumsum(common, out=before[1:])
    number = before[end + 1] - before[start]
    number[(left.totals == 0) & ((left.counts > 0) | (right.counts > 0))] = 1
    spans = zip(left.of_replies(before, start), right.of_replies(before, start), number.tolist(), strict=True)
    return [Spans(*three) for three in spans]


class _Side(NamedTuple):
    counts: Ints  # [B] tokens of each reply
    totals: Ints  # [B] bytes of each reply
    ends: Ints  # [N of all replies] where a token ends on the tape

    @classmethod
    def of(cls, replies: Sequence[Any]) -> "_Side":
        each = [np.asarray(lengths, dtype=np.int64) for lengths in replies]
        flat = np.concatenate([np.empty(0, np.int64), *each])
        if (flat < 0).any():
            raise ValueError("a token has a negative number of bytes")
        counts = np.array([len(lengths) for lengths in each], dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(flat)])
        last = np.cumsum(counts)
        return cls(counts, sums[last] - sums[last - counts], sums[1:] + np.repeat(np.arange(len(each)), counts))

    def boundaries(self, end: Ints) -> NDArray[np.bool_]:
        """Of each position of the tape, whether a token ends there."""
        found = np.zeros(int(end[-1]) + 1 if len(end) else 0, dtype=bool)
        found[self.ends] = True
        return found

    def of_replies(self, before: NDArray[np.int32], start: Ints) -> list[Ints]:
        spans = before[self.ends] - np.repeat(before[start].astype(np.int64), self.counts)
        last = np.cumsum(self.counts)
        return [spans[a:b] for a, b in zip((last - self.counts).tolist(), last.tolist(), strict=True)]


def _ranges(span_of: Ints, number: int) -> Ints:
    spans = np.arange(number)
    return np.stack([np.searchsorted(span_of, spans, side) for side in ("left", "right")], axis=1)
