"""Where the *marks* stand, apart from what is written between them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rlspeech.maths.marks import marked_phrases, unmarked
from rlspeech.maths.text import words
from rlspeech.types import Rollout


@dataclass(frozen=True)
class Reward:
    """F1 in 0..1 of the phrases that reply and reference mark, of those that the reply writes at all.

    A marked phrase of the reference that the reply does not write is an error of content, which is not judged here.
    None where the sample has no reference, and where neither marks what both write.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [None if one.sample.reference is None else _f1(one, one.sample.reference) for one in rollouts]


def _f1(rollout: Rollout, reference: str) -> float | None:
    lang, reply = rollout.sample.lang, rollout.completion.text
    written = f" {' '.join(words(unmarked(reply), lang))} "
    wanted = Counter(key for key in _keys(reference, lang) if f" {key} " in written)
    found = Counter(_keys(reply, lang))
    total = wanted.total() + found.total()
    return 2 * (wanted & found).total() / total if total else None


def _keys(text: str, lang: str) -> list[str]:
    return [" ".join(words(phrase, lang)) for phrase in marked_phrases(text)]
