"""Times of day as they are said, by their value: "half past two", "halb drei" and "2:30" are one."""

from collections.abc import Sequence
from fractions import Fraction

from rlspeech.maths.number_words import Token, Words, cardinal

_PARTS = {"half": 30, "quarter": 15}
_PAST, _BEFORE = frozenset(["past", "after", "nach"]), frozenset(["to", "till", "before", "vor"])
_GERMAN_PARTS = {"halb": 30, "viertel": 15}
_AFTER_HOUR = {  # what is said after the hour, in minutes
    "fr": {("et", "demie"): 30, ("et", "demi"): 30, ("et", "quart"): 15, ("moins", "le", "quart"): -15},
    "es": {("y", "media"): 30, ("y", "cuarto"): 15, ("menos", "cuarto"): -15},
    "it": {("e", "mezza"): 30, ("e", "mezzo"): 30, ("e", "un", "quarto"): 15, ("meno", "un", "quarto"): -15},
    "pt": {("e", "meia"): 30},
}
_HOURS = frozenset(["heure", "heures", "horas", "hora", "ore"])


def time_of(hour: int, minute: int) -> str:
    """The same in the morning and in the evening.

    >>> time_of(14, 30), time_of(3, -10), time_of(12, 5)
    ('time 2:30', 'time 2:50', 'time 0:05')
    """
    minutes = (60 * hour + minute) % 720
    return f"time {minutes // 60}:{minutes % 60:02}"


def time_before_hour(
    tokens: Sequence[Token], at: int, lang: str, words: Words
) -> tuple[str, tuple[Fraction, Fraction] | None, int] | None:
    """Of English and German: "quarter to two", "half two", "ten (minutes) past three", "halb drei".

    The time, the two numbers where it has two ("seven to eight" may be a range), and the token after it.
    """
    if lang not in ("en", "de"):
        return None
    part = (_PARTS if lang == "en" else _GERMAN_PARTS).get(tokens[at].word)
    if part is not None:
        minutes, place = Fraction(part), at + 1
    elif (read := cardinal(tokens, at, words)) is not None and read[0] % 5 == 0 and 0 < read[0] < 30:
        minutes, place = read
    else:
        return None
    place += _word(tokens, place) in ("minutes", "minuten")
    direction = _word(tokens, place)
    if direction not in _PAST | _BEFORE:
        hour = _hour(tokens, place, words)
        if part != 30 or hour is None:
            return None
        return time_of(hour, 30 if lang == "en" else -30), None, place + 1
    hour = _hour(tokens, place + 1, words)
    if hour is None:
        return None
    time = time_of(hour, int(minutes) if direction in _PAST else -int(minutes))
    return time, None if part else (minutes, Fraction(hour)), place + 2


def time_after_hour(tokens: Sequence[Token], at: int, lang: str, hour: Fraction) -> tuple[str, int] | None:
    """Of the Romance languages: what stands after the hour's number, "heures et demie"."""
    place = at + (_word(tokens, at) in _HOURS)
    for said, minutes in _AFTER_HOUR.get(lang, {}).items():
        if hour.denominator == 1 and hour <= 24 and tuple(_word(tokens, place + i) for i in range(len(said))) == said:
            return time_of(int(hour), minutes), place + len(said)
    return None


def _word(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].word if at < len(tokens) and tokens[at].goes_on else ""


def _hour(tokens: Sequence[Token], at: int, words: Words) -> int | None:
    if not _word(tokens, at) or (read := cardinal(tokens, at, words)) is None:
        return None
    value, after = read
    return int(value) if after == at + 1 and value.denominator == 1 and 0 < value <= 12 else None
