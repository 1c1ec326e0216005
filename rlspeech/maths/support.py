"""Signs that a reply says what the transcript does not: numbers, dates, quotes, content. Names: names.py.

An ASR-like spelling is no invention: words are compared by ear and by letters (phonetics.py), numbers by value
(quantities.py). These are signs, not proofs: a paraphrase in other words looks like an invention to `content`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from rapidfuzz import fuzz

from rlspeech.maths.denials import denials
from rlspeech.maths.found import NOTHING, Found, Reply, Span, joined
from rlspeech.maths.heard import has_speech, heard, texts
from rlspeech.maths.quantities import Quantity, Value, dates, language, numbers
from rlspeech.maths.small_words import is_small, negates
from rlspeech.maths.text import is_spaced, word_spans

QUOTED = 85.0  # of 100, rapidfuzz's partial ratio of a quotation that is in the transcript
_QUOTES = re.compile(
    r"“([^”]+)”|\"([^\"]+)\"|«([^»]+)»|„([^“”]+)[“”]|「([^」]+)」"
    # single ones are no apostrophes: they open before a word and close after one
    r"|‘([^‘\n]{1,300}?)’(?!\w)|(?<!\w)'(?=[^\W\d])([^\n\"]{1,300}?)(?<=[^\s(])'(?!\w)"  # noqa: RUF001
)
_ONE = r"\b(?:an?|eine?[mnrs]?|une?|una|uno|uma?|single|once|einmal)\b"


def number_values(reply: Reply) -> Found | None:
    """Share of the reply's numbers whose value nobody says. None without a transcript.

    How many things it counts, what it adds up, and the numbers of a list are not known to be right: those at the
    beginning of a line do not count. "1 lamp" is a lamp.

    >>> number_values(Reply("It costs 200 euros, not 300.", "Two hundred euros.")).spans
    ((24, 27),)
    """
    if not has_speech(reply):
        return None
    said = heard(reply)
    asked = [one for one in numbers(reply.text, reply.lang) if not _enumerates(reply.text, one)]
    return _unknown([(one, one.is_in(said.numbers) or _is_article(reply.text, one, said.text)) for one in asked])


def _is_article(text: str, one: Quantity, said: str) -> bool:
    """It is 1, and what follows it is said with an article or as a single one."""
    following = re.match(r"\W*(\w+)", text[one.span[1] : one.span[1] + 40])
    if one.value != 1 or following is None:
        return False
    return re.search(rf"{_ONE}\s+(?:\w+\s+)?{re.escape(following[1])}\b", said, re.IGNORECASE) is not None


def date_values(reply: Reply) -> Found | None:
    """Share of the weekdays and months of the reply that nobody names. None without a transcript.

    >>> date_values(Reply("On Monday.", "See you on Friday.")).score
    1.0
    """
    if not has_speech(reply):
        return None
    known: frozenset[Value] = heard(reply).dates
    return _unknown([(one, one.value in known) for one in dates(reply.text, reply.lang)])


def _unknown(asked: Sequence[tuple[Quantity, bool]]) -> Found:
    wrong = [one.span for one, is_known in asked if not is_known]
    return Found(len(wrong) / len(asked), joined(wrong)) if wrong else NOTHING


def _enumerates(text: str, one: Quantity) -> bool:
    line = text[text.rfind("\n", 0, one.span[0]) + 1 : one.span[0]]
    return not line.strip(" (*-") and bool(re.match(r"[.):]\s", text[one.span[1] : one.span[1] + 2]))


def quotes(reply: Reply) -> Found | None:
    """Share of the quotations, of two words or more, that are not in the transcript, by rapidfuzz's partial ratio.

    >>> quotes(Reply('She says "never come back".', "She says hello.")).spans
    ((10, 25),)
    """
    if not has_speech(reply):
        return None
    quoted = [match for match in _QUOTES.finditer(reply.text) if len(word_spans(match[0])) > 1]
    text = heard(reply).plain
    wrong = [
        match.span(match.lastindex or 0)
        for match in quoted
        if fuzz.partial_ratio(" ".join(texts(match[0])), text) < QUOTED
    ]
    return Found(len(wrong) / len(quoted), joined(wrong)) if wrong else NOTHING


def content(reply: Reply) -> Found | None:
    """Share of the words with content that neither transcript nor instruction has, in another form or spelling.

    In scripts without spaces, of the pairs of neighbouring characters. A clause that says that something is not said
    is left out, and that alone. None without a transcript.

    >>> content(Reply("The lamps were bought by pirates.", "Somebody stole a lamp.")).spans
    ((15, 21), (25, 32))
    """
    if not has_speech(reply):
        return None
    excused = denials(reply.text)
    words = [
        (word, span)
        for word, span in _content(reply.text, language(reply.lang))
        if not any(start <= span[0] < end for start, end in excused)
    ]
    if not words:
        return NOTHING
    said = heard(reply)
    if not is_spaced(reply.text):
        wrong = [span for word, span in words if word not in said.text]
    else:
        wrong = [span for word, span in words if not said.words.like(word)]
    return Found(len(wrong) / len(words), joined(wrong)) if wrong else NOTHING


def _content(text: str, lang: str) -> list[tuple[str, Span]]:
    """Numbers apart: they have a detector of their own."""
    spans = word_spans(text)
    if not is_spaced(text):
        pairs = [(a[0], b[1]) for a, b in pairwise(spans) if a[1] == b[0]]
        return [(text[start:end], (start, end)) for start, end in pairs]
    of_numbers = {
        place for one in (*numbers(text, lang), *dates(text, lang)) for place in range(one.span[0], one.span[1])
    }
    found = []
    for start, end in spans:
        word = text[start:end].lower().removesuffix("'s")
        if not is_small(word, lang) and not negates(word, lang) and start not in of_numbers and len(word) > 1:
            found.append((word, (start, end)))
    return found
