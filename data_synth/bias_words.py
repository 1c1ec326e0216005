"""Biasing lists: rare words of the reference among distractors, and the prompt that shows them.

The list of a sample is a function of the seed, the turn, the sample's id and the pool, so all replies of a group read
the same. Shape letters: R rare words, P words of the pool.
"""

import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz import fuzz, process

from rlspeech.maths import phonetics
from rlspeech.maths.marks import marked
from rlspeech.maths.text import raw_words
from rlspeech.types import Sample

ALIKE = 50.0  # of 100: what is less like a rare word is no hard distractor
SPREAD = 10.0  # of words that differ in likeness by less, chance decides which is the nearer one


@dataclass(frozen=True)
class Synth:
    """Samples with `biasing_words`, and an instruction that shows them.

    With probability `present` there is a list, of a size drawn evenly from size_low..size_high; with `hit` it holds
    rare words of the reference, a share of them drawn evenly from share_low..share_high (at least one word); the rest
    are distractors, of which the share `hard` is the most like a rare word of the reference, in spelling or sound, that
    the pool has (fewer where it has no more that are), and the others are drawn evenly. A list is shuffled and its
    distractors take the capitals of the rare words, so that place and case tell nothing; it is shorter only where the
    pool runs out. As in RLBR (arXiv 2601.13409) and Le et al. (arXiv 2104.02194): the words of `common`, the most
    frequent ones, are never rare words.
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
            distractors = _distractors(rng, sample, rare, pool, size - len(listed), hard=self.hard)
            listed += _cased(rng, distractors, rare)
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
        lines = self.common.read_text(encoding="utf-8-sig").split("\n")
        return frozenset(line.split()[0].lower() for line in lines[: self.common_words] if line.strip())


@dataclass(frozen=True)
class _Pool:
    """Words without those that differ from an earlier one in case or punctuation alone."""

    words: list[str]
    keys: list[str]  # what they are compared by
    place: dict[str, int]  # of a key
    phrases: dict[str, list[int]]  # of which a piece is part
    longest: int  # words of the longest phrase

    @cached_property
    def sounds(self) -> list[str]:
        return [_sound(key) for key in self.keys]

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
    if alike:
        alike_RP = _likeness(rare, known)
        shares = Counter(rng.choices(range(len(rare)), k=alike))
        rows = [(alike_RP[row], share) for row, share in shares.items()]
        for alike_P, share in [*rows, (alike_RP.max(0), alike)]:  # in the end of any, where one has too few
            free = [place for place in _nearest(rng, alike_P) if place not in taken]
            chosen += free[: min(share, alike - len(chosen))]
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


@lru_cache(maxsize=1 << 17)
def _sound(key: str) -> str:
    return phonetics.key(key)


def _likeness(rare: Sequence[str], pool: _Pool) -> np.ndarray:
    """Of rare words and the pool's [R, P], 0..100: of their spelling, or its mean with that of their sound if more.

    Words without a sound, as in other scripts, are compared by their spelling.
    """
    keys = [_key(word) for word in rare]
    spelled_RP = process.cdist(keys, pool.keys, scorer=fuzz.ratio, dtype=np.float32)
    sounds = [_sound(key) for key in keys]
    sounding_RP = process.cdist(sounds, pool.sounds, scorer=fuzz.ratio, dtype=np.float32)
    sounding_RP[[not sound for sound in sounds]] = 0
    return np.maximum(spelled_RP, (spelled_RP + sounding_RP) / 2)


def _nearest(rng: random.Random, alike_P: np.ndarray) -> list[int]:
    """Places of the pool's words that are alike, the nearest first."""
    places = np.flatnonzero(alike_P >= ALIKE)
    distance = -alike_P[places] + SPREAD * _generator(rng).random(len(places))
    return places[np.argsort(distance, kind="stable")].tolist()


def _cased(rng: random.Random, words: Sequence[str], rare: Sequence[str]) -> list[str]:
    """Each in the capitals of a rare word: all, none, or those of the beginnings. Other rare words change nothing.

    >>> _cased(random.Random(0), ["ann lee", "O'Neil", "IBM"], ["Bo", "Kim Moore"])
    ['Ann Lee', "O'Neil", 'Ibm']
    """
    styles = [_style(word) for word in rare]
    if not styles:
        return list(words)
    chosen = rng.choices(styles, k=len(words)) if len(set(styles)) > 1 else styles[:1] * len(words)
    return [style(word) for style, word in zip(chosen, words, strict=True)]


def _style(word: str) -> Callable[[str], str]:
    """What spells another word as this one is."""
    if word.islower():
        return str.lower
    if word.isupper() and sum(map(str.isalpha, word)) > 1:
        return str.upper
    return _titled if all(piece[0].isupper() for piece in word.split()) else str


def _titled(word: str) -> str:
    lower = word.lower() if word.isupper() else word
    return " ".join(piece[0].upper() + piece[1:] for piece in lower.split())


def _generator(rng: random.Random) -> np.random.Generator:
    """NumPy's draws of thousands take microseconds where random's take milliseconds."""
    return np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
