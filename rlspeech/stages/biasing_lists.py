"""Samples with the biasing lists that are drawn for them: anew at each step, the same for all replies of a group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rlspeech.config_rlbr import ListsConfig
from rlspeech.data import manifest
from rlspeech.data.mixing import batch_of_step
from rlspeech.errors import UserError
from rlspeech.plugins import load_class
from rlspeech.protocols import Student
from rlspeech.stages.hearing import Data, Heard, Recording, hear
from rlspeech.types import Sample

TESTS = "held out"  # turn of the lists of held-out sets: the same at every measurement


@dataclass(frozen=True)
class Lists:
    """What is learned from and what is held out, with lists or, where the recipe has no [lists], as it is."""

    data: Data
    synth: Any = None  # draws a list; None: no lists
    sizes: Sequence[int] = ()
    pool: tuple[str, ...] = ()  # distractors beside the samples' own words
    batch: int = 1
    seed: int = 0
    _heard: list[Heard] = field(default_factory=list)  # where nothing is drawn a prompt stays as it is

    @classmethod
    def of(cls, settings: ListsConfig | None, data: Data, *, batch: int = 1, seed: int = 0) -> Lists:
        """Raises UserError where the settings of the lists will not do."""
        if settings is None:
            return cls(data, batch=batch, seed=seed)
        if "seed" in settings.options:
            raise UserError("lists.options.seed: comes from seed; leave it out of the options")
        synth = load_class("data_synth", settings.synth, "Synth", {**settings.options, "seed": seed})
        if not hasattr(synth, "draw"):
            raise UserError(f"lists.synth = {settings.synth!r}: draws no lists (a method draw), as bias_words does")
        _check_rare(synth, data)
        pool = _words_of(settings.pool, synth) if settings.pool else ()
        return cls(data, synth, settings.sizes, pool, batch, seed)

    @property
    def train(self) -> Sequence[Recording]:
        return self.data.train

    def heard(self, student: Student, chosen: Iterable[int], *, step: int, turn: int = 0) -> list[Heard]:
        """The prompts of recordings of a step. `turn`: of several draws of one step."""
        if self.synth is None:
            return [self._heard[index] for index in chosen]
        draw = partial(self.synth.draw, turn=f"{step}.{turn}", pool=self.words_before(step))
        return hear(student, [_drawn(self.train[index], draw) for index in chosen])

    def tests(self) -> dict[str, list[Recording]]:
        """The held-out sets; with `sizes`, each with lists of each size, under `{set}_{size}`."""
        if self.synth is None:
            return {name: list(found) for name, found in self.data.tests.items()}
        synths = {f"_{size}": _sized(self.synth, size) for size in self.sizes} or {"": self.synth}
        made = {}
        for name, found in self.data.tests.items():
            words = chain(*(self.synth.rare_words(sample) for one in found for sample in one.samples))
            pool = _unique([*words, *self.pool, *self.words_before(0)])
            for suffix, synth in synths.items():
                draw = partial(synth.draw, turn=TESTS, pool=pool)
                made[name + suffix] = [_drawn(recording, draw) for recording in found]
        return made

    def begin(self, student: Student, *, reply_tokens: int | None = None) -> list[Heard]:
        """The longest prompts, before the first step: with lists, those of the longest recording with the longest list.

        Raises UserError where one and its reply do not fit into the model's context.
        """
        if self.synth is None:
            self._heard[:] = hear(student, self.train, reply_tokens=reply_tokens)
            return self._heard
        longest = max(self.train, key=lambda one: sum(wave.duration_s for wave in one.waves))
        pool = sorted(self.words_before(0), key=len, reverse=True)
        longest = _drawn(longest, partial(_sized(self.synth, self.synth.size_high).draw, turn="", pool=pool))
        return hear(student, [longest], reply_tokens=reply_tokens)

    def words_before(self, step: int) -> tuple[str, ...]:
        """Rare words of the utterances before a step, the latest first; the first epoch has one before it."""
        found: dict[str, None] = {}
        if not self.train:
            return self.pool
        place = step
        oldest = step - -(-len(self.train) // self.batch)
        while place > oldest and len(found) < self.synth.buffer:
            place -= 1
            for index in reversed(batch_of_step(place, size=len(self.train), batch=self.batch, seed=self.seed)):
                for sample in reversed(self.train[index].samples):
                    found |= dict.fromkeys(reversed(self.synth.rare_words(sample)))
        return _unique([*list(found)[: self.synth.buffer], *self.pool])


def _check_rare(synth: Any, data: Data) -> None:
    """Raises UserError where no sample has a rare word: every list would be a miss, and no word a biasing word."""
    heard = data.train or [one for test in data.tests.values() for one in test]
    if heard and not any(synth.rare_words(sample) for one in heard for sample in one.samples):
        raise UserError(
            f"{heard[0].samples[0].id}: no rare_words, nor has any other row; add the column, or name a file of the "
            "most frequent words as lists.options.common"
        )


def _drawn(recording: Recording, draw: Any) -> Recording:
    return replace(recording, samples=tuple(draw(sample) for sample in recording.samples))


def _sized(synth: Any, size: int) -> Any:
    """The same with lists of one size, always there."""
    return replace(synth, size_low=size, size_high=size, present=1.0)


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _words_of(path: Path, synth: Any) -> tuple[str, ...]:
    """Of a text file, a word or phrase a line; of a manifest, the rare words of its samples."""
    if path.suffix == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"lists.pool: {path}: {error}") from error
        return _unique(line.strip() for line in lines if line.strip())
    samples: Mapping[str, Sample] = {sample.id: sample for sample in manifest.read(path, needs=()).samples}
    return _unique(chain(*(synth.rare_words(sample) for sample in samples.values())))
