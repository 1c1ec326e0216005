"""Word errors: the least number of substitutions, insertions and deletions between two lists of words."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import kaldialign


class Edits(NamedTuple):
    """Errors of a hypothesis against a reference of `words` words."""

    substitutions: int
    insertions: int
    deletions: int
    words: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions


def edits(reference_words: Sequence[str], hypothesis_words: Sequence[str]) -> Edits:
    """Edits at cost 1 each: their sum is the Levenshtein distance. TypeError where a text is given for its words.

    >>> edits(["the", "cat", "sat"], ["the", "bat", "sat", "down"])
    Edits(substitutions=1, insertions=1, deletions=0, words=3)
    """
    if isinstance(reference_words, str) or isinstance(hypothesis_words, str):
        raise TypeError("edits() takes lists of words, not a text: see rlspeech.maths.text.words")
    counts = kaldialign.edit_distance(list(reference_words), list(hypothesis_words))
    return Edits(int(counts["sub"]), int(counts["ins"]), int(counts["del"]), len(reference_words))


def word_error_rate(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float | None:
    """All errors over all reference words of (reference words, hypothesis words); it can be above 1.

    None where the references have no words at all. A single empty reference still adds its insertions.

    >>> word_error_rate([(["a", "b"], ["a", "c"]), ([], ["d"])])
    1.0
    """
    counts = [edits(reference, hypothesis) for reference, hypothesis in pairs]
    total = sum(count.words for count in counts)
    return sum(count.errors for count in counts) / total if total else None
