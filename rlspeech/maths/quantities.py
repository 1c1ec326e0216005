"""Numbers and dates of a text by their value, with where they stand: "two hundred" is 200, "May" the fifth month."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlspeech.maths.clock import time_after_hour, time_before_hour, time_of
from rlspeech.maths.digits import DIGITS, Reading, readings, with_suffix
from rlspeech.maths.english_numbers import ENGLISH, ORDINALS, after_number, before_number, in_a_row
from rlspeech.maths.found import Span
from rlspeech.maths.number_words import CHINESE_DIGITS, Token, Words, cardinal, chinese, split_words, words_of
from rlspeech.maths.text import word_spans

Value = Fraction | str  # a number, or what names a date or a time: "day 1", "month 5", "time 9:30"

_PERCENT = re.compile(
    r"\s?(?:%|percent\b|per\s?cent\b|prozent\b|pour cent\b|por ciento\b|per cento\b|por cento\b)", re.I
)
_BELOW_ZERO = re.compile(r"(?:\sdegrees?)?(?:\scelsius|\sfahrenheit)?\sbelow(?:\szero|\sfreezing)\b", re.I)
_CHINESE = re.compile(rf"[{CHINESE_DIGITS}]+")
_UP_TO_60 = rf"(\d{{1,2}}|[{CHINESE_DIGITS}]{{1,3}})"
_CHINESE_TIME = re.compile(rf"{_UP_TO_60}[点點时時](?:(半)|(一刻)|(三刻)|{_UP_TO_60}分?)")
_MIXED = re.compile(rf"(?<!\d)(\d{{1,12}}(?:\.\d{{1,6}})?)([{CHINESE_DIGITS}]{{1,12}})")
_NO_WORDS = Words({}, frozenset(), {}, frozenset())
_ALSO_VERBS = {"it": ("sei",)}  # "you are"

_DAYS = {
    "en": "monday tuesday wednesday thursday friday saturday sunday",
    "de": "montag dienstag mittwoch donnerstag freitag samstag sonntag",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "es": "lunes martes miércoles jueves viernes sábado domingo",
    "it": "lunedì martedì mercoledì giovedì venerdì sabato domenica",
}
_MONTHS = {
    "en": "january february march april may june july august september october november december",
    "de": "januar februar märz april mai juni juli august september oktober november dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
}
_ALSO_WORDS = frozenset(["may", "march", "mars"])  # months only where they are written as names


@dataclass(frozen=True)
class Quantity:
    """`others`: other ways to read it, each by the values that it then has together: 2:30 is a time, or 2 and 30."""

    value: Value
    span: Span
    others: tuple[Reading, ...] = ()
    is_vague: bool = False  # "one", "first", "half": they mostly stand for something else

    def is_in(self, known: frozenset[Value]) -> bool:
        return self.value in known or any(known.issuperset(one) for one in self.others)


def language(lang: str) -> str:
    """
    >>> language("en-US")
    'en'
    """
    return lang.lower().replace("_", "-").partition("-")[0]


def numbers(text: str, lang: str = "en") -> list[Quantity]:
    """Digits and number words of English, German, French, Spanish, Italian, Portuguese and Chinese, phrases as one.

    "one" as a word is none: it mostly stands for something else.

    >>> [str(one.value) for one in numbers("Two hundred and five, 1,000 or half past two, the third.")]
    ['205', '1000', 'time 2:30', '3']
    """
    return [one for one in _quantities(text, language(lang)) if not one.is_vague]


@lru_cache(maxsize=256)
def number_values_in(text: str, lang: str) -> frozenset[Value]:
    """Every value that a number in the text may have, those of "one" and "half" too."""
    found = _quantities(text, language(lang))
    return frozenset(value for one in found for reading in ((one.value,), *one.others) for value in reading)


@lru_cache(maxsize=256)
def dates_in(text: str, lang: str) -> frozenset[Value]:
    return frozenset(one.value for one in dates(text, lang))


def dates(text: str, lang: str = "en") -> list[Quantity]:
    """Names of weekdays and months.

    >>> [one.value for one in dates("On Monday, in May; she may come.")]
    ['day 1', 'month 5']
    """
    known = _date_words(language(lang))
    found = []
    for start, end in word_spans(text):
        word = text[start:end]
        value = known.get(word.lower().removesuffix("'s"))
        if value and (word[0].isupper() or word.lower() not in _ALSO_WORDS):
            found.append(Quantity(value, (start, end)))
    return found


@lru_cache(maxsize=512)
def _quantities(text: str, lang: str) -> tuple[Quantity, ...]:
    found = [*_chinese(text)] if lang in ("zh", "ja", "yue") else []
    taken = {place for one in found for place in range(*one.span)}
    words = ENGLISH if lang == "en" else words_of(lang) or _NO_WORDS
    tokens = _tokens(text, lang, words)
    at = 0
    while at < len(tokens):
        one, after = _read(text, tokens, at, lang, words)
        if one is not None and one.span[0] not in taken:
            found.append(_signed(text, tokens, at, words, one))
            taken |= {*range(*found[-1].span)}  # "zero" of "5 below zero"
        at = max(after, at + 1)
    return tuple(sorted(found, key=lambda one: one.span))


def _tokens(text: str, lang: str, words: Words) -> list[Token]:
    """Rows of digits, and the words that can be part of a number or of a time; of the others, where they stand."""
    literals = [match.span() for match in DIGITS.finditer(text)]
    taken = {place for start, end in literals for place in range(start, end)}
    plain = [(start, end) for start, end in word_spans(text) if start not in taken]
    found: list[Token] = []
    for start, end in sorted([*literals, *plain]):
        gap = text[found[-1].end : start] if found else "."
        goes_on = gap.strip() in ("", "-", "\u2010") and "\n" not in gap
        if start in taken:
            first = readings(text[start:end])[0]
            is_number = len(first) == 1 and isinstance(first[0], Fraction)
            found.append(Token(text[start:end], start, end, Fraction(first[0]) if is_number else None, goes_on))
            continue
        for place, part in enumerate(split_words(text[start:end].lower(), lang)):
            found.append(Token(part, start, end, None, goes_on or place > 0))
    return found


def _read(text: str, tokens: Sequence[Token], at: int, lang: str, words: Words) -> tuple[Quantity | None, int]:
    """The quantity that begins at a token, if any, and the token after it."""
    token = tokens[at]
    if (time := time_before_hour(tokens, at, lang, words)) is not None:
        value, numbers_, after = time
        return Quantity(value, (token.start, tokens[after - 1].end), (numbers_,) if numbers_ else ()), after
    if lang == "en" and (part := before_number(tokens, at)) is not None:
        value, after, is_vague, others = part
        return Quantity(value, (token.start, tokens[after - 1].end), others, is_vague), after
    read = cardinal(tokens, at, words)
    if token.word[:1].isdecimal() and (read is None or read[1] == at + 1):
        return _literal(text, tokens, at, lang)
    if read is None:
        return None, at + 1
    value, after = read
    if lang == "en":
        row, end = in_a_row(tokens, at)
        if row:
            return Quantity(row[0][0], (token.start, tokens[end - 1].end), tuple(row[1:])), end
    return _worded(text, tokens, at, value, after, lang)


def _worded(
    text: str, tokens: Sequence[Token], at: int, value: Fraction, after: int, lang: str
) -> tuple[Quantity, int]:
    """A number with what follows it: a part, a dozen, the minutes after an hour, a per cent."""
    others: list[Reading] = []
    whole, end = (after_number(tokens, after, value) if lang == "en" else None) or (value, after)
    if (time := time_after_hour(tokens, after, lang, value)) is not None:
        is_half, span = time[0].endswith(":30"), (tokens[at].start, tokens[time[1] - 1].end)
        return Quantity(time[0], span, ((value + Fraction(1, 2),),) if is_half else ()), time[1]
    span = (tokens[at].start, tokens[end - 1].end)
    if _PERCENT.match(text, span[1]):
        others.append((whole / 100,))
    is_one = whole == 1 and end == at + 1 and tokens[at].digits is None
    is_verb = end == at + 1 and tokens[at].word in _ALSO_VERBS.get(lang, ())
    is_marker = end == at + 1 and tokens[at].word in ORDINALS and text[span[1] : span[1] + 1] == ","  # "Second, he ..."
    return Quantity(whole, span, tuple(others), is_one or is_verb or (lang == "en" and is_marker)), end


def _literal(text: str, tokens: Sequence[Token], at: int, lang: str) -> tuple[Quantity, int]:
    token = tokens[at]
    found, length = with_suffix(readings(token.word), text[token.end : token.end + 4])
    end, after = token.end + length, at + 1
    if token.digits is not None and not length:
        more = after_number(tokens, after, token.digits) if lang == "en" else None
        time = time_after_hour(tokens, after, lang, token.digits)
        if (said := more or time) is not None:
            whole: Reading = (said[0],)
            found, after = [whole], said[1]
        end = tokens[after - 1].end
    first = found[0][0]
    others = found[1:]
    if _PERCENT.match(text, end) and isinstance(first, Fraction):
        others = [*others, (first / 100,)]
    if len(found[0]) > 1:  # several numbers however it is read: 16.03.2024
        return Quantity(" ".join(map(str, found[0])), (token.start, end), tuple(found)), after
    return Quantity(first, (token.start, end), tuple(others)), after


def _signed(text: str, tokens: Sequence[Token], at: int, words: Words, one: Quantity) -> Quantity:
    """Below zero by a minus in word or sign, but where it subtracts; at the beginning of a line it may be a dash."""
    if not isinstance(one.value, Fraction) or not one.value:
        return one
    start = one.span[0]
    single = (reading[0] for reading in one.others if len(reading) == 1)
    others: tuple[Reading, ...] = tuple((-value,) for value in single if isinstance(value, Fraction))
    if at and tokens[at - 1].word == words.minus and tokens[at].goes_on:
        is_left = at > 1 and tokens[at - 1].goes_on and cardinal(tokens, at - 2, words) is not None
        return one if is_left else Quantity(-one.value, (tokens[at - 1].start, one.span[1]), others)
    if start and text[start - 1] in "-−" and (start == 1 or text[start - 2] in " \n\t(["):  # noqa: RUF001
        is_dash = not text[: start - 1].rpartition("\n")[2].strip()
        kept: tuple[Reading, ...] = ((one.value,), *one.others) if is_dash and start > 1 else ()
        return Quantity(-one.value, (start - 1, one.span[1]), (*others, *kept))
    if (below := _BELOW_ZERO.match(text, one.span[1])) is not None:
        return Quantity(-one.value, (start, below.end()), others)
    return one


def _chinese(text: str) -> Iterator[Quantity]:
    """Numerals by value, 3万, and times of day; a single 一 is vague."""
    times = [*_CHINESE_TIME.finditer(text)]
    for match in times:
        hour, minute = (_whole(part) for part in (match[1], match[5] or "0"))
        if hour is not None and minute is not None and hour <= 24 and minute < 60:
            minute = 30 if match[2] else 15 if match[3] else 45 if match[4] else int(minute)
            others = ((hour, Fraction(minute)),) if match[5] else ()
            yield Quantity(time_of(int(hour), minute), match.span(), others)
    taken = {place for match in times for place in range(*match.span())}
    for match in _MIXED.finditer(text):
        scale = chinese("一" + match[2])
        if scale is not None and match[2][0] in "十百千万亿" and match.start() not in taken:
            yield Quantity(Fraction(match[1]) * scale, match.span())
            taken |= {*range(*match.span())}
    for match in _CHINESE.finditer(text):
        value = chinese(match[0])
        if value is not None and match.start() not in taken:
            yield Quantity(value, match.span(), is_vague=match[0] == "一")


def _whole(text: str) -> Fraction | None:
    return Fraction(text) if text.isdecimal() and len(text) < 4 else chinese(text) if not text.isdecimal() else None


@lru_cache(maxsize=16)
def _date_words(lang: str) -> dict[str, str]:
    days, months = _DAYS.get(lang, _DAYS["en"]), _MONTHS.get(lang, _MONTHS["en"])
    found = {name: f"day {number}" for number, name in enumerate(days.split(), 1)}
    return found | {name: f"month {number}" for number, name in enumerate(months.split(), 1)}
