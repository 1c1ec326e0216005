"""Biasing lists: rare words of the reference among distractors, and the prompt that shows them.

The list of a sample is a function of the seed, the turn and the sample's id, so all replies of a group read the same.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz, process

from rlspeech.maths.marks import marked
from rlspeech.maths.text import raw_words
from rlspeech.types import Sample

NEAR = 8  # of how many most alike words a hard distractor is drawn


@dataclass(frozen=True)
class Synth:
    """Samples with `biasing_words`, and an instruction that shows them.

    With probability `present` there is a list, of a size drawn evenly from size_low..size_high; with `hit` it holds
    rare words of the reference, a share of them drawn from share_low..share_high (at least one); the rest are
    distractors, of which the share `hard` is spelled like a rare word of the reference and the others are drawn evenly.
    A list is shuffled, so that a place in it tells nothing. As in RLBR (arXiv 2601.13409) and Le et al. (arXiv
    2104.02194): the words of `common`, the most frequent ones, are never rare words.
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
    separator: str = ", "
    marks: bool = False  # *stars* round listed words, in the prompt and in the reference

    def __post_init__(self) -> None:
        for name in ("present", "hit", "share_low", "share_high", "hard"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0..1, got {getattr(self, name)}")
        if not 0 <= self.size_low <= self.size_high <= 2_000:
            raise ValueError(f"sizes must satisfy 0 <= size_low <= size_high <= 2000, got {self._sizes}")
        if self.share_low > self.share_high:
            raise ValueError(f"share_low must not be above share_high, got {self.share_low} and {self.share_high}")
        if self.buffer < 1 or self.common_words < 0:
            raise ValueError("buffer must be at least 1 and common_words not negative")
        if "{list}" not in self.with_list or "{instruction}" not in self.with_list:
            raise ValueError("with_list must hold {instruction} and {list}")
        if self.common is not None and not self.common.is_file():
            raise ValueError(f"common: no file {self.common}")

    @property
    def _sizes(self) -> str:
        return f"{self.size_low} and {self.size_high}"

    def __call__(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Each sample with one list, whose distractors are rare words of the samples before it."""
        earlier: dict[str, None] = {}
        for sample in samples:
            yield self.draw(sample, turn="", pool=list(earlier)[-self.buffer :])
            for word in self.rare_words(sample):
                earlier.pop(word, None)
                earlier[word] = None

    def rare_words(self, sample: Sample) -> tuple[str, ...]:
        """Those of the sample; where it has none, the words of its transcript that are not common, each once."""
        if sample.rare_words or self.common is None:
            return sample.rare_words
        said = raw_words(sample.reference or sample.transcript or "")
        return tuple(dict.fromkeys(word for word in said if word not in self._common))

    def draw(self, sample: Sample, *, turn: int | str, pool: Sequence[str]) -> Sample:
        """The sample with a list. `turn`: which of its draws; `pool`: words that distractors are drawn from."""
        rng = random.Random(f"{self.seed}:{turn}:{sample.id}")
        rare = self.rare_words(sample)
        listed: list[str] = []
        if rng.random() < self.present:
            size = rng.randint(self.size_low, self.size_high)
            if rare and size and rng.random() < self.hit:
                count = max(1, round(len(rare) * rng.uniform(self.share_low, self.share_high)))
                listed = rng.sample(rare, min(count, size))
            listed += self._distractors(rng, sample, rare, pool, size - len(listed))
            rng.shuffle(listed)
        return replace(sample, rare_words=rare, biasing_words=tuple(listed), **self._shown(sample, listed))

    def _shown(self, sample: Sample, listed: Sequence[str]) -> dict[str, Any]:
        if not listed:
            return {}
        stars = "*{}*" if self.marks else "{}"
        text = self.separator.join(stars.format(word) for word in listed)
        shown = self.with_list.replace("{instruction}", sample.instruction).replace("{list}", text)
        if not self.marks or sample.reference is None:
            return {"instruction": shown}
        return {"instruction": shown, "reference": marked(sample.reference, listed)}

    def _distractors(
        self, rng: random.Random, sample: Sample, rare: Sequence[str], pool: Sequence[str], count: int
    ) -> list[str]:
        """Different ones; nothing that is said, as a word or as a run of words."""
        said = f" {' '.join(raw_words(' '.join([sample.reference or '', sample.transcript or '', *rare])))} "

        def is_free(word: str) -> bool:
            key = " ".join(raw_words(word))
            return bool(key) and f" {key} " not in said

        chosen: dict[str, None] = {}
        hard = round(count * self.hard) if rare and pool else 0
        if hard:
            alike = {word: [near for near in self._near(word, pool) if is_free(near)] for word in rare}
            for _ in range(hard):
                free = [near for near in alike[rng.choice(rare)] if near not in chosen]
                if free:
                    chosen[rng.choice(free[:NEAR])] = None
        left = pool if len(pool) <= 2 * count else rng.sample(pool, min(len(pool), 2 * count + 16))
        for word in rng.sample(left, len(left)):
            if len(chosen) >= count:
                break
            if word not in chosen and is_free(word):
                chosen[word] = None
        return list(chosen)

    def _near(self, word: str, pool: Sequence[str]) -> list[str]:
        """Words of the pool that are spelled alike, the most alike first."""
        found = process.extract(word.lower(), pool, scorer=fuzz.ratio, limit=40 * NEAR, processor=str.lower)
        return [near for near, _, _ in found]

    @cached_property
    def _common(self) -> frozenset[str]:
        assert self.common is not None
        lines = self.common.read_text(encoding="utf-8").splitlines()
        return frozenset(line.split()[0].lower() for line in lines[: self.common_words] if line.strip())
