"""Audio understanding with multiple choice: which option does the reply name?"""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from rlspeech.maths.text import words
from rlspeech.types import Rollout, Sample

# An option in an instruction: a letter, a bracket or a full stop, its text up to the next option or the line's end.
_OPTION = regex.compile(r"(?:^|(?<=\s))\(?([A-Z])[).:]\s*(.+?)(?=\s+\(?[A-Z][).:]\s|\s*(?:\n|$))")
_LETTER = regex.compile(r"\(?\b([A-Z])\b[).:]?(?:\s|$|[,;])")
_ALONE = regex.compile(
    r"(?i)^\W*(?:the\s+)?(?:(?:correct\s+|right\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?\(?([a-z])\)?\W*$"
)


@dataclass(frozen=True)
class Reward:
    """1 where the reply names the right option and no other, by its letter or its text, else 0.

    The options are those of the instruction ("A) a dog B) a cat"); the reference is the right one's letter or text.
    Read as an answer: "B", "(b)", "Answer: B", "B) a cat", "a cat", "It is a cat." None where the sample has no
    reference, or its instruction no two options of which one is the reference.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [_value(one.sample, one.completion.text) for one in rollouts]


def _value(sample: Sample, reply: str) -> float | None:
    options = dict(_OPTION.findall(sample.instruction))
    right = _named(sample.reference or "", options, sample.lang)
    if len(options) < 2 or len(right) != 1:
        return None
    return float(_named(reply, options, sample.lang) == right)


def _named(text: str, options: dict[str, str], lang: str) -> set[str]:
    """The options that a text names."""
    if alone := _ALONE.match(text):
        return {alone[1].upper()} & set(options)
    spoken = f" {' '.join(words(text, lang))} "
    keys = {letter: f" {' '.join(words(option, lang))} " for letter, option in options.items()}
    heard = {letter for letter, key in keys.items() if key.strip() and key in spoken}
    # "a cat" is within "a cat and a dog": the longer one is what is named.
    heard = {one for one in heard if not any(keys[one] != keys[two] and keys[one] in keys[two] for two in heard)}
    letters = {letter for letter in _LETTER.findall(text) if letter in options}
    letters -= {"A", "I"} if heard else set()  # in a sentence they are words
    return heard | letters
