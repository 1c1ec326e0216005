"""What the speech and the instruction have in words, indexed once: twelve replies to a recording ask the same index."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise

from rapidfuzz import fuzz, process

from rlspeech.maths.clauses import clauses
from rlspeech.maths.found import Reply
from rlspeech.maths.phonetics import ALIKE, STEM, alike, key, same_name, same_stem
from rlspeech.maths.quantities import Value, dates_in, language, number_values_in
from rlspeech.maths.small_words import UNSPACED_NEGATIONS, is_small, negates, without_negations
from rlspeech.maths.text import is_spaced, word_spans

_SOUND = re.compile(r"[\[(<{*♪][^\[\](){}<>*♪]{0,40}[\])>}*♪]|[♪♫]+")
LONGEST_SOUND = 3  # words of "[door slams loudly]", which is no speech


@dataclass(frozen=True)
class Clause:
    """Its words with content, all its words, and whether it is negated: in English two negations are none.

    `denied`: the words with content after the last negation, or before it where none follow. Empty: not negated, or it
    is not known which they are.
    """

    content: tuple[str, ...]
    words: tuple[str, ...]
    is_negated: bool
    text: str
    denied: frozenset[str] = frozenset()


class Words:
    """Words among which a word is looked for: as it is, or as a recogniser or another form would spell it."""

    def __init__(self, words: Iterable[str]) -> None:
        self.known = frozenset(words)
        self._by_key = _grouped(self.known, key)
        self._by_start = _grouped(self.known, lambda word: word[:STEM])
        self._by_letter = _grouped(self.known, lambda word: word[:1])
        self._like: dict[str, frozenset[str]] = {}
        self._named: dict[str, bool] = {}

    def like(self, word: str) -> frozenset[str]:
        """Those that are the word in any spelling or form."""
        if word not in self._like:
            near = process.extract(
                word, self._by_letter.get(word[:1], ()), scorer=fuzz.ratio, score_cutoff=ALIKE, limit=None
            )
            asked = {*self._by_key.get(key(word), ()), *(other for other, _, _ in near)}
            found = {other for other in asked if alike(word, other)}
            found |= {other for other in self._by_start.get(word[:STEM], ()) if same_stem(word, other)}
            self._like[word] = frozenset(found | ({word} & self.known))
        return self._like[word]

    def has_name(self, name: str) -> bool:
        """The name in any spelling; its genitive, too."""
        if name not in self._named:
            forms = {name, name.removesuffix("'s"), name.removesuffix("s"), f"{name}s"}
            asked = {*self._by_key.get(key(name), ()), *self._by_letter.get(name[:1], ())}
            self._named[name] = bool(forms & self.known) or any(same_name(name, other) for other in asked)
        return self._named[name]


@dataclass(frozen=True)
class Heard:
    """Of one transcript and instruction."""

    transcript: str
    instruction: str
    lang: str
    text: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", f"{self.transcript}\n{self.instruction}")

    @cached_property
    def words(self) -> Words:
        """Each word, and each two neighbours as one."""
        found = [word.removesuffix("'s") for word in texts(self.text)]
        return Words([*found, *texts(self.text), *(one + other for one, other in pairwise(found))])

    @cached_property
    def common(self) -> frozenset[str]:
        """Words that stand in lower case: no names."""
        spelt = (self.text[start:end] for start, end in word_spans(self.text))
        return frozenset(word for word in spelt if word.islower())

    @cached_property
    def plain(self) -> str:
        return " ".join(texts(self.text))

    @cached_property
    def transcript_plain(self) -> str:
        """Words between single spaces, one before and one after."""
        return f" {' '.join(texts(self.transcript))} "

    def has_row(self, text: str) -> bool:
        """The transcript has the words of the text in a row: who reads them is not to blame for how they repeat."""
        return f" {' '.join(texts(text))} " in self.transcript_plain

    @cached_property
    def numbers(self) -> frozenset[Value]:
        return number_values_in(self.text, self.lang)

    @cached_property
    def dates(self) -> frozenset[Value]:
        return dates_in(self.text, self.lang)

    @cached_property
    def clauses(self) -> tuple[Clause, ...]:
        return tuple(clause_of(text, self.lang) for text, _ in clauses(self.transcript))

    @cached_property
    def clause_words(self) -> Words:
        return Words(word for clause in self.clauses for word in clause.words)

    @cached_property
    def clauses_with(self) -> dict[str, frozenset[int]]:
        """Of each word, the clauses that have it."""
        found: dict[str, set[int]] = defaultdict(set)
        for place, clause in enumerate(self.clauses):
            for word in clause.words:
                found[word].add(place)
        return {word: frozenset(places) for word, places in found.items()}


def heard(reply: Reply) -> Heard:
    return _indexed(reply.transcript or "", reply.instruction, language(reply.lang))


@lru_cache(maxsize=64)
def _indexed(transcript: str, instruction: str, lang: str) -> Heard:
    return Heard(transcript, instruction, lang)


def has_speech(reply: Reply) -> bool:
    """With a transcript that has words: what is said in silence is for `silence` to find."""
    return reply.transcript is not None and is_speech(reply.transcript)


@lru_cache(maxsize=256)
def is_speech(text: str) -> bool:
    """
    >>> is_speech("Hello."), is_speech("[noise] (soft music)"), is_speech("♪")
    (True, False, False)
    """
    return bool(word_spans(without_sounds(text)))


def without_sounds(text: str) -> str:
    """Without what a transcript says of sounds in brackets: "[noise]", "(soft music)"."""
    return _SOUND.sub(lambda match: match[0] if len(word_spans(match[0])) > LONGEST_SOUND else " ", text)


def texts(text: str) -> tuple[str, ...]:
    """Words in lower case."""
    return tuple(text[start:end].lower() for start, end in word_spans(text))


def clause_of(text: str, lang: str) -> Clause:
    if not is_spaced(text):
        return _unspaced_clause(text, lang)
    plain = re.sub(r"(?i)nothing but", "only", text)
    words = [word for word in texts(plain) if len(word) > 1]
    count = sum(negates(word, lang) for word in words)
    is_negated = count > 0 if lang != "en" else count % 2 == 1
    own = tuple(word for word in words if not is_small(word, lang) and not negates(word, lang))
    last = max((place for place, word in enumerate(words) if negates(word, lang)), default=0)
    after = frozenset(word for word in words[last:] if word in own)
    return Clause(own, tuple(words), is_negated, text, (after or frozenset(own)) if is_negated else frozenset())


def _unspaced_clause(text: str, lang: str) -> Clause:
    """Pairs of characters, those that negate left out, and the 了 of what was done, which 没 takes the place of.

    Chinese alone: Japanese negates by the form of the verb.
    """
    plain, count = without_negations("".join(texts(text)).replace("了", ""), lang)
    pairs = tuple(one + other for one, other in pairwise(plain)) if lang in UNSPACED_NEGATIONS else ()
    return Clause(pairs, pairs, count % 2 == 1, text)


def _grouped(words: Iterable[str], by: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for word in sorted(words):
        found[by(word)].append(word)
    found.pop("", None)
    return dict(found)
