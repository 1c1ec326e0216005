"""Signs that a reply says what the transcript does not: names, numbers, dates, quotes, content, negations.

An ASR-like spelling is no invention: words are compared by ear and by letters (phonetics.py), numbers by value
(quantities.py). These are signs, not proofs: a paraphrase in other words looks like an invention to `content`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from rapidfuzz import fuzz

from rlspeech.maths.found import NOTHING, Found, Reply, Span, joined
from rlspeech.maths.phonetics import alike, same_stem
from rlspeech.maths.quantities import Quantity, dates, language, numbers
from rlspeech.maths.refusals import says_not_said
from rlspeech.maths.small_words import is_small, negates
from rlspeech.maths.text import is_spaced, word_spans

FEW_WORDS = 4  # of a reply whose first word may be a name, too: "Kevin."
QUOTED = 85.0  # of 100, rapidfuzz's partial ratio of a quotation that is in the transcript
SAME_CLAUSE = 0.75  # least share of a clause's content that another one has, to say the same but for a negation
_QUOTES = re.compile(r"“([^”]+)”|\"([^\"]+)\"|«([^»]+)»|„([^“”]+)[“”]|「([^」]+)」")
_PART = re.compile(r"[^.!?;:,\n。！？；，]+")  # noqa: RUF001
_CLOCK = {"half": (Fraction(30), Fraction(1, 2)), "quarter": (Fraction(15), Fraction(45), Fraction(1, 4))}


def _has_speech(reply: Reply) -> bool:
    """With a transcript that has words: what is said in silence is for `silence` to find."""
    return reply.transcript is not None and bool(word_spans(reply.transcript))


@dataclass(frozen=True)
class Heard:
    """Words of a transcript and of the instruction: what a reply may say."""

    words: tuple[str, ...]
    lang: str

    def has(self, word: str) -> bool:
        """The word, as a recogniser might spell it, another form of it, or two of its words as one."""
        return word in self._set or _sounds_in(word, self._distinct)

    @property
    def _set(self) -> frozenset[str]:
        return _set_of(self.words)

    @property
    def _distinct(self) -> tuple[str, ...]:
        return _distinct_of(self.words)


@lru_cache(maxsize=512)
def _set_of(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(words)


@lru_cache(maxsize=512)
def _distinct_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """Each word once, and each two neighbours as one."""
    pairs = (one + other for one, other in pairwise(words))
    return tuple(dict.fromkeys([*words, *pairs]))


@lru_cache(maxsize=65536)
def _sounds_in(word: str, others: tuple[str, ...]) -> bool:
    return any(alike(word, other) or same_stem(word, other) for other in others)


def _texts(text: str) -> tuple[str, ...]:
    return tuple(text[start:end].lower() for start, end in word_spans(text))


def _heard(reply: Reply) -> Heard:
    return Heard(_texts(f"{reply.transcript or ''}\n{reply.instruction}"), language(reply.lang))


def names(reply: Reply) -> Found | None:
    """Share of the reply's names that nobody says: capitalised words within a sentence, and the first of a short reply.

    None in scripts without case, in German (every noun is capitalised), and without a transcript.

    >>> names(Reply("It was Kevin Kowalsky.", "John Kowalski called.")).spans
    ((7, 12),)
    """
    if not _has_speech(reply) or language(reply.lang) == "de" or not is_spaced(reply.text):
        return None
    spans = word_spans(reply.text)
    few = 0 if says_not_said(reply.text) else FEW_WORDS
    heard, lang = _heard(reply), language(reply.lang)
    found: list[Span] = []
    count = 0
    for start, end in spans:
        word = reply.text[start:end]
        is_first = not re.sub(r"[\s\"'“«(*-]+$", "", reply.text[:start]) or bool(
            re.search(r"[.!?:\n]['\"”)]?[\s\"'“«(*-]*$", reply.text[:start])
        )
        if not word[0].isupper() or (is_first and len(spans) > few):
            continue
        plain = word.lower().removesuffix("'s")
        if is_small(plain, lang) or plain.startswith("i'") or _is_quantity(word, lang):
            continue
        count += 1
        if not heard.has(plain):
            found.append((start, end))
    return Found(len(found) / count, joined(found)) if found else NOTHING


def _is_quantity(word: str, lang: str) -> bool:
    return bool(dates(word, lang) or numbers(word, lang))


def number_values(reply: Reply) -> Found | None:
    """Share of the reply's numbers whose value nobody says. None without a transcript.

    How many things it counts, what it adds up, and the numbers of a list are not known to be right: those at the
    beginning of a line do not count.

    >>> number_values(Reply("It costs 200 euros, not 300.", "Two hundred euros.")).spans
    ((24, 27),)
    """
    if not _has_speech(reply):
        return None
    said = numbers(f"{reply.transcript or ''}\n{reply.instruction}", reply.lang)
    known = {one.value for one in said}
    for word in _texts(reply.transcript or ""):
        known |= {*_CLOCK.get(word, ())}
    asked = [one for one in numbers(reply.text, reply.lang) if not _enumerates(reply.text, one)]
    return _unknown(asked, known)


def date_values(reply: Reply) -> Found | None:
    """Share of the weekdays and months of the reply that nobody names. None without a transcript.

    >>> date_values(Reply("On Monday.", "See you on Friday.")).score
    1.0
    """
    if not _has_speech(reply):
        return None
    known = {one.value for one in dates(f"{reply.transcript or ''}\n{reply.instruction}", reply.lang)}
    return _unknown(dates(reply.text, reply.lang), known)


def _unknown(asked: Sequence[Quantity], known: set) -> Found:
    wrong = [one.span for one in asked if one.value not in known]
    return Found(len(wrong) / len(asked), joined(wrong)) if wrong else NOTHING


def _enumerates(text: str, one: Quantity) -> bool:
    line = text[text.rfind("\n", 0, one.span[0]) + 1 : one.span[0]]
    return not line.strip(" (*-") and bool(re.match(r"[.):]\s", text[one.span[1] : one.span[1] + 2]))


def quotes(reply: Reply) -> Found | None:
    """Share of the quotations, of two words or more, that are not in the transcript, by rapidfuzz's partial ratio.

    >>> quotes(Reply('She says "never come back".', "She says hello.")).spans
    ((10, 25),)
    """
    if not _has_speech(reply):
        return None
    quoted = [match for match in _QUOTES.finditer(reply.text) if len(word_spans(match[0])) > 1]
    text = " ".join(_texts(f"{reply.transcript or ''}\n{reply.instruction}"))
    wrong = [
        match.span(match.lastindex or 0) for match in quoted if fuzz.partial_ratio(_plain(match[0]), text) < QUOTED
    ]
    return Found(len(wrong) / len(quoted), joined(wrong)) if wrong else NOTHING


def _plain(text: str) -> str:
    return " ".join(_texts(text))


def content(reply: Reply) -> Found | None:
    """Share of the words with content that neither transcript nor instruction has, in another form or spelling.

    In scripts without spaces, of the pairs of neighbouring characters. 0 of a reply that says that something is not
    said. None without a transcript.

    >>> content(Reply("The lamps were bought by pirates.", "Somebody stole a lamp.")).spans
    ((15, 21), (25, 32))
    """
    if not _has_speech(reply):
        return None
    words = _content(reply.text, language(reply.lang))
    if not words or says_not_said(reply.text):
        return NOTHING
    if not is_spaced(reply.text):
        said = f"{reply.transcript or ''}\n{reply.instruction}"
        wrong = [span for word, span in words if word not in said]
    else:
        heard = _heard(reply)
        wrong = [span for word, span in words if not heard.has(word)]
    return Found(len(wrong) / len(words), joined(wrong)) if wrong else NOTHING


def _content(text: str, lang: str) -> list[tuple[str, Span]]:
    """Numbers apart: they have a detector of their own."""
    spans = word_spans(text)
    if not is_spaced(text):
        pairs = [(a[0], b[1]) for a, b in pairwise(spans) if a[1] == b[0]]
        return [(text[start:end], (start, end)) for start, end in pairs]
    of_numbers = [one.span for one in (*numbers(text, lang), *dates(text, lang))]
    found = []
    for start, end in spans:
        word = text[start:end].lower().removesuffix("'s")
        is_number = any(s <= start < e for s, e in of_numbers)
        if not is_small(word, lang) and not negates(word, lang) and not is_number and len(word) > 1:
            found.append((word, (start, end)))
    return found


def negation(reply: Reply) -> Found | None:
    """How much of the content of a clause is that of one of the transcript, of which one alone is negated: the most
    over those of the reply. Clauses of one word with content are not compared. None without a transcript.

    >>> negation(Reply("Anna did not sell the house.", "Anna sells her old house.")).score
    1.0
    """
    if not _has_speech(reply) or not is_spaced(reply.text):
        return None
    lang = language(reply.lang)
    said = [_clause(text, lang) for text, _ in _parts(reply.transcript or "")]
    found: list[tuple[float, Span]] = []
    for text, span in _parts(reply.text):
        words, _, is_negated = _clause(text, lang)
        likeness = [(_overlap(words, others), flag != is_negated) for _, others, flag in said if words and others]
        best = max((one for one, _ in likeness), default=0.0)
        if len(words) > 1 and best >= SAME_CLAUSE and all(flips for one, flips in likeness if one == best):
            found.append((best, span))
    return Found(max(one for one, _ in found), joined([span for _, span in found])) if found else NOTHING


def _parts(text: str) -> Iterator[tuple[str, Span]]:
    """Clauses, cut at commas: a negation in the one part is none of the other."""
    for match in _PART.finditer(text):
        if match[0].strip():
            yield match[0], match.span()


@lru_cache(maxsize=4096)
def _clause(text: str, lang: str) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Its words with content, all its words, and whether it is negated: in English two negations are none."""
    text = re.sub(r"(?i)nothing but", "only", text)
    words = [word for word in _texts(text) if len(word) > 1]
    count = sum(negates(word, lang) for word in words)
    is_negated = count > 0 if lang != "en" else count % 2 == 1
    own = tuple(word for word in words if not is_small(word, lang) and not negates(word, lang))
    return own, tuple(words), is_negated


def _overlap(words: tuple[str, ...], others: tuple[str, ...]) -> float:
    heard = Heard(others, "")
    return sum(heard.has(word) for word in words) / len(words)
