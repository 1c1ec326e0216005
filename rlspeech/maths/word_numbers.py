"""Words as 64-bit numbers, equal for equal words: what is compared a million times is compared fast."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import cache
from itertools import chain, count
from typing import Any

import numpy as np

SEPARATOR = "\0"
FNV_OFFSET, FNV_PRIME = 0xCBF29CE484222325, 0x100000001B3

Lists = Sequence[Collection[str]]


def numbered(*groups: Lists) -> list[np.ndarray]:
    """Of each group, the numbers of all words of its lists, one after the other [words], int64.

    By FNV-1a of the UTF-8 bytes: of a million different words, two have one number with a chance of 3 in 10^8. Where a
    word holds the separator, all are counted instead.
    """
    hashed = [_hashed(_joined(lists), sum(map(len, lists))) for lists in groups]
    if all(one is not None for one in hashed):
        return [one for one in hashed if one is not None]
    numbers: defaultdict[str, int] = defaultdict(count().__next__)
    return [np.fromiter(map(numbers.__getitem__, chain.from_iterable(one)), dtype=np.int64) for one in groups]


def _joined(lists: Lists) -> str:
    return SEPARATOR.join(map(SEPARATOR.join, filter(None, lists)))


def _hashed(text: str, size: int) -> np.ndarray | None:
    """Of so many words; None where one of them holds the separator."""
    found = np.empty(size, dtype=np.uint64)
    if size:
        bytes_ = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        if compiled(_hash)(bytes_, found) != size:
            return None
    return found.view(np.int64)


@cache
def compiled(function: Callable[..., Any]) -> Any:
    """Machine code, made at the first use and kept where numba may."""
    from numba import njit

    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place to keep it in
        return njit(nogil=True)(function)


def _hash(text, found):
    """How many words the text has; the numbers of the first ones."""
    offset, prime = np.uint64(FNV_OFFSET), np.uint64(FNV_PRIME)
    number, place = offset, 0
    for byte in text:
        if byte == 0:
            if place < len(found):
                found[place] = number
            number, place = offset, place + 1
        else:
            number = (number ^ np.uint64(byte)) * prime
    if place < len(found):
        found[place] = number
    return place + 1
