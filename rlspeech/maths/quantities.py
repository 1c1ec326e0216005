"""Numbers and dates of a text by their value, with where they stand: "two hundred" is 200, "May" the fifth month."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rlspeech.maths.found import Span
from rlspeech.maths.text import normalise, word_spans

Value = Fraction | str  # a number, or what names a date: "day 1", "month 5"

_DIGITS = re.compile(r"\d+(?:[.,:]\d+)*")
_SCALED = re.compile(r"\s?(hundred|thousand|million|billion)\b", re.IGNORECASE)
_TIMES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_ORDINALS = (
    "zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth hundredth thousandth"
)
_SCALES = "twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion dozen"
_ENGLISH = frozenset(f"{_UNITS} seventeen eighteen nineteen {_SCALES} {_ORDINALS}".split())
_WITHIN = frozenset(["and", "point", "hundred", "thousand", "million", "billion"])  # that go on with a number
_OTHERS = {  # the numbers that speech has most, by value from 0 on, then the tens
    "de": "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce",
    "it": "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici",
}
_TENS = {
    "de": "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig hundert",
    "fr": "vingt trente quarante cinquante soixante soixante-dix quatre-vingts quatre-vingt-dix cent",
    "es": "veinte treinta cuarenta cincuenta sesenta setenta ochenta noventa cien",
    "it": "venti trenta quaranta cinquanta sessanta settanta ottanta novanta cento",
}
_CHINESE = {character: value for value, character in enumerate("零一二三四五六七八九十")} | {"两": 2, "百": 100}

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
    value: Value
    span: Span


def language(lang: str) -> str:
    """
    >>> language("en-US")
    'en'
    """
    return lang.lower().replace("_", "-").partition("-")[0]


def numbers(text: str, lang: str = "en") -> list[Quantity]:
    """Digits and number words. In English whole phrases are read, in other languages single words.

    "one" as a word is none: it mostly stands for something else.

    >>> [str(one.value) for one in numbers("Two hundred and five, 1,000 or 2:30, the third.")]
    ['205', '1000', '2', '30', '3']
    """
    found = [_scaled(one, text) for match in _DIGITS.finditer(text) for one in _of_digits(match)]
    if language(lang) == "en":
        found += [one for span in _number_phrases(text) for one in _of_phrase(text, span)]
    else:
        known = _number_words(language(lang))
        found += [
            Quantity(Fraction(known[word]), (start, end))
            for start, end in word_spans(text)
            if (word := text[start:end].lower()) in known
        ]
    return sorted(found, key=lambda one: one.span)


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


def _of_digits(match: re.Match[str]) -> list[Quantity]:
    """1,000 and 1.000 are thousands, 2.5 and 2,5 are not, 2:30 is two numbers, 2:00 is one."""
    found = []
    for part in re.finditer(r"[^:]+", match[0]):
        text = re.sub(r"(?<=\d)[.,](?=\d{3}(?!\d))", "", part[0]).replace(",", ".")
        numbers_ = [text] if text.count(".") <= 1 else text.split(".")
        start = match.start() + part.start()
        found += [Quantity(Fraction(one), (start, start + len(part[0]))) for one in numbers_]
    return [one for one in found if one.value or len(found) == 1]


def _scaled(one: Quantity, text: str) -> Quantity:
    """3 million."""
    match = _SCALED.match(text, one.span[1])
    if match is None or isinstance(one.value, str):
        return one
    return Quantity(one.value * _TIMES[match[1].lower()], (one.span[0], match.end()))


def _number_phrases(text: str) -> list[Span]:
    """Runs of English number words, "twenty-one" and "two hundred and five" as one."""
    runs: list[Span] = []
    last_end = -1
    for start, end in word_spans(text):
        word = text[start:end].lower()
        gap = text[last_end:start] if runs else ""
        goes_on = bool(runs) and last_end == runs[-1][1] and gap.strip() in ("", "-") and "\n" not in gap
        if (word in _ENGLISH and not (word in _TIMES and _is_scaled(text, start))) or (goes_on and word in _WITHIN):
            if goes_on:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((start, end))
            last_end = end
        else:
            last_end = -1
    return [(start, start + len(re.sub(r"(?i)[\s-]+(?:and|point)$", "", text[start:end]))) for start, end in runs]


def _is_scaled(text: str, start: int) -> bool:
    return text[:start].rstrip()[-1:].isdigit()


def _of_phrase(text: str, span: Span) -> list[Quantity]:
    phrase = text[span[0] : span[1]]
    if phrase.lower() == "one":
        return []
    if phrase.lower() == "dozen":
        return [Quantity(Fraction(12), span)]
    return [Quantity(Fraction(found), span) for found in re.findall(r"\d+(?:\.\d+)?", normalise(phrase))]


@lru_cache(maxsize=16)
def _number_words(lang: str) -> dict[str, int]:
    if lang in ("zh", "ja", "yue"):
        return _CHINESE
    found = {word: value for value, word in enumerate(_OTHERS.get(lang, "").split())}
    found |= {word: 10 * tens for tens, word in enumerate(_TENS.get(lang, "").split(), 2)}
    return {word: value for word, value in found.items() if value != 1}


@lru_cache(maxsize=16)
def _date_words(lang: str) -> dict[str, str]:
    days, months = _DAYS.get(lang, _DAYS["en"]), _MONTHS.get(lang, _MONTHS["en"])
    found = {name: f"day {number}" for number, name in enumerate(days.split(), 1)}
    return found | {name: f"month {number}" for number, name in enumerate(months.split(), 1)}
