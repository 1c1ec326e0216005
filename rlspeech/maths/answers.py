"""Is a reply the right answer? Texts are compared normalised, numbers by their value."""

import re
from collections import Counter
from fractions import Fraction

from rapidfuzz import fuzz

from rlspeech.maths.text import words

RIGHT = 0.85  # least fuzzy score of a right answer: "Kowalsky" for "Kowalski" passes, "Thursday" for "Tuesday" does not

IGNORED = {"a", "an", "the", "oclock"}  # words that tell no English answers apart

_NUMBER = re.compile(r"[$€£¢]?(\d+(?:\.\d+)?)(?:%|st|nd|rd|th|s)?")


def exact(reference: str, reply: str, lang: str = "en") -> bool:
    """The same words in the same order. Two texts without words are the same.

    >>> exact("At two o'clock.", "at 2 o'clock")
    True
    """
    return words(reference, lang) == words(reply, lang)


def fuzzy(reference: str, reply: str, lang: str = "en") -> float:
    """Likeness in 0..1, 1 for the same words in any order: letters in common times numbers in common.

    English articles and "o'clock" do not count.

    Letters: rapidfuzz's token sort ratio (2 x longest common subsequence of the sorted words over both lengths), which
    a ramble around the right word or a part of the right list does not satisfy. Numbers: 2 x common over all, as
    multisets of values, 1 where neither side has any: 100 is no near miss for 10. Two texts without words give 1,
    one alone gives 0.

    >>> fuzzy("two red cars", "2 red cars"), fuzzy("10 euros", "100 euros")
    (1.0, 0.0)
    """
    ours, theirs = _telling(words(reference, lang), lang), _telling(words(reply, lang), lang)
    if not ours or not theirs:
        return float(ours == theirs)
    letters = fuzz.token_sort_ratio(" ".join(ours), " ".join(theirs)) / 100
    return letters * _numbers_in_common(_values(ours), _values(theirs))


def holds(key: str, reply: str, lang: str = "en") -> bool:
    """Every word of the key is in the reply, normalised and counted: the test of an answer whose key words are known.

    >>> holds("Friday two", "On Friday, at 2."), holds("Friday two", "On Friday.")
    (True, False)
    """
    return not Counter(words(key, lang)) - Counter(words(reply, lang))


def right(reference: str, reply: str, lang: str = "en") -> bool:
    """The reply passes for the right answer: its fuzzy score is RIGHT or more."""
    return fuzzy(reference, reply, lang) >= RIGHT


def _telling(normalised_words: list[str], lang: str) -> list[str]:
    if not lang.lower().startswith("en"):
        return normalised_words
    return [word for word in normalised_words if word not in IGNORED] or normalised_words


def _values(normalised_words: list[str]) -> Counter[Fraction]:
    matches = (_NUMBER.fullmatch(word) for word in normalised_words)
    return Counter(Fraction(match[1]) for match in matches if match)


def _numbers_in_common(ours: Counter[Fraction], theirs: Counter[Fraction]) -> float:
    total = ours.total() + theirs.total()
    return 2 * (ours & theirs).total() / total if total else 1.0
