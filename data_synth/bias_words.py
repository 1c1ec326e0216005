"""Biasing lists: rare words of the reference among distractors, and the prompt that shows them.

The list of a sample is a function of the seed, the turn, the sample's id and the pool, so all replies of a group read
the same. Shape letters: R rare words, P words of the pool.
"""

import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import fuzz, process

from rlspeech.maths.marks import marked
from rlspeech.maths.text import raw_words
from rlspeech.types import Sample

SPARE = 8  # hard distractors are drawn from so many more of the most alike words than are asked for


@dataclass(frozen=True)
class Synth:
    """Samples with `biasing_words`, and an instruction that shows them.

    With probability `present` there is a list, of a size drawn evenly from size_low..size_high; with `hit` it holds
    rare words of the reference, a share of them drawn evenly from share_low..share_high (at least one word); the rest
    are distractors, of which the share `hard` is spelled like a rare word of the reference and the others are drawn
    evenly. A list is shuffled, so that a place in it tells nothing; it is shorter only where the pool runs out. As in
    RLBR (arXiv 2601.13409) and Le et al. (arXiv 2104.02194): the words of `common`, the most frequent ones, are never
    rare words.
    """

    seed: int = 0
    present: float = 0.8
    hit: float = 1.0
    size_low: int = 1
    size_high: int = 100
    share_low: float = 0.9
    share_high: float = 1.0
    hard: float = 0.3
    common: Path | None = None  # a word a line, the most frequent first; without it rare words are those of the sample
    common_words: int = 5_000  # the first ones of that file
    buffer: int = 5_000  # rare words of earlier utterances that distractors are drawn from, the latest ones
    with_list: str = "{instruction} These words may be said: {list}"
    without_list: str = "{instruction}"
    separator: str = ", "
    marks: bool = False  # *stars* round listed words, in the prompt and in the reference

    def __post_init__(self) -> None:
        for name in ("present", "hit", "share_low", "share_high", "hard"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        if not 0 <= self.size_low <= self.size_high <= 2_000:
            sizes = f"{self.size_low} and {self.size_high}"
            raise ValueError(f"sizes must satisfy 0 <= size_low <= size_high <= 2000, got {sizes}")
        if self.share_low > self.share_high:
            raise ValueError(f"share_low must not be above share_high, got {self.share_low} and {self.share_high}")
        if self.buffer < 1 or self.common_words < 0:
            raise ValueError("buffer must be at least 1 and common_words not negative")
        if self.with_list.count("{list}") != 1 or "{instruction}" not in self.with_list:
            raise ValueError("with_list must hold {instruction} and {list}, the list once")
        if "{instruction}" not in self.without_list or "{list}" in self.without_list:
            raise ValueError("without_list must hold {instruction} and no {list}")
        if self.common is not None and not self.common.is_file():
            raise ValueError(f"common: no file {self.common}")

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Each sample with one list, whose distractors are rare words of the samples before it."""
        earlier: OrderedDict[str, None] = OrderedDict()
        for sample in samples:
            yield self.draw(sample, turn="", pool=tuple(earlier))
            for word in self.rare_words(sample):
                earlier[word] = None
                earlier.move_to_end(word)
            while len(earlier) > self.buffer:
                earlier.popitem(last=False)

    def rare_words(self, sample: Sample) -> tuple[str, ...]:
        """Those of the sample; where it has none, the words of its transcript that are not common, each once.

        They are spelled as there. Where a script puts no spaces between words those are characters: give `rare_words`.
        """
        if sample.rare_words or self.common is None:
            return sample.rare_words
        spelled: dict[str, str] = {}
        for word in raw_words(sample.reference or sample.transcript or "", cased=True):
            spelled.setdefault(word.lower(), word)
        return tuple(word for key, word in spelled.items() if key not in self._common)

    def draw(self, sample: Sample, *, turn: int | str, pool: Sequence[str]) -> Sample:
        """The sample with a list. `turn`: which of its draws; `pool`: words that distractors are drawn from."""
        rng = random.Random(f"{self.seed}:{turn}:{sample.id}")
        rare = self.rare_words(sample)
        listed: list[str] = []
        if rng.random() < self.present:
            size = rng.randint(self.size_low, self.size_high)
            if rare and size and rng.random() < self.hit:
                share = rng.uniform(self.share_low, self.share_high)
                count = max(1, int(len(rare) * share + rng.random()))  # rounded by chance: the mean is the share
                listed = rng.sample(rare, min(count, size))
            listed += _distractors(rng, sample, rare, pool, size - len(listed), hard=self.hard)
            listed = [listed[place] for place in _generator(rng).permutation(len(listed)).tolist()]
        return replace(sample, rare_words=rare, biasing_words=tuple(listed), **self._shown(sample, rare, listed))

    def _shown(self, sample: Sample, rare: Sequence[str], listed: Sequence[str]) -> dict[str, Any]:
        if not listed:
            return {"instruction": self.without_list.replace("{instruction}", sample.instruction)}
        text = self.separator.join([f"*{word}*" for word in listed] if self.marks else listed)
        before, after = self.with_list.split("{list}", 1)
        shown = text.join(part.replace("{instruction}", sample.instruction) for part in (before, after))
        if not self.marks or sample.reference is None:
            return {"instruction": shown}
        return {"instruction": shown, "reference": marked(sample.reference, sorted(set(rare).intersection(listed)))}

    @cached_property
    def _common(self) -> frozenset[str]:
        assert self.common is not None
        lines = self.common.read_text(encoding="utf-8").splitlines()
        return frozenset(line.split()[0].lower() for line in lines[: self.common_words] if line.strip())


@dataclass(frozen=True)
class _Pool:
    """Words without those that differ from an earlier one in case or punctuation alone."""

    words: list[str]
    keys: list[str]  # what they are compared by
    place: dict[str, int]  # of a key
    phrases: dict[str, list[int]]  # of which a piece is part
    longest: int  # words of the longest phrase

    def said(self, sample: Sample, rare: Sequence[str]) -> set[int]:
        """Places of what the sample says, and of phrases with a piece of a rare one: a first name with another last."""
        said: set[int] = set()
        for text in (sample.reference or "", sample.transcript or "", *rare):
            tokens = raw_words(text)
            for length in range(1, self.longest + 1):
                runs = (" ".join(tokens[at : at + length]) for at in range(len(tokens) - length + 1))
                said.update(self.place[run] for run in runs if run in self.place)
        pieces = {piece for word in rare for piece in word.lower().split()}
        return said.union(*(self.phrases.get(piece, ()) for piece in pieces))


def _distractors(
    rng: random.Random, sample: Sample, rare: Sequence[str], pool: Sequence[str], count: int, *, hard: float
) -> list[str]:
    """`count` different words of the pool of which none is said; fewer where it has no more."""
    known = _pool(tuple(pool))
    if not known.words:
        return []
    taken = known.said(sample, rare)
    chosen: list[int] = []
    alike = int(count * hard + rng.random()) if rare else 0
    shares = Counter(rng.choices(rare, k=alike)) if alike else {}
    for order, share in zip(_nearest(list(shares), known.keys), shares.values(), strict=True):
        nearest = order[: share + SPARE + len(taken)].tolist()  # enough, were all of the taken ones among them
        free = [place for place in nearest if place not in taken][: share + SPARE]
        chosen += rng.sample(free, min(share, len(free)))
        taken.update(chosen)
    left = count - len(chosen)
    drawn = _generator(rng).choice(len(known.words), size=min(left + len(taken), len(known.words)), replace=False)
    chosen += [place for place in drawn.tolist() if place not in taken][:left]
    return [known.words[place] for place in chosen]


@lru_cache(maxsize=2)
def _pool(words: tuple[str, ...]) -> _Pool:
    found: dict[str, str] = {}
    for word in words:
        found.setdefault(_key(word), word)
    found.pop("", None)
    phrases: dict[str, list[int]] = defaultdict(list)
    for place, word in enumerate(found.values()):
        if " " in word:
            for piece in word.lower().split():
                phrases[piece].append(place)
    return _Pool(
        words=list(found.values()),
        keys=list(found),
        place={key: place for place, key in enumerate(found)},
        phrases=phrases,
        longest=max((key.count(" ") + 1 for key in found), default=0),
    )


@lru_cache(maxsize=1 << 17)
def _key(word: str) -> str:
    return " ".join(raw_words(word))


def _nearest(rare: Sequence[str], keys: Sequence[str]) -> np.ndarray:
    """For each rare word the places of the pool [R, P], those spelled most alike first."""
    alike_RP = process.cdist([_key(word) for word in rare], keys, scorer=fuzz.ratio, dtype=np.uint8)  # 0..100
    return np.argsort(100 - alike_RP, axis=1, kind="stable")


def _generator(rng: random.Random) -> np.random.Generator:
    """NumPy's draws of thousands take microseconds where random's take milliseconds."""
    return np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
