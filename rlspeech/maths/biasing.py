"""Word errors of an utterance's rare words apart from those of all others: WER, U-WER and B-WER.

As Le et al., "Contextualized Streaming End-to-End Speech Recognition with Trie-Based Deep Biasing and Shallow Fusion",
Interspeech 2021 (arXiv 2104.02194), whose published counts come out to the last one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from operator import eq
from typing import Any, Literal, NamedTuple

import numpy as np

from rlspeech.maths.edits import Edits
from rlspeech.maths.word_numbers import compiled, numbered

Phrase = tuple[str, ...]  # normalised words
Unit = Literal["words", "characters"]
PAIRS_AT_ONCE = 512  # of a worker


@dataclass(frozen=True)
class BiasedEdits:
    """`unbiased` and `biased` add up to `total`; `words` are those of the reference."""

    total: Edits
    unbiased: Edits
    biased: Edits


class Found(NamedTuple):
    """Listed phrases that are heard: counted in the reference, in the hypothesis, and in both."""

    said: int
    heard: int
    right: int

    @property
    def precision(self) -> float | None:
        return self.right / self.heard if self.heard else None

    @property
    def recall(self) -> float | None:
        return self.right / self.said if self.said else None

    @property
    def f1(self) -> float | None:
        both = self.said + self.heard
        return 2 * self.right / both if both else None


def biased_edits(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[Sequence[str]],
    rare: Sequence[Collection[Phrase]],
    *,
    unit: Unit = "words",
    workers: int = 1,
) -> AllEdits:
    """Of each pair of word lists, with its rare words and phrases. `workers`: threads.

    Alignment: match 0, insertion 3, deletion 3, substitution 4; of equal costs substitution before insertion before
    deletion, seen from the end. A reference word is biased where it is part of a run of words that equals a phrase; an
    inserted word is biased where it is a word of one. In characters (spaces apart) each has the side of its word.
    Raises TypeError where a text is given for its words, ValueError where the three are not equally many.

    >>> (found,) = biased_edits([["call", "ann", "lee"]], [["call", "an", "lee", "now"]], [[("ann", "lee")]])
    >>> found.unbiased
    Edits(substitutions=0, insertions=1, deletions=0, words=1)
    >>> found.biased
    Edits(substitutions=1, insertions=0, deletions=0, words=2)
    """
    if str in set(map(type, chain(references, hypotheses))):
        raise TypeError("biased_edits() takes lists of words, not texts: see rlspeech.maths.text.words")
    if not len(references) == len(hypotheses) == len(rare):
        raise ValueError(f"{len(references)} references, {len(hypotheses)} hypotheses, {len(rare)} lists of rare words")
    equal = np.fromiter(map(eq, references, hypotheses), dtype=bool, count=len(references))
    hypotheses = [() if is_equal else words for is_equal, words in zip(equal.tolist(), hypotheses, strict=True)]
    pairs = _Pairs.of(references, hypotheses, rare)
    if unit == "characters":
        pairs = pairs.spelled(references, hypotheses)
    counts = np.zeros((len(references), 8), dtype=np.int64)
    kernel = compiled(_count)
    if workers == 1 or len(references) <= PAIRS_AT_ONCE:
        kernel(0, len(references), *pairs, equal, counts)
    else:
        starts = range(0, len(references), PAIRS_AT_ONCE)
        with ThreadPoolExecutor(workers) as pool:
            parts = [
                pool.submit(kernel, i, min(i + PAIRS_AT_ONCE, len(references)), *pairs, equal, counts) for i in starts
            ]
        for part in parts:
            part.result()
    return AllEdits(counts)


class _Pairs(NamedTuple):
    """Words (or characters) as numbers, one list after the other, where each list begins, and which are rare."""

    ref: np.ndarray
    ref_ends: np.ndarray
    ref_rare: np.ndarray
    hyp: np.ndarray
    hyp_ends: np.ndarray
    hyp_rare: np.ndarray

    @classmethod
    def of(
        cls,
        references: Sequence[Sequence[str]],
        hypotheses: Sequence[Sequence[str]],
        rare: Sequence[Collection[Phrase]],
    ) -> _Pairs:
        phrases = [phrase for one in rare for phrase in one]
        ref, hyp, phrase = numbered(references, hypotheses, phrases)
        made = cls(ref, _ends(references), np.zeros(len(ref), bool), hyp, _ends(hypotheses), np.zeros(len(hyp), bool))
        compiled(_flag)(*made, phrase, _ends(phrases), _ends(rare))
        return made

    def spelled(self, references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]) -> _Pairs:
        """The characters of the words."""
        return _Pairs(*_spelled(references, self.ref_rare), *_spelled(hypotheses, self.hyp_rare))


@dataclass(frozen=True)
class AllEdits(Sequence[BiasedEdits]):
    """Of each pair, in order; made into `BiasedEdits` where one is looked at."""

    counts: np.ndarray  # [pairs, 8], rows as `_told` takes them

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, place: Any) -> Any:
        rows = self.counts[place].tolist()
        return [_told(row) for row in rows] if isinstance(place, slice) else _told(rows)

    def __iter__(self) -> Iterator[BiasedEdits]:
        return map(_told, self.counts.tolist())


def summed(found: Iterable[BiasedEdits]) -> BiasedEdits:
    """Of a whole test set."""
    if isinstance(found, AllEdits):
        return _told(found.counts.sum(0).tolist())
    rows = [(*_row(one.unbiased), *_row(one.biased)) for one in found]
    return _told([sum(column) for column in zip(*rows, strict=True)] if rows else [0] * 8)


def phrase_runs(words: Sequence[str], phrases: Collection[Phrase]) -> list[tuple[int, int]]:
    """Half-open runs of words that equal a phrase, by their beginning; never a part of a word. They may overlap.

    >>> phrase_runs(["start", "the", "art", "fair"], {("art",), ("art", "fair")})
    [(2, 3), (2, 4)]
    """
    known, words = set(phrases), tuple(words)
    lengths = sorted({len(phrase) for phrase in known} - {0})
    runs = ((start, start + length) for start in range(len(words)) for length in lengths)
    return [(start, end) for start, end in runs if end <= len(words) and words[start:end] in known]


def found_phrases(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]], listed: Sequence[Collection[Phrase]]
) -> Found:
    """Over all pairs: how often listed phrases are said, are heard, and are both, one for one."""
    said = heard = right = 0
    for reference, hypothesis, phrases in zip(references, hypotheses, listed, strict=True):
        ours = Counter(tuple(reference[i:j]) for i, j in phrase_runs(reference, phrases))
        theirs = Counter(tuple(hypothesis[i:j]) for i, j in phrase_runs(hypothesis, phrases))
        said, heard, right = said + ours.total(), heard + theirs.total(), right + (ours & theirs).total()
    return Found(said, heard, right)


def _spelled(lists: Sequence[Sequence[str]], rare: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    texts = ["".join(words) for words in lists]
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.int32)
    lengths = np.fromiter(map(len, chain.from_iterable(lists)), dtype=np.int64)
    return characters, _ends(texts), np.repeat(rare, lengths)


def _ends(lists: Sequence[Collection[Any]]) -> np.ndarray:
    """Where each list begins in the flat one, and where the last one ends."""
    ends = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, lists), dtype=np.int64, count=len(lists)), out=ends[1:])
    return ends


def _told(row: Sequence[int]) -> BiasedEdits:
    """`row`: substitutions, insertions, deletions, words; first of the others, then of the rare ones."""
    others, rare = Edits(*row[:4]), Edits(*row[4:])
    return BiasedEdits(Edits(*(ours + theirs for ours, theirs in zip(row[:4], row[4:], strict=True))), others, rare)


def _row(edits: Edits) -> tuple[int, int, int, int]:
    return edits.substitutions, edits.insertions, edits.deletions, edits.words


def _flag(ref, ref_ends, ref_rare, hyp, hyp_ends, hyp_rare, phrase, phrase_ends, rare_ends):
    """Marks the reference's runs that equal a phrase, and the hypothesis's words that are a word of one."""
    for pair in range(len(rare_ends) - 1):
        for p in range(rare_ends[pair], rare_ends[pair + 1]):
            first, size = phrase_ends[p], phrase_ends[p + 1] - phrase_ends[p]
            for start in range(ref_ends[pair], ref_ends[pair + 1] - size + 1):
                k = 0
                while k < size and ref[start + k] == phrase[first + k]:
                    k += 1
                if k == size:
                    ref_rare[start : start + size] = True
            for place in range(hyp_ends[pair], hyp_ends[pair + 1]):
                for k in range(size):
                    if hyp[place] == phrase[first + k]:
                        hyp_rare[place] = True


def _count(first, last, ref, ref_ends, ref_rare, hyp, hyp_ends, hyp_rare, equal, counts):
    """Adds up the counts of the pairs first..last-1, those of rare words four places further. Pairs that are `equal`
    have words alone."""
    for pair in range(first, last):
        r0, h0 = ref_ends[pair], hyp_ends[pair]
        rows, columns = ref_ends[pair + 1] - r0, hyp_ends[pair + 1] - h0
        for i in range(rows):
            counts[pair, 7 if ref_rare[r0 + i] else 3] += 1
        if equal[pair]:
            continue
        while rows and columns and ref[r0 + rows - 1] == hyp[h0 + columns - 1]:  # the walk below would match them, too
            rows, columns = rows - 1, columns - 1
        if not rows and not columns:
            continue
        cost = np.empty((rows + 1, columns + 1), dtype=np.int32)
        for j in range(columns + 1):
            cost[0, j] = 3 * j
        for i in range(1, rows + 1):
            cost[i, 0] = 3 * i
            for j in range(1, columns + 1):
                apart = 0 if ref[r0 + i - 1] == hyp[h0 + j - 1] else 4
                cost[i, j] = min(cost[i - 1, j - 1] + apart, cost[i, j - 1] + 3, cost[i - 1, j] + 3)
        i, j = rows, columns
        while i > 0 or j > 0:
            same = i > 0 and j > 0 and ref[r0 + i - 1] == hyp[h0 + j - 1]
            if i > 0 and j > 0 and cost[i, j] == cost[i - 1, j - 1] + (0 if same else 4):
                i, j = i - 1, j - 1
                if not same:
                    counts[pair, 4 if ref_rare[r0 + i] else 0] += 1
            elif j > 0 and cost[i, j] == cost[i, j - 1] + 3:
                j -= 1
                counts[pair, 5 if hyp_rare[h0 + j] else 1] += 1
            else:
                i -= 1
                counts[pair, 6 if ref_rare[r0 + i] else 2] += 1
