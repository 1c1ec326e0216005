"""*Marks* round words and phrases, as prompts and references of contextual speech recognition have them."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from rlspeech.maths.text import NO_SPACES, is_spaced

# A star that opens has no word before it and no space behind it; one that closes the other way round; no star between.
_BESIDE = rf"(?V1)[\w*--[{NO_SPACES}]]"
_MARKED = regex.compile(rf"(?<!{_BESIDE})\*(?=[^\s*])([^*\n]*?[^\s*])\*(?!{_BESIDE})")
_EDGE = r"[\p{L}\p{N}\p{M}_]"


def marked(text: str, phrases: Sequence[str]) -> str:
    """Stars round every whole-word occurrence of the phrases, whatever their case; the longest one where several begin.

    What is marked already stays as it is. In scripts without spaces an occurrence is whole wherever it is.

    >>> marked("Ann starts the art fair.", ["art", "art fair", "ann"])
    '*Ann* starts the *art fair*.'
    """
    longest_first = sorted({phrase for phrase in phrases if phrase.strip()}, key=len, reverse=True)
    if not longest_first:
        return text
    found = regex.compile("|".join(map(_whole, longest_first)), regex.IGNORECASE)
    pieces, end = [], 0
    for known in _MARKED.finditer(text):
        pieces += [found.sub(r"*\g<0>*", text[end : known.start()]), known[0]]
        end = known.end()
    return "".join([*pieces, found.sub(r"*\g<0>*", text[end:])])


def unmarked(text: str) -> str:
    """The text without its marks. A star that is no mark stays.

    >>> unmarked("*Ann* bought 2 * 3 *art fair* tickets*")
    'Ann bought 2 * 3 art fair tickets*'
    """
    return _MARKED.sub(r"\1", text)


def marked_phrases(text: str) -> list[str]:
    """What is marked, in its order.

    >>> marked_phrases("*Ann* at the *art fair*, *Ann*")
    ['Ann', 'art fair', 'Ann']
    """
    return _MARKED.findall(text)


def _whole(phrase: str) -> str:
    """A pattern: a phrase that ends in a spaced script's letter or digit ends where the word does."""
    core = r"\s+".join(map(regex.escape, phrase.split()))
    before = rf"(?<!{_EDGE})" if _is_spaced(phrase.strip()[0]) else ""
    after = rf"(?!{_EDGE})" if _is_spaced(phrase.strip()[-1]) else ""
    return f"{before}{core}{after}"


def _is_spaced(character: str) -> bool:
    """A letter or digit of a script that puts spaces between words."""
    return regex.match(_EDGE, character) is not None and is_spaced(character)
