"""Number words of a language, and what a row of them adds up to: "three hundred and five", "quatre-vingts", 二十一."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

HUNDRED = 100
LONGEST_WORD = 80  # letters of one that is taken to pieces
MOST_CHARACTERS = 30  # of a run of Chinese numerals that is a number


@dataclass(frozen=True)
class Words:
    """Of one language, lower case. `joins` stand within a number: "and"."""

    values: Mapping[str, int]  # of one to ninety-nine, and of hundreds that are one word
    hundreds: frozenset[str]
    scales: Mapping[str, int]
    joins: frozenset[str]
    minus: str = "minus"


@dataclass(frozen=True)
class Token:
    """A word of a text, in lower case, or what its digits say. `goes_on`: nothing but spaces or a hyphen before it."""

    word: str
    start: int
    end: int
    digits: Fraction | None = None
    goes_on: bool = False


_ONES_AND_TENS = {  # from 0 on, then the tens from 20 on; | stands between two spellings
    "en": "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen / twenty thirty forty|fourty fifty sixty seventy eighty ninety",
    "de": "null eins|ein|eine|einen|einem|einer|eines zwei|zwo drei vier fünf sechs sieben acht neun zehn elf zwölf "
    "dreizehn vierzehn fünfzehn sechzehn siebzehn achtzehn neunzehn / "
    "zwanzig dreißig|dreissig vierzig fünfzig sechzig siebzig achtzig neunzig",
    "fr": "zéro un|une deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize / "
    "vingt|vingts trente quarante cinquante soixante septante octante|huitante nonante",
    "es": "cero uno|un|una dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis "
    "diecisiete dieciocho diecinueve / veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa",
    "it": "zero uno|un|una due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici "
    "sedici diciassette diciotto diciannove / venti trenta quaranta cinquanta sessanta settanta ottanta novanta",
    "pt": "zero um|uma dois|duas três quatro cinco seis sete oito nove dez onze doze treze quatorze|catorze quinze "
    "dezesseis|dezasseis dezessete|dezassete dezoito dezenove|dezanove / "
    "vinte trinta quarenta cinquenta sessenta setenta oitenta noventa",
}
_HUNDREDS = {
    "en": "hundred",
    "de": "hundert",
    "fr": "cent cents",
    "es": "cien ciento",
    "it": "cento",
    "pt": "cem cento",
}
_WHOLE_HUNDREDS = {  # from 200 on
    "es": "doscientos|doscientas trescientos|trescientas cuatrocientos|cuatrocientas quinientos|quinientas "
    "seiscientos|seiscientas setecientos|setecientas ochocientos|ochocientas novecientos|novecientas",
    "pt": "duzentos|duzentas trezentos|trezentas quatrocentos|quatrocentas quinhentos|quinhentas "
    "seiscentos|seiscentas setecentos|setecentas oitocentos|oitocentas novecentos|novecentas",
}
_SCALES = {  # a thousand, a million, a thousand million
    "en": "thousand million billion",
    "de": "tausend million|millionen milliarde|milliarden",
    "fr": "mille million|millions milliard|milliards",
    "es": "mil millón|millones millardo",
    "it": "mille|mila milione|milioni miliardo|miliardi",
    "pt": "mil milhão|milhões bilhão|bilhões",
}
_JOINS = {"en": "and", "fr": "et", "es": "y", "pt": "e", "de": "und", "it": "e"}
_MINUS = {"fr": "moins", "es": "menos", "it": "meno", "pt": "menos"}
_TWENTIES = "veintiuno|veintiún|veintiuna veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
_TWENTIES += "veintiocho veintinueve"

_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}  # noqa: RUF001
_CHINESE_TENS = {"十": 10, "百": 100, "千": 1000}
_CHINESE_SCALES = {"万": 10**4, "亿": 10**8}
CHINESE_DIGITS = "".join([*_CHINESE, *_CHINESE_TENS, *_CHINESE_SCALES])


@lru_cache(maxsize=16)
def words_of(lang: str) -> Words | None:
    """None of a language that has no list here."""
    if lang not in _ONES_AND_TENS:
        return None
    ones, tens = (part.split() for part in _ONES_AND_TENS[lang].split("/"))
    values = (
        _numbered(ones, 0, 1) | _numbered(tens, 20, 10) | _numbered(_WHOLE_HUNDREDS.get(lang, "").split(), 200, 100)
    )
    if lang == "es":
        values |= _numbered(_TWENTIES.split(), 21, 1)
    if lang == "de":
        values |= _german(values)
    if lang == "it":
        values |= _italian(values)
    scales = _numbered(_SCALES[lang].split(), 0, 1)
    return Words(
        values,
        frozenset(_HUNDREDS[lang].split()),
        {word: 1000 ** (place + 1) for word, place in scales.items()},
        frozenset(_JOINS[lang].split()),
        _MINUS.get(lang, "minus"),
    )


def _numbered(words: Sequence[str], first: int, step: int) -> dict[str, int]:
    return {word: first + step * place for place, one in enumerate(words) for word in one.split("|")}


def _german(values: Mapping[str, int]) -> dict[str, int]:
    tens = {word: value for word, value in values.items() if value >= 20}
    ones = {word: value for word, value in values.items() if 0 < value < 10}
    return {f"{one}und{ten}": value + more for ten, value in tens.items() for one, more in ones.items()}


def _italian(values: Mapping[str, int]) -> dict[str, int]:
    """Before a vowel the ten loses its last: "ventuno", "trentotto"."""
    tens = {word: value for word, value in values.items() if value >= 20}
    ones = {word: value for word, value in values.items() if 0 < value < 10} | {"tré": 3}
    joined = {(ten[:-1] if one[0] in "uo" else ten) + one: (ten, one) for ten in tens for one in ones}
    return {word: values[ten] + ones[one] for word, (ten, one) in joined.items()}


def split_words(word: str, lang: str) -> tuple[str, ...]:
    """The number words that a German or Italian one is put together of; itself, where it is none.

    >>> split_words("zweihundertfünf", "de"), split_words("duemila", "it"), split_words("undicente", "it")
    (('zwei', 'hundert', 'fünf'), ('due', 'mila'), ('undicente',))
    """
    words = words_of(lang)
    if lang not in ("de", "it") or words is None or word in words.values or len(word) > LONGEST_WORD:
        return (word,)
    if not any(part in word for part in (*words.hundreds, *words.scales)):
        return (word,)
    known = {*words.values, *words.hundreds, *words.scales}
    ends: dict[int, tuple[str, ...]] = {0: ()}
    for end in range(1, len(word) + 1):
        parts = [(*ends[at], word[at:end]) for at in ends if word[at:end] in known | words.joins]
        if parts:
            ends[end] = min(parts, key=len)
    return ends.get(len(word), (word,))


def cardinal(tokens: Sequence[Token], at: int, words: Words) -> tuple[Fraction, int] | None:
    """The number that begins at a token, and the token after it; None where none begins.

    Hundreds and thousands multiply what is before them, a smaller number after them is added, joined or not.
    """
    total, limit, place = Fraction(0), None, at
    while (part := _below_thousand(tokens, place, words)) is not None:
        value, after = part
        scale = words.scales.get(_word(tokens, after)) if after == place or _goes_on(tokens, after) else None
        if limit is not None and (value >= limit or (scale or 0) >= limit):
            break
        total, place = total + value * (scale or 1), after + bool(scale)
        if scale is None:
            break
        limit = scale
        if _word(tokens, place) in words.joins and _goes_on(tokens, place) and _goes_on(tokens, place + 1):
            rest = _below_thousand(tokens, place + 1, words)
            if rest is None or rest[0] >= limit or _word(tokens, rest[1]) in words.scales:
                break
            return total + rest[0], rest[1]
        if not _goes_on(tokens, place):
            break
    return (total, place) if place > at else None


def _below_thousand(tokens: Sequence[Token], at: int, words: Words) -> tuple[Fraction, int] | None:
    if (first := _below_hundred(tokens, at, words)) is None:
        if _word(tokens, at) in words.hundreds:
            value, place = Fraction(HUNDRED), at + 1
        elif _word(tokens, at) in words.scales:
            return Fraction(1), at  # "mille": the scale alone
        else:
            return None
    else:
        value, place = first
        if _goes_on(tokens, place) and _word(tokens, place) in words.hundreds and value < HUNDRED:
            value, place = value * HUNDRED, place + 1
        elif value % HUNDRED or tokens[at].digits is not None or not value:
            return first
    joined = place + (_word(tokens, place) in words.joins and _goes_on(tokens, place))
    rest = _below_hundred(tokens, joined, words) if _goes_on(tokens, joined) else None
    if rest is None or tokens[joined].digits is not None or _word(tokens, rest[1]) in words.hundreds:
        return value, place
    return value + rest[0], rest[1]


def _below_hundred(tokens: Sequence[Token], at: int, words: Words) -> tuple[Fraction, int] | None:
    if at >= len(tokens):
        return None
    if (digits := tokens[at].digits) is not None:
        return digits, at + 1
    value = words.values.get(tokens[at].word)
    if value is None:
        return None
    place = at + 1
    if value == 4 and "soixante" in words.values and _word(tokens, place) in ("vingt", "vingts"):
        value, place = 80, place + 1
    joined = place + (_word(tokens, place) in words.joins - {"and", "und"})
    more = words.values.get(_word(tokens, joined), 0) if _goes_on(tokens, joined) else 0
    most = 20 if value in (60, 80) and "soixante" in words.values else 10
    if value % 10 == 0 and 20 <= value < HUNDRED and 0 < more < most and tokens[joined].digits is None:
        value, place = value + more, joined + 1
        if most == 20 and more == 10 and 6 < words.values.get(_word(tokens, place), 0) < 10 and _goes_on(tokens, place):
            value, place = value + words.values[tokens[place].word], place + 1  # soixante-dix-sept
    elif value == 10 and "soixante" in words.values and 6 < more < 10 and joined == place:
        value, place = value + more, joined + 1  # dix-sept
    return Fraction(value), place


def _word(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].word if at < len(tokens) else ""


def _goes_on(tokens: Sequence[Token], at: int) -> bool:
    return at < len(tokens) and tokens[at].goes_on


def chinese(text: str) -> Fraction | None:
    """The value of a run of Chinese numerals; of digits alone, those in a row. None where it is no number.

    >>> str(chinese("二十一")), str(chinese("三万五千")), str(chinese("二〇二四")), chinese("万一")
    ('21', '35000', '2024', None)
    """
    if len(text) > MOST_CHARACTERS:
        return None
    if all(character in _CHINESE for character in text):
        return Fraction("".join(str(_CHINESE[character]) for character in text))
    total = section = digit = 0
    for place, character in enumerate(text):
        if character in _CHINESE:
            digit = _CHINESE[character]
        elif character in _CHINESE_TENS:
            if not digit and place and character != "十":
                return None
            section, digit = section + (digit or 1) * _CHINESE_TENS[character], 0
        else:
            if not section + digit:
                return None
            total, section, digit = (total + section + digit) * _CHINESE_SCALES[character], 0, 0
    return Fraction(total + section + digit)
