"""Machine code of the scorer of rare words: words as numbers, which of them are rare, and the alignments' counts.

Imports numba, which vLLM cannot start beside (engines/vllm_engine.py): to be imported where it is called.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
FULL, BYTE, NONE, HALF = np.uint64(2**64 - 1), np.uint64(255), np.uint64(0), np.uint64(32)
EIGHT = 8  # bytes
FAR = 1 << 29  # above any cost


def machine(function: Callable[..., Any]) -> Any:
    """Made at the first use, and kept where numba may."""
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place to keep it in
        return njit(nogil=True)(function)


@machine
def score(ref_text, ref_sizes, hyp_text, hyp_sizes, phrase_text, phrase_sizes, rare_sizes, counts):
    """All in one, of words in UTF-8. False, and nothing counted, where a word holds the zero byte that parts them."""
    ref, hyp = hashed(ref_text, ref_sizes.sum()), hashed(hyp_text, hyp_sizes.sum())
    phrase = hashed(phrase_text, phrase_sizes.sum())
    if len(ref) < ref_sizes.sum() or len(hyp) < hyp_sizes.sum() or len(phrase) < phrase_sizes.sum():
        return False
    ref_rare, hyp_rare = flagged(ref, ref_sizes, hyp, hyp_sizes, phrase, phrase_sizes, rare_sizes)
    count(ref, ref_sizes, ref_rare, hyp, hyp_sizes, hyp_rare, counts)
    return True


@machine
def hashed(windows, size):
    """A number for each of so many words, int64; empty where there are not as many.

    `windows`: the eight bytes from each byte of the text on, a zero byte behind each word and eight at the end. FNV-1a
    of eight bytes at a time, so that words of up to eight bytes never share a number, and of a million longer ones two
    do with a chance of 3 in 10^8.
    """
    ends, words = np.empty(size + 1, dtype=np.int64), 0
    for place in range(len(windows)):
        ends[min(words, size)] = place
        words += (windows[place] & BYTE) == 0
    found = np.empty(size, dtype=np.int64)
    if words != size:
        return found[:0]
    start = 0
    for word in range(size):
        number = FNV_OFFSET
        while ends[word] - start > EIGHT:
            number = (number ^ windows[start]) * FNV_PRIME
            number ^= number >> HALF
            start += EIGHT
        left = ends[word] - start
        kept = windows[start] & (FULL >> np.uint64(8 * (EIGHT - left))) if left else NONE
        found[word] = np.int64((number ^ kept) * FNV_PRIME)
        start = ends[word] + 1
    return found


@machine
def flag(words, rare, phrase):
    """Sets `rare` in the runs of words that equal the phrase."""
    if len(phrase) == 1:
        for i in range(len(words)):
            rare[i] |= words[i] == phrase[0]
        return
    for start in range(len(words) - len(phrase) + 1 if len(phrase) else 0):
        k = 0
        while k < len(phrase) and words[start + k] == phrase[k]:
            k += 1
        if k == len(phrase):
            rare[start : start + k] = True


@machine
def flagged(ref, ref_sizes, hyp, hyp_sizes, phrase, phrase_sizes, rare_sizes):
    """Marks the runs of words that equal a phrase, in the reference and in the hypothesis."""
    ref_rare, hyp_rare = np.zeros(len(ref), dtype=np.bool_), np.zeros(len(hyp), dtype=np.bool_)
    r = h = first = p = 0
    for pair in range(len(rare_sizes)):
        said, said_rare = ref[r : r + ref_sizes[pair]], ref_rare[r : r + ref_sizes[pair]]
        heard, heard_rare = hyp[h : h + hyp_sizes[pair]], hyp_rare[h : h + hyp_sizes[pair]]
        r, h = r + ref_sizes[pair], h + hyp_sizes[pair]
        for _ in range(rare_sizes[pair]):
            words = phrase[first : first + phrase_sizes[p]]
            first, p = first + phrase_sizes[p], p + 1
            flag(said, said_rare, words)
            flag(heard, heard_rare, words)
    return ref_rare, hyp_rare


@machine
def count(ref, ref_sizes, ref_rare, hyp, hyp_sizes, hyp_rare, counts):
    """Substitutions, insertions, deletions and words of each pair, those of rare words four places further."""
    table = np.empty(1024, dtype=np.int32)
    r = h = 0
    for pair in range(len(counts)):
        rows, columns = ref_sizes[pair], hyp_sizes[pair]
        rare = 0
        for i in range(r, r + rows):
            rare += ref_rare[i]
        counts[pair, 3], counts[pair, 7] = rows - rare, rare
        while rows and columns and ref[r + rows - 1] == hyp[h + columns - 1]:  # the walk back would match them, too
            rows, columns = rows - 1, columns - 1
        if rows or columns:
            table, width, below = costs(ref, r, rows, hyp, h, columns, table)
            walk(ref, r, rows, ref_rare, hyp, h, columns, hyp_rare, table, width, below, counts, pair)
        r, h = r + ref_sizes[pair], h + hyp_sizes[pair]


@machine
def costs(ref, r, rows, hyp, h, columns, table):
    """The least costs of the first i against the first j words, at i * width + j - i + below: (table, width, below).

    Only of a band about the diagonals from corner to corner, `slack` wide on either side. A way that leaves it has at
    least 2 * (slack + 1) insertions and deletions more than it must: where that costs more than the way found, every
    best way is inside.
    """
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
                    changed = table[start - width + j] + (0 if ref[r + i - 1] == hyp[h + j - 1] else 4)
                    left = min(left, changed, table[start - width + j + 1] + 3)
                table[start + j] = left
        least = table[rows * width + columns - rows + below]
        if slack >= min(rows, columns) or least < 3 * (apart + 2 * slack + 2):
            return table, width, below
        slack *= 2


@machine
def walk(ref, r, i, ref_rare, hyp, h, j, hyp_rare, table, width, below, counts, pair):
    """Back from word i and j: of equal costs substitution before insertion before deletion."""
    while i > 0 or j > 0:
        here = i * width + j - i + below
        same = i > 0 and j > 0 and ref[r + i - 1] == hyp[h + j - 1]
        if i > 0 and j > 0 and table[here] == table[here - width] + (0 if same else 4):
            i, j = i - 1, j - 1
            if not same:
                counts[pair, 4 if ref_rare[r + i] else 0] += 1
        elif j > 0 and table[here] == table[here - 1] + 3:
            j -= 1
            counts[pair, 5 if hyp_rare[h + j] else 1] += 1
        else:
            i -= 1
            counts[pair, 6 if ref_rare[r + i] else 2] += 1
