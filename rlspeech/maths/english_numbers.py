"""What English adds to its number words: ordinals, fractions, dozens, years, digits one by one."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from rlspeech.maths.clock import time_of
from rlspeech.maths.digits import MOST_DIGITS, Reading
from rlspeech.maths.number_words import Token, Words, cardinal, words_of

_FIRST = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth"
)
_TENTHS = "twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth ninetieth"
_DECADES = "twenties thirties forties fifties sixties seventies eighties nineties"
ORDINALS = {word: value for value, word in enumerate(_FIRST.split())} | {
    word: 20 + 10 * place for place, word in enumerate(_TENTHS.split())
}
_PLAIN = words_of("en")
assert _PLAIN is not None
ENGLISH: Words = replace(
    _PLAIN,
    values={
        **_PLAIN.values,
        **ORDINALS,
        **{word: 20 + 10 * place for place, word in enumerate(_DECADES.split())},
    },
    hundreds=frozenset(["hundred", "hundredth"]),
)
_PARTS = {"half": 2, "quarter": 4} | {word: value for word, value in ORDINALS.items() if value > 2}
_MANY_PARTS = {"halves": 2, "quarters": 4} | {f"{word}s": value for word, value in ORDINALS.items() if value > 2}
_UNITS = frozenset(
    ["hour", "hours", "day", "days", "week", "weeks", "month", "months", "year", "years", "mile", "miles", "minute"]
)
_DOZEN = {"dozen": 12}


def before_number(tokens: Sequence[Token], at: int) -> tuple[Fraction, int, bool, tuple[Reading, ...]] | None:
    """What begins with a part: "half a million", "a third" (or the third), "half", "a dozen".

    Its value, the token after it, whether it is vague, and other ways to read it.
    """
    word = tokens[at].word
    if word == "half" and _word(tokens, at + 1) == "a":
        scale = {**ENGLISH.scales, **_DOZEN, "hundred": 100}.get(_word(tokens, at + 2))
        if scale is not None:
            return Fraction(scale, 2), at + 3, False, ()
    if word in ("a", "an") and _word(tokens, at + 1) in _UNITS and _half_follows(tokens, at + 2):
        return Fraction(3, 2), at + 5, False, ()
    if word in ("a", "per", "every") and _word(tokens, at + 1) == "second":
        return Fraction(2), at + 2, True, ()  # "in a second"; or a second one
    if word in ("half", "quarter"):
        return Fraction(1, _PARTS[word]), at + 1, True, ()
    if word == "a" and _word(tokens, at + 1) in ORDINALS and _word(tokens, at + 1) in _PARTS:
        value = _PARTS[_word(tokens, at + 1)]
        return Fraction(1, value), at + 2, False, ((Fraction(value),),)
    return (Fraction(12), at + 1, False, ()) if word == "dozen" else None


def after_number(tokens: Sequence[Token], at: int, value: Fraction) -> tuple[Fraction, int] | None:
    """The number with what follows it, and the token after that: "and a half (million)", "thirds", "point five"."""
    word = _word(tokens, at)
    if word == "dozen":
        return value * 12, at + 1
    if (word in _MANY_PARTS and value > 1) or (word in _PARTS and value == 1):
        return value / (_MANY_PARTS.get(word) or _PARTS[word]), at + 1
    if word in _UNITS and _half_follows(tokens, at + 1):
        return value + Fraction(1, 2), at + 4
    if word == "and" and _word(tokens, at + 1) == "a" and _word(tokens, at + 2) in ("half", "quarter", "third"):
        whole = value + Fraction(1, _PARTS[_word(tokens, at + 2)])
        scale = ENGLISH.scales.get(_word(tokens, at + 3))
        return whole * (scale or 1), at + 3 + bool(scale)
    if word == "point":
        row, after = "", at + 1
        while len(row) < MOST_DIGITS and (digit := ENGLISH.values.get(_word(tokens, after), 10)) < 10:
            row, after = f"{row}{digit}", after + 1
        scale = ENGLISH.scales.get(_word(tokens, after))
        if row and value.denominator == 1:
            return Fraction(f"{value}.{row}") * (scale or 1), after + bool(scale)
    return None


def in_a_row(tokens: Sequence[Token], at: int) -> tuple[list[Reading], int]:
    """Numbers said one after another that may be one, likeliest reading first, and the token after them.

    A year ("nineteen ninety two"), a time ("nine thirty"), digits ("two oh five"). No reading where it is none of them.
    """
    values, place = [], at
    while place < len(tokens) and (place == at or tokens[place].goes_on) and len(values) < MOST_DIGITS:
        if tokens[place].word in ("oh", "o") and values:
            values, place = [*values, Fraction(0)], place + 1
            continue
        read = cardinal(tokens, place, ENGLISH)
        is_plain = read is not None and all(
            token.digits is None and token.word not in ORDINALS for token in tokens[place : read[1]]
        )
        if read is None or not is_plain or after_number(tokens, read[1], read[0]) is not None:
            break
        if read[0] >= 100 or (len(values) > 2 and max(values) >= 10):
            return [], at
        values, place = [*values, read[0]], read[1]
    is_spelt = len(values) == 3 and values[1] == 0 and values[2] < 10
    whole = tuple(values)
    if len(values) > 1 and all(value < 10 for value in values):
        return [(Fraction("".join(map(str, values))),), whole, *_clock(values if not is_spelt else values[::2])], place
    pair = [values[0], values[2]] if is_spelt else values
    if len(pair) != 2 or not (is_spelt or 10 <= pair[1] < 100) or not 0 < pair[0] < 100:
        return [], at
    return [(100 * pair[0] + pair[1],), tuple(pair), *_clock(pair)], place


def _half_follows(tokens: Sequence[Token], at: int) -> bool:
    return tuple(_word(tokens, at + place) for place in range(3)) == ("and", "a", "half")


def _clock(pair: Sequence[Fraction]) -> list[Reading]:
    return [(time_of(int(pair[0]), int(pair[1])),)] if len(pair) == 2 and pair[0] <= 24 and pair[1] < 60 else []


def _word(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].word if at < len(tokens) and tokens[at].goes_on else ""
