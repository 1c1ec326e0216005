"""*Marks* round words and phrases, as prompts and references of contextual speech recognition have them."""

from __future__ import annotations

from collections.abc import Sequence

import regex

from rlspeech.maths.text import NO_SPACES

# A star that opens has no word before it and no space behind it; one that closes the other way round; no star between.
# Beside a character of a script without spaces a word may stand on its other side ("用*语音*API"), or another mark.
_UNSPACED = f"[{NO_SPACES}]"
_BESIDE = rf"(?V1)[\w*--{_UNSPACED}]"
_OPEN = rf"(?:(?<!{_BESIDE})\*|(?<!\*)\*(?={_UNSPACED}))"
_CLOSE = rf"(?:\*(?!{_BESIDE})|(?<={_UNSPACED})\*(?!\*))"
_NEXT = rf"(?:(?<={_UNSPACED})\*\*|\*\*(?={_UNSPACED}))"
_PHRASE = r"(?=[^\s*])([^*\n]*?[^\s*])"
_MARKED = regex.compile(rf"{_OPEN}{_PHRASE}(?:{_NEXT}{_PHRASE})*{_CLOSE}")


def marked(text: str, phrases: Sequence[str]) -> str:
    """Stars round every whole-word occurrence of the phrases, whatever their case; the longest one where several begin.

    What is marked already stays as it is. In scripts without spaces an occurrence is whole wherever it is. `unmarked`
    takes away all that this adds: a text is left alone where a stray star of its own would be read with them.

    >>> marked("Ann starts the art fair.", ["art", "art fair", "ann"])
    '*Ann* starts the *art fair*.'
    """
    longest_first = sorted(
        {phrase for phrase in phrases if phrase.strip() and "*" not in phrase}, key=len, reverse=True
    )
    if not longest_first:
        return text
    found = regex.compile("|".join(map(_whole, longest_first)), regex.IGNORECASE)
    pieces, end = [], 0
    for known in _MARKED.finditer(text):
        pieces += [found.sub(r"*\g<0>*", text[end : known.start()]), known[0]]
        end = known.end()
    made = "".join([*pieces, found.sub(r"*\g<0>*", text[end:])])
    return made if unmarked(made) == unmarked(text) else text


def unmarked(text: str) -> str:
    """The text without its marks. A star that is no mark stays.

    >>> unmarked("*Ann* bought 2 * 3 *art fair* tickets*")
    'Ann bought 2 * 3 art fair tickets*'
    """
    return _MARKED.sub(lambda found: "".join(_phrases(found)), text)


def marked_phrases(text: str) -> list[str]:
    """What is marked, in its order.

    >>> marked_phrases("*Ann* at the *art fair*, *Ann*")
    ['Ann', 'art fair', 'Ann']
    """
    return [phrase for found in _MARKED.finditer(text) for phrase in _phrases(found)]


def _phrases(found: regex.Match[str]) -> list[str]:
    return [*found.captures(1), *found.captures(2)]


def _whole(phrase: str) -> str:
    """A pattern: the phrase on one line, with no word that goes on beyond it in a script that has spaces."""
    core = r"[^\S\n]+".join(map(regex.escape, phrase.split()))
    before = r"(?<!\*)" if regex.match(_UNSPACED, core) else f"(?<!{_BESIDE})"
    after = r"(?!\*)" if regex.match(_UNSPACED, core[-1]) else f"(?!{_BESIDE})"
    return f"{before}{core}{after}"
