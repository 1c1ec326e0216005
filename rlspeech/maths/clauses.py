"""Clauses of a text, with where they stand: what is denied in the one is not denied in the other."""

from collections.abc import Iterator
from itertools import pairwise

import regex

from rlspeech.maths.found import Span
from rlspeech.maths.text import word_spans

ABBREVIATED = r"(?<=\b(?:Dr|Mr|Mrs|Ms|Prof|St|Hr|Fr|Sr|Sra|Mme))\."  # a point that ends no sentence
_CLAUSE = regex.compile(rf"(?:(?<=\d)[.,:](?=\d)|{ABBREVIATED}|[^.!?;:,\n。！？；，…])+")  # noqa: RUF001
_BUT = regex.compile(r"(?<!\bnothing)\s(?=(?:but|aber|sondern|mais|pero|sino|ma|mas)\s)", regex.IGNORECASE)


def clauses(text: str) -> Iterator[tuple[str, Span]]:
    """Cut at stops, commas and "but"; those without a word are left out.

    >>> [clause for clause, _ in clauses("It was not said who, but Dr. No paid 1,000 euros.")]
    ['It was not said who', ' but Dr. No paid 1,000 euros']
    """
    for match in _CLAUSE.finditer(text):
        edges = [match.start(), *(one.start() + match.start() for one in _BUT.finditer(match[0])), match.end()]
        for start, end in pairwise(edges):
            if word_spans(text[start:end]):
                yield text[start:end], (start, end)
