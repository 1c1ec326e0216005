"""Numbers written in digits, with every way to read them: "1.200", "2:30", "1/3", "1 000", "5m"."""

import re
import unicodedata
from fractions import Fraction

from rlspeech.maths.clock import time_of

Reading = tuple[Fraction | str, ...]  # the values that it has together

MOST_DIGITS = 30  # a longer row is no number that somebody says: its digits are its value
DIGITS = re.compile(
    r"\d{1,3}(?:[ '\u00a0\u202f\u2009]\d{3})+(?![\d]|[.,:/]\d)|\d{1,2}\s?[hH]\s?\d{2}\b"
    r"|\d+(?:[.,:/]\d+)*(?:\s?[½¼¾⅓⅔])?"
)
_SUFFIX = re.compile(r"(?:(k)|(m|mn|mio)|(bn|b)|(s))\b")


def readings(text: str) -> list[Reading]:
    """The likeliest first.

    >>> [[str(one) for one in reading] for reading in readings("2:30")]
    [['time 2:30'], ['2', '30']]
    >>> [[str(one) for one in reading] for reading in readings("1.200")]
    [['1200'], ['6/5']]
    """
    if any(len(row) > MOST_DIGITS for row in re.findall(r"\d+", text)):
        return [(f"digits {text}",)]
    part = Fraction(0)
    if text[-1] in "½¼¾⅓⅔":
        part = Fraction(unicodedata.numeric(text[-1])).limit_denominator(4)
        text = text[:-1].rstrip()
    if re.search(r"[hH]", text):
        return _colon(re.split(r"\s?[hH]\s?", text))
    if ":" in text or "/" in text:
        return _colon(text.split(":")) if "/" not in text else _slash(text)
    if re.search(r"[ '\u00a0\u202f\u2009]", text):
        groups = re.split(r"[ '\u00a0\u202f\u2009]", text)
        return [(Fraction("".join(groups)),), *([tuple(map(Fraction, groups))] if " " in text else [])]
    return [tuple(one + part if isinstance(one, Fraction) else one for one in reading) for reading in _points(text)]


def with_suffix(found: list[Reading], after: str) -> tuple[list[Reading], int]:
    """What follows without a space: "5m" is 5 million or 5, "1990s" 1990 or 90; and how long it is."""
    match, value = _SUFFIX.match(after), found[0][0]
    if match is None or len(found[0]) > 1 or not isinstance(value, Fraction):
        return found, 0
    if match[4]:
        return ([*found, (value % 100,)], 1) if value % 10 == 0 and value.denominator == 1 else (found, 0)
    return [(value * (10**3, 10**6, 10**9)[(match.lastindex or 1) - 1],), *found], match.end()


def _colon(parts: list[str]) -> list[Reading]:
    """2:30 is a time or two numbers, 2:00 is one number."""
    values = tuple(Fraction(one) for one in re.findall(r"\d+", " ".join(parts)))
    if len(values) == 2 and values[0] <= 24 and values[1] < 60 and len(parts[1]) == 2:
        hour, minute = int(values[0]), int(values[1])
        if not minute:
            return [(Fraction(hour),), (time_of(hour, 0),), (Fraction((hour - 1) % 12 + 1),)]
        return [(time_of(hour, minute),), values]
    return [values]


def _slash(text: str) -> list[Reading]:
    values = tuple(Fraction(one) for one in re.findall(r"\d+", text))
    if re.fullmatch(r"\d+/\d+", text) and values[1]:
        return [(values[0] / values[1],), values]
    return [values]


def _points(text: str) -> list[Reading]:
    """1,000 and 1.000 are thousands, 2.5 and 2,5 are not; 9.30 may be a time."""
    groups = re.split(r"[.,]", text)
    separators = re.findall(r"[.,]", text)
    values = tuple(map(Fraction, groups))
    if not separators:
        return [values]
    are_thousands = all(len(one) == 3 for one in groups[1:]) and len(groups[0]) <= 3 and groups[0][0] != "0"
    if len({*separators}) == 2 and len({*separators[:-1]}) == 1:
        return [(Fraction("".join(groups[:-1]) + "." + groups[-1]),)]
    if len(separators) > 1:
        return [(Fraction("".join(groups)),)] if are_thousands else [values]
    found: list[Reading] = [(Fraction(f"{groups[0]}.{groups[1]}"),)]
    if are_thousands:
        return [(Fraction("".join(groups)),), *found]
    if len(groups[1]) == 2 and values[0] <= 24 and values[1] < 60:
        found += [(time_of(int(values[0]), int(values[1])),)]
    return found + ([values] if separators == [","] else [])
