"""Word errors of an utterance's rare words apart from those of all others: WER, U-WER and B-WER.

As Le et al., "Contextualized Streaming End-to-End Speech Recognition with Trie-Based Deep Biasing and Shallow Fusion",
Interspeech 2021 (arXiv 2104.02194), whose published counts come out to the last one.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from rlspeech.maths.edits import Edits

Phrase = tuple[str, ...]  # normalised words
Unit = Literal["words", "characters"]
PAIRS_AT_ONCE = 900  # of fewer, threads wait for Python's lock more than they work


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
    deletion, seen from the end. A word is biased where it is part of a run of words that equals a phrase: a word of the
    reference by the runs there, an inserted one by those of the hypothesis. So an inserted word of the rare list is
    biased, and the "of" of "Bank of America" is not where it stands alone. In characters (spaces apart) each has the
    side of its word. Raises TypeError where a text is given for its words or for a phrase, ValueError where the three
    are not equally many or the unit is none.

    >>> (found,) = biased_edits([["call", "ann", "lee"]], [["call", "an", "lee", "now"]], [[("ann", "lee")]])
    >>> found.unbiased
    Edits(substitutions=0, insertions=1, deletions=0, words=1)
    >>> found.biased
    Edits(substitutions=1, insertions=0, deletions=0, words=2)
    """
    if str in set(map(type, chain(references, hypotheses, rare, chain.from_iterable(rare)))):
        raise TypeError("biased_edits() takes lists of words, and phrases of words: see rlspeech.maths.text.words")
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be words or characters, got {unit!r}")
    if not len(references) == len(hypotheses) == len(rare):
        raise ValueError(f"{len(references)} references, {len(hypotheses)} hypotheses, {len(rare)} lists of rare words")
    counts = np.zeros((len(references), 8), dtype=np.int64)
    starts = range(0, len(references), PAIRS_AT_ONCE)
    blocks: list[tuple[Any, ...]] = [
        tuple(one[i : i + PAIRS_AT_ONCE] for one in (references, hypotheses, rare, counts)) for i in starts
    ]
    if unit == "words":
        blocks = [block for block, done in zip(blocks, _scored(blocks, workers), strict=True) if not done]
    for block in blocks:
        _count(*block, unit=unit)
    return AllEdits(counts)


def _scored(blocks: Sequence[tuple[Any, ...]], workers: int) -> list[bool]:
    """Which blocks could be scored as bytes; their counts are filled in."""
    from rlspeech.maths.biasing_kernels import score

    if workers < 2:
        return [score(*_given(*block)) for block in blocks]
    with ThreadPoolExecutor(workers - 1) as pool:  # beside this thread, which hands over the words, and scores the last
        done = []
        for block in blocks[:-1]:
            done.append(pool.submit(score, *_given(*block)))
            time.sleep(0)  # lets go of Python's lock, which the others would ask for after 5 ms only
        last = [score(*_given(*block)) for block in blocks[-1:]]
        return [one.result() for one in done] + last


def _given(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[Sequence[str]],
    rare: Sequence[Collection[Phrase]],
    counts: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """What `score` takes."""
    phrases = [phrase for one in rare for phrase in one]
    words = [part for lists in (references, hypotheses, phrases) for part in (_windows(lists), _sizes(lists))]
    return (*words, _sizes(rare), counts)


def _count(
    references: Sequence[Sequence[str]],
    hypotheses: Sequence[Sequence[str]],
    rare: Sequence[Collection[Phrase]],
    counts: np.ndarray,
    *,
    unit: Unit,
) -> None:
    """Of characters, and of words whatever is in them."""
    from rlspeech.maths import biasing_kernels as kernels

    groups = references, hypotheses, [phrase for one in rare for phrase in one]
    sizes = [_sizes(lists) for lists in groups]
    numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    ref, hyp, phrase = (np.fromiter(map(numbers.__getitem__, chain.from_iterable(one)), np.int64) for one in groups)
    ref_rare, hyp_rare = kernels.flagged(ref, sizes[0], hyp, sizes[1], phrase, sizes[2], _sizes(rare))
    if unit == "characters":
        kernels.count(*_spelled(references, ref_rare), *_spelled(hypotheses, hyp_rare), counts)
    else:
        kernels.count(ref, sizes[0], ref_rare, hyp, sizes[1], hyp_rare, counts)


def _windows(lists: Sequence[Collection[str]]) -> np.ndarray:
    """All words in UTF-8, a zero byte behind each: the eight bytes from each byte on, as one number."""
    text = "\0".join([*map("\0".join, filter(None, lists)), "\0\0\0\0\0\0\0\0"])
    raw = text.encode("utf-8", "surrogatepass")
    return np.ndarray((len(raw) - 8,), dtype="<u8", buffer=raw, strides=(1,))


def _sizes(lists: Sequence[Sized]) -> np.ndarray:
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))


def _spelled(lists: Sequence[Sequence[str]], rare: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The characters of each list, how many, and which are of rare words."""
    texts = ["".join(words) for words in lists]
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.int32)
    lengths = np.fromiter(map(len, chain.from_iterable(lists)), dtype=np.int64)
    return characters, _sizes(texts), np.repeat(rare, lengths)


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


def lost_phrases(words: Sequence[str], phrases: Sequence[Phrase]) -> list[int]:
    """Places of the phrases that are not in the words, whose errors count as those of other words.

    Where both are normalised, a phrase alone may come to another word than in its sentence.

    >>> lost_phrases(["1700", "men"], [("17",), ("men",)])
    [0]
    """
    found = {tuple(words[start:end]) for start, end in phrase_runs(words, phrases)}
    return [place for place, phrase in enumerate(phrases) if phrase not in found]


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


def _told(row: Sequence[int]) -> BiasedEdits:
    """`row`: substitutions, insertions, deletions, words; first of the others, then of the rare ones."""
    others, rare = Edits(*row[:4]), Edits(*row[4:])
    return BiasedEdits(Edits(*(ours + theirs for ours, theirs in zip(row[:4], row[4:], strict=True))), others, rare)


def _row(edits: Edits) -> tuple[int, int, int, int]:
    return edits.substitutions, edits.insertions, edits.deletions, edits.words
