"""Audio understanding with multiple choice: which option does the reply name?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

from rlspeech.maths.text import words
from rlspeech.types import Rollout, Sample


def _listed(label: str, mark: str) -> regex.Pattern[str]:
    """An option in an instruction: its label, a mark, its text up to the next option or the line's end."""
    begin = rf"(?:^|(?<=\s))\(?({label}){mark}\s*"
    return regex.compile(rf"{begin}(.+?)(?=\s+\(?{label}{mark}\s|\s*(?:\n|$))")


_OPTIONS = (_listed("[A-Z]", "[).:]"), _listed("[a-z]", r"\)"), _listed(r"\d{1,2}", r"[).:](?=\s)"))
_ALONE = regex.compile(
    r"(?i)^\W*(?:the\s+)?(?:(?:correct\s+|right\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)?\(?([a-z]|\d{1,2})\)?\W*$"
)
# What a reply rejects, and why: "not a dog", "because A is wrong", "A is wrong".
_REJECTED = regex.compile(
    r"(?i)(?:\b(?:not|isn't|because|since|rather\s+than|instead\s+of)\b|\(?\b(?:[a-z]|\d{1,2})\)?\s+is\s+(?:wrong|incorrect))"
    r".*?(?=[,.;!?\n]|\bbut\b|$)"
)
_LABEL = regex.compile(r"(?<![\w'])(?:\(?([A-Za-z]|\d{1,2})\)|([A-Z]|\d{1,2})[.:](?=\s|$))")
_BARE = regex.compile(r"(?<![\w'.])([B-HJ-Z]|\d{1,2}|[AI](?=\s*(?:[,;/]|$)|\s+(?:or|and|is)\b))(?![\w'.])")
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Reward:
    """1 where the reply names the right option and no other, by its label or its text, else 0.

    The options are those of the instruction ("A) a dog B) a cat", also "a)" and "1."); the reference is the right one's
    label or text. Read as an answer: "B", "(b)", "Answer: B", "B) a cat", "a cat", "It is a cat, not a dog.", "B
    because A is wrong". None where the sample has no reference, or its instruction no two options of which one is the
    reference.
    """

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [_value(one.sample, one.completion.text) for one in rollouts]


def _value(sample: Sample, reply: str) -> float | None:
    options = _options(sample.instruction)
    right = _named(sample.reference or "", options, sample.lang)
    if len(right) != 1:
        return None
    return float(_named(reply, options, sample.lang) == right)


def _options(instruction: str) -> dict[str, str]:
    """Texts by their labels, in capitals; empty where there are no two."""
    for pattern in _OPTIONS:
        found = {label.upper(): text for label, text in pattern.findall(instruction)}
        if len(found) > 1:
            return found
    return {}


def _named(text: str, options: Mapping[str, str], lang: str) -> set[str]:
    """Labels of the options that a text names."""
    text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    if alone := _ALONE.match(text):
        return {alone[1].upper()} & set(options)
    if not any(map(_REJECTED.search, options.values())):
        text = _REJECTED.sub(" ", text)
    heard = _heard(text, options, lang)
    for label in heard:  # what is part of an option is no label
        text = regex.sub(rf"(?i)\b{regex.escape(options[label])}", " ", text)
    labels = {(first or second).upper() for first, second in _LABEL.findall(text)}
    bare = set(_BARE.findall(text))
    if heard:  # in a sentence they are words
        bare = {label for label in bare if label not in ("A", "I") and label.isalpha()}
    return heard | (labels | bare) & set(options)


def _heard(text: str, options: Mapping[str, str], lang: str) -> set[str]:
    """Labels of the options whose words are in the text. "a cat" is within "a cat and a dog": the longer one is."""
    spoken = f" {' '.join(words(text, lang))} "
    keys = {label: _key(option, lang) for label, option in options.items()}
    heard = {label for label, key in keys.items() if key.strip() and key in spoken}
    return {one for one in heard if not any(keys[one] != keys[two] and keys[one] in keys[two] for two in heard)}


def _key(option: str, lang: str) -> str:
    """Its words without an article at their beginning."""
    found = words(option, lang)
    return f" {' '.join(found[1:] if len(found) > 1 and found[0] in _ARTICLES else found)} "
