"""Signs that a reply denies what the transcript says, or says what it denies."""

from collections import Counter

from rlspeech.maths.clauses import clauses
from rlspeech.maths.found import NOTHING, Found, Reply, Span, joined
from rlspeech.maths.heard import Clause, Heard, clause_of, has_speech, heard
from rlspeech.maths.quantities import language
from rlspeech.maths.small_words import UNSPACED_NEGATIONS
from rlspeech.maths.text import is_spaced

SAME_CLAUSE = 0.75  # least share of a clause's content that another one has, to say the same but for a negation


def negation(reply: Reply) -> Found | None:
    """How much of the content of a clause is that of one of the transcript, of which one alone is negated: the most
    over those of the reply. Clauses of one word with content are not compared. None without a transcript, and in
    scripts without spaces but Chinese, of which pairs of characters are compared.

    >>> negation(Reply("Anna did not sell the house.", "Anna sells her old house.")).score
    1.0
    """
    lang = language(reply.lang)
    if not has_speech(reply) or not (is_spaced(reply.text) or lang in UNSPACED_NEGATIONS):
        return None
    said = heard(reply)
    found: list[tuple[float, Span]] = []
    for text, span in clauses(reply.text):
        clause = clause_of(text, lang)
        score = _flipped(clause, said) if len(clause.content) > 1 else 0.0
        if score >= SAME_CLAUSE:
            found.append((score, span))
    return Found(max(one for one, _ in found), joined([span for _, span in found])) if found else NOTHING


def _flipped(clause: Clause, said: Heard) -> float:
    """The share of the clause's content that those of the transcript that have most of it have, all of them negated
    where it is not, or the other way round; else 0."""
    counts = Counter(place for word in clause.content for place in _places(word, said))
    most = max(counts.values(), default=0)
    nearest = [said.clauses[place] for place, count in counts.items() if count == most]
    if not most or not all(_denies(clause, other, said) for other in nearest):
        return 0.0
    return most / len(clause.content)


def _denies(one: Clause, other: Clause, said: Heard) -> bool:
    """One alone is negated, and the other has of what that denies: "buys lemons and does not like rain" denies no
    lemons. `other` is the transcript's.
    """
    if one.is_negated == other.is_negated:
        return False
    if one.is_negated:
        found = {word for word in one.denied if not said.clause_words.like(word).isdisjoint(other.words)}
        return bool(found) or not one.denied
    heard_words = frozenset(word for asked in one.content for word in said.clause_words.like(asked))
    return not other.denied.isdisjoint(heard_words) or not other.denied


def _places(word: str, said: Heard) -> frozenset[int]:
    """The clauses of the transcript that have the word in any spelling or form."""
    return frozenset(place for other in said.clause_words.like(word) for place in said.clauses_with[other])
