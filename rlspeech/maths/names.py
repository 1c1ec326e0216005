"""Signs that a reply names somebody or something that nobody names."""

import re
from collections.abc import Iterator

from rlspeech.maths.denials import says_not_said
from rlspeech.maths.found import NOTHING, Found, Reply, Span, joined
from rlspeech.maths.heard import Heard, has_speech, heard
from rlspeech.maths.lists import ENUMERATOR
from rlspeech.maths.quantities import dates, language, numbers
from rlspeech.maths.small_words import is_small
from rlspeech.maths.text import is_spaced, word_spans

FEW_WORDS = 4  # of a reply or an item of a list, whose first word may be a name, too: "Kevin."
_BEFORE_NAMES = """
dr mr mrs ms mister missus miss doctor prof professor sir madam st saint mt jr sr sra srta dra señor señora mme mlle
monsieur madame mademoiselle signor signora signore dott hr fr herr frau capt captain gen lt sgt rev hon dom don
doña senhor senhora"""
_TITLES = frozenset(_BEFORE_NAMES.split())
_STOP = re.compile(r"[.!?:…]")


def names(reply: Reply) -> Found | None:
    """Share of the reply's names that nobody says: capitalised words within a sentence, and the first of a short reply
    or of a short item of a list.

    None in scripts without case, in German (every noun is capitalised), and without a transcript.

    >>> names(Reply("It was Kevin Kowalsky.", "John Kowalski called.")).spans
    ((7, 12),)
    >>> names(Reply("1. Lost\\n2. Fargo", "We like Lost.")).spans
    ((11, 16),)
    """
    lang = language(reply.lang)
    if not has_speech(reply) or lang == "de" or not is_spaced(reply.text):
        return None
    said = heard(reply)
    found = [(span, is_first) for span, is_first in _capitalised(reply.text) if _is_name(_text(reply.text, span), lang)]
    wrong = [span for span, is_first in found if not _is_heard(_text(reply.text, span), said, is_first)]
    return Found(len(wrong) / len(found), joined(wrong)) if wrong else NOTHING


def _text(text: str, span: Span) -> str:
    return text[span[0] : span[1]]


def _is_name(word: str, lang: str) -> bool:
    plain = word.lower().removesuffix("'s")
    is_other = is_small(plain, lang) or plain in _TITLES or plain.startswith("i'") or len(plain) == 1
    return not is_other and not dates(word, lang) and not numbers(word, lang)


def _is_heard(word: str, said: Heard, is_first: bool) -> bool:
    """What is written large for its place alone may be another form of a common word."""
    plain = word.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'").removesuffix("'s")
    return said.words.has_name(plain) or (is_first and not said.words.like(plain).isdisjoint(said.common))


def _capitalised(text: str) -> Iterator[tuple[Span, bool]]:
    """Words that may be names, and whether they are the first ones of a line or a sentence."""
    is_short = len(word_spans(text)) <= FEW_WORDS and not says_not_said(text)
    start = 0
    for line in text.split("\n"):
        mark = ENUMERATOR.match(line)
        skipped = mark.end() if mark else 0
        spans = [(start + skipped + one, start + skipped + other) for one, other in word_spans(line[skipped:])]
        is_item = is_short or ("\n" in text and _is_title([_text(text, span) for span in spans]))
        for place, span in enumerate(spans):
            is_first = not place or _ends_sentence(text, spans[place - 1], span)
            if text[span[0]].isupper() and (not is_first or is_item):
                yield span, is_first
        start += len(line) + 1


def _is_title(words: list[str]) -> bool:
    """A few words, all but the small ones written large: "Line of Duty"."""
    return 0 < len(words) <= FEW_WORDS and all(word[0].isupper() or is_small(word, "en") for word in words)


def _ends_sentence(text: str, before: Span, after: Span) -> bool:
    """A stop stands between the words, and not that of an abbreviation: "Dr. Smith", "J. Smith"."""
    word, gap = _text(text, before), text[before[1] : after[0]]
    is_short = word.lower() in _TITLES or (len(word) == 1 and word.isupper())
    return _STOP.search(gap[1:] if is_short and gap.startswith(".") else gap) is not None
