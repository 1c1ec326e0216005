"""Machine code of the scorer of rare words: words as numbers, which of them are rare, and the alignments' counts.

Imports numba, which vLLM cannot start beside (engines/vllm_engine.py): to be imported where it is called.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
FAR = 1 << 29  # above any cost


def machine(function: Callable[..., Any]) -> Any:
    """Made at the first use, and kept where numba may."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place to keep it in
        return njit(nogil=True)(function)


@machine
def score(ref_text, ref_sizes, hyp_text, hyp_sizes, phrase_text, phrase_sizes, rare_sizes, counts):
    """All in one, of words in UTF-8 with a zero byte between two. False, and nothing counted, where a word has one."""
    ref, hyp = hashed(ref_text, ref_sizes.sum()), hashed(hyp_text, hyp_sizes.sum())
    phrase = hashed(phrase_text, phrase_sizes.sum())
    if len(ref) < ref_sizes.sum() or len(hyp) < hyp_sizes.sum() or len(phrase) < phrase_sizes.sum():
        return False
    ref_rare, hyp_rare = flagged(ref, ref_sizes, hyp, hyp_sizes, phrase, phrase_sizes, rare_sizes)
    count(ref, ref_sizes, ref_rare, hyp, hyp_sizes, hyp_rare, counts)
    return True


@machine
def hashed(text, size):
    """FNV-1a of each of so many words, int64; empty where there are not as many.

    Of a million different words, two have one number with a chance of 3 in 10^8.
    """
    found = np.empty(size, dtype=np.int64)
    number, place = FNV_OFFSET, 0
    for byte in text:
        if byte == 0:
            if place < size:
                found[place] = np.int64(number)
            number, place = FNV_OFFSET, place + 1
        else:
            number = (number ^ np.uint64(byte)) * FNV_PRIME
    if place < size:
        found[place] = np.int64(number)
    return found if place + 1 == size or len(text) == size == 0 else found[:0]


@machine
def flagged(ref, ref_sizes, hyp, hyp_sizes, phrase, phrase_sizes, rare_sizes):
    """Marks the reference's runs that equal a phrase, and the hypothesis's words that are a word of one."""
    ref_rare, hyp_rare = np.zeros(len(ref), dtype=np.bool_), np.zeros(len(hyp), dtype=np.bool_)
    r = h = first = p = 0
    for pair in range(len(rare_sizes)):
        said, said_rare = ref[r : r + ref_sizes[pair]], ref_rare[r : r + ref_sizes[pair]]
        heard, heard_rare = hyp[h : h + hyp_sizes[pair]], hyp_rare[h : h + hyp_sizes[pair]]
        r, h = r + ref_sizes[pair], h + hyp_sizes[pair]
        for _ in range(rare_sizes[pair]):
            words = phrase[first : first + phrase_sizes[p]]
            first, p = first + phrase_sizes[p], p + 1
            if len(words) == 1:
                for i in range(len(said)):
                    said_rare[i] |= said[i] == words[0]
            for start in range(len(said) - len(words) + 1 if len(words) > 1 else 0):
                k = 0
                while k < len(words) and said[start + k] == words[k]:
                    k += 1
                if k == len(words):
                    said_rare[start : start + k] = True
            for word in words:
                for i in range(len(heard)):
                    heard_rare[i] |= heard[i] == word
    return ref_rare, hyp_rare


@machine
def count(ref, ref_sizes, ref_rare, hyp, hyp_sizes, hyp_rare, counts):
    """Substitutions, insertions, deletions and words of each pair, those of rare words four places further."""
    table = np.empty(1024, dtype=np.int32)
    r = h = 0
    for pair in range(len(counts)):
        rows, columns = ref_sizes[pair], hyp_sizes[pair]
        said, said_rare = ref[r : r + rows], ref_rare[r : r + rows]
        heard, heard_rare = hyp[h : h + columns], hyp_rare[h : h + columns]
        r, h = r + rows, h + columns
        rare = said_rare.sum()
        counts[pair, 3], counts[pair, 7] = rows - rare, rare
        while rows and columns and said[rows - 1] == heard[columns - 1]:  # the walk back would match them, too
            rows, columns = rows - 1, columns - 1
        if rows or columns:
            table, width, below = costs(said[:rows], heard[:columns], table)
            walk(said[:rows], said_rare, heard[:columns], heard_rare, table, width, below, counts[pair])


@machine
def costs(said, heard, table):
    """The least costs of the first i against the first j words, at i * width + j - i + below: (table, width, below).

    Only of a band about the diagonals from corner to corner, `slack` wide on either side. A way that leaves it has at
    least 2 * (slack + 1) insertions and deletions more than it must: where that costs more than the way found, every
    best way is inside.
    """
    rows, columns = len(said), len(heard)
    slack, apart = 2, abs(rows - columns)
    while True:
        below, width = max(rows - columns, 0) + slack, apart + 2 * slack + 2
        if (rows + 1) * width > len(table):
            table = np.empty(2 * (rows + 1) * width, dtype=np.int32)
        for i in range(rows + 1):
            start, left = i * width + below - i, FAR
            table[(i + 1) * width - 1] = FAR
            if i <= below:
                table[start] = left = 3 * i
            for j in range(max(1, i - below), min(columns, i - below + width - 2) + 1):
                left += 3
                if i:
                    changed = table[start - width + j] + (0 if said[i - 1] == heard[j - 1] else 4)
                    left = min(left, changed, table[start - width + j + 1] + 3)
                table[start + j] = left
        least = table[rows * width + columns - rows + below]
        if slack >= min(rows, columns) or least < 3 * (apart + 2 * slack + 2):
            return table, width, below
        slack *= 2


@machine
def walk(said, said_rare, heard, heard_rare, table, width, below, counts):
    """Back from the end: of equal costs substitution before insertion before deletion."""
    i, j = len(said), len(heard)
    while i > 0 or j > 0:
        here = i * width + j - i + below
        same = i > 0 and j > 0 and said[i - 1] == heard[j - 1]
        if i > 0 and j > 0 and table[here] == table[here - width] + (0 if same else 4):
            i, j = i - 1, j - 1
            if not same:
                counts[4 if said_rare[i] else 0] += 1
        elif j > 0 and table[here] == table[here - 1] + 3:
            j -= 1
            counts[5 if heard_rare[j] else 1] += 1
        else:
            i -= 1
            counts[6 if said_rare[i] else 2] += 1
