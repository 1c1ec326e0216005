"""RLBR's reward: errors of the whole transcript, and those of its rare words once more, with a weight of their own."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import get_args

from rlspeech.maths.biasing import BiasedEdits, Phrase, Unit, biased_edits, lost_phrases, phrase_runs
from rlspeech.maths.marks import unmarked
from rlspeech.maths.text import words
from rlspeech.types import Rollout

log = logging.getLogger(__name__)
WARNED = Event()  # once for a process


@dataclass(frozen=True)
class Reward:
    """-(whole * errors + biasing * errors of rare words + false_insertion * listed phrases not said), at least -cap.

    arXiv 2601.13409: minus counts, 1 for the whole and 5 for biasing words. Rare words are the sample's `rare_words`,
    found as runs of words, never within one; of listed phrases within one another the longest that is heard counts.
    Texts are normalised; *marks* are left out, so that one that is missing is no error of content (see the reward
    `marks`). A rare word that is not in the normalised reference has no errors of its own: the first such is told. None
    where the sample has no reference, and of a rate where it is empty. An empty reply has one deletion a word; one that
    was cut is judged by what is there.
    """

    whole: float = 1.0
    biasing: float = 5.0
    false_insertion: float = 1.0  # for each listed phrase that is in the reply and not in the reference
    unit: Unit = "words"
    rate: bool = False  # each count over the units that it is of: the reference's, its rare words'
    cap: float = 50.0  # > 0: a ramble is no worse than this

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit must be words or characters, got {self.unit!r}")
        if min(self.whole, self.biasing, self.false_insertion) < 0:
            raise ValueError("weights must not be negative")
        if self.cap <= 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        known = [one for one in rollouts if one.sample.reference is not None]
        references = [_words(one.sample.reference or "", one) for one in known]
        replies = [_words(one.completion.text, one) for one in known]
        rare = [[tuple(words(phrase, one.sample.lang)) for phrase in one.sample.rare_words] for one in known]
        _warn_of_lost_phrases(known, references, rare)
        found = biased_edits(references, replies, rare, unit=self.unit)
        values = iter(
            self._value(edits, _false_insertions(one, reference, reply))
            for edits, one, reference, reply in zip(found, known, references, replies, strict=True)
        )
        return [None if one.sample.reference is None else next(values) for one in rollouts]

    def _value(self, edits: BiasedEdits, false_insertions: int) -> float | None:
        total, rare = edits.total, edits.biased
        if not self.rate:
            cost = self.whole * total.errors + self.biasing * rare.errors
        elif total.words:
            cost = self.whole * total.errors / total.words + self.biasing * rare.errors / max(1, rare.words)
        else:
            return None
        return -min(cost + self.false_insertion * false_insertions, self.cap)


def _words(text: str, rollout: Rollout) -> list[str]:
    return words(unmarked(text), rollout.sample.lang)


def _warn_of_lost_phrases(
    rollouts: Sequence[Rollout], references: Sequence[Sequence[str]], rare: Sequence[Sequence[Phrase]]
) -> None:
    if WARNED.is_set():
        return
    for rollout, reference, phrases in zip(rollouts, references, rare, strict=True):
        if lost := lost_phrases(reference, phrases):
            word = rollout.sample.rare_words[lost[0]]
            told = "biasing: rare word %r of %s is not in its normalised reference, and has no errors of its own"
            log.warning(told, word, rollout.sample.id)
            WARNED.set()
            return


def _false_insertions(rollout: Rollout, reference: list[str], reply: list[str]) -> int:
    """Listed phrases that are heard more often than they are said; one within a longer one is not heard by itself."""
    lang = rollout.sample.lang
    listed = {tuple(words(phrase, lang)) for phrase in rollout.sample.biasing_words}
    said = [tuple(reference[start:end]) for start, end in phrase_runs(reference, listed)]
    runs = phrase_runs(reply, listed)
    heard = [
        tuple(reply[start:end])
        for start, end in runs
        if not any(first <= start and end <= last and (first, last) != (start, end) for first, last in runs)
    ]
    return sum(max(0, heard.count(phrase) - said.count(phrase)) for phrase in set(heard))
