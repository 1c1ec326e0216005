"""What a reply's tokens count for in the mean of a loss: at least 1, at most `gain`.

Shape letter: N tokens.
"""

import unicodedata
from collections.abc import Iterator, Sequence

import regex
import torch
from torch import Tensor

from rlspeech.maths.text import is_spaced

_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion
    dozen half quarter first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth
    fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth noon midnight
"""
_DATES = """
    monday tuesday wednesday thursday friday saturday sunday january february april june july august september
    october november december today tomorrow yesterday tonight
"""  # not "march" and "may": in lower case, or beginning a sentence, they are verbs
NUMBER_WORDS, DATE_WORDS = frozenset(_NUMBERS.split()), frozenset(_DATES.split())
PRONOUN = frozenset({"i", "i'm", "i'll", "i've", "i'd"})
TITLES = frozenset({"mr", "mrs", "ms", "dr", "prof", "st"})  # a full stop behind one ends no sentence

_WORD = regex.compile(r"\p{N}+(?:[.,:/]\p{N}+)+|[\p{L}\p{M}\p{N}]+(?:['\u2019-][\p{L}\p{M}\p{N}]+)*")
_SENTENCE_END = regex.compile(r"[.!?\u2026\n]")


def early_weights(tokens: int, *, gain: float, half_life_tokens: float) -> Tensor:
    """1 + (gain - 1) 2^(-t / half life) of the tokens t = 0, 1, ... of a reply [N].

    >>> early_weights(3, gain=3, half_life_tokens=1).tolist()
    [3.0, 2.0, 1.5]
    """
    return 1 + (gain - 1) * torch.exp2(-torch.arange(tokens) / half_life_tokens)


def divergence_weights(kl_nats_N: Tensor, *, gain: float) -> Tensor:
    """1 + (gain - 1) |kl| / (|kl| + 1 nat) [N], detached: half of the gain at one nat, all of it nowhere.

    Of each token by itself: nothing depends on what else is in a micro-batch, so all ranks agree. A sampled divergence
    (k1) has a sign; how far the two sides are apart is its size.
    """
    size_N = kl_nats_N.detach().abs()
    return 1 + (gain - 1) * size_N / (size_N + 1)


def entity_weights(pieces: Sequence[bytes], biasing_words: Sequence[str] = (), *, gain: float) -> Tensor:
    """`gain` for every token with a byte of a name, a number, a date or a biasing word, else 1 [N].

    `pieces` are the bytes of a reply's tokens, empty for those that are no text. See `entities` for the rule.

    >>> entity_weights([b"I", b" saw", b" Par", b"is", b""], gain=2).tolist()
    [1.0, 1.0, 2.0, 2.0, 1.0]
    """
    raw = b"".join(pieces)
    text = raw.decode(errors="surrogateescape")  # a byte that is no text is a character of its own
    marked_bytes = bytearray(len(raw))
    for start, end in entities(text, biasing_words):
        first, last = (len(text[:at].encode(errors="surrogateescape")) for at in (start, end))
        marked_bytes[first:last] = b"\1" * (last - first)
    weights, at = torch.ones(len(pieces)), 0
    for index, piece in enumerate(pieces):
        if any(marked_bytes[at : at + len(piece)]):
            weights[index] = gain
        at += len(piece)
    return weights


def entities(text: str, biasing_words: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Half-open ranges of characters of what a listener must not get wrong, by a rule that needs no model.

    - a word with a digit, and numbers written with , . : / between digits
    - an English number word, day or month, alone or in a hyphenated word
    - a word that begins with a capital, but not at the beginning of a sentence and not the pronoun I
    - a biasing word or phrase, whatever its case, as whole words (anywhere, in scripts without spaces)

    Where a script has no case, names are found by the biasing words alone; where every noun has a capital (German),
    all nouns count.

    >>> [ "We meet Ann at 5:30."[start:end] for start, end in entities("We meet Ann at 5:30.")]
    ['Ann', '5:30']
    """
    return sorted({*_words(text), *_phrases(text, biasing_words)})


def _words(text: str) -> Iterator[tuple[int, int]]:
    last, end = "", 0
    for found in _WORD.finditer(text):
        word = found.group().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        between, plain = text[end : found.start()], word.casefold()
        begins = not last or (_SENTENCE_END.search(between) and not (between.startswith(". ") and _is_short(last)))
        name = unicodedata.category(word[0]) in ("Lu", "Lt") and plain not in PRONOUN and not begins
        parts = {plain.removesuffix("'s"), *plain.split("-")}
        if name or parts & NUMBER_WORDS or parts & DATE_WORDS or any(map(str.isnumeric, word)):
            yield found.span()
        last, end = word, found.end()


def _is_short(word: str) -> bool:
    """A title or an initial: the full stop behind it belongs to it."""
    return word.casefold() in TITLES or (len(word) == 1 and word.isupper() and word != "I")


def _phrases(text: str, phrases: Sequence[str]) -> Iterator[tuple[int, int]]:
    for phrase in phrases:
        words = [regex.escape(word) for word in phrase.split()]
        if words:
            joined = r"\s+".join(words)
            whole = rf"(?<![\p{{L}}\p{{N}}]){joined}(?![\p{{L}}\p{{N}}])" if is_spaced(phrase) else joined
            yield from (found.span() for found in regex.finditer(whole, text, flags=regex.IGNORECASE))
