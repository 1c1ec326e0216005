"""Numbers by their value: what says the same in words and digits, and what does not."""

import pytest

from rlspeech.maths.quantities import number_values_in, numbers


def agree(one: str, other: str, lang: str) -> tuple[bool, bool]:
    """Whether every number of the one is known where the other is said, and the other way round."""
    return _is_known(one, other, lang), _is_known(other, one, lang)


def _is_known(text: str, said: str, lang: str) -> bool:
    return all(one.is_in(number_values_in(said, lang)) for one in numbers(text, lang))


@pytest.mark.parametrize(
    ("digits", "words"),
    [
        *[("1 lamp", "one lamp"), ("24 eggs", "two dozen eggs"), ("6", "half a dozen"), ("1/3", "one third")],
        *[("2/3", "two thirds"), ("2.5", "two and a half"), ("2½", "two and a half"), ("305", "3 hundred and five")],
        *[("1.5 hours", "an hour and a half"), ("3.14", "three point one four"), ("50%", "half of them")],
        *[("1:45", "quarter to two"), ("14:30", "half past two"), ("2:50", "ten to three"), ("9:30", "nine thirty")],
        *[("10:30", "half ten"), ("2:05", "five minutes past two"), ("from 7 to 8", "from seven to eight")],
        *[("5 million", "5m"), ("500,000", "half a million"), ("2.5 million", "two and a half million")],
        *[("1992", "nineteen ninety two"), ("1905", "nineteen oh five"), ("2009", "two thousand and nine")],
        *[("205", "two oh five"), ("the 21st", "the twenty first"), ("1,234,567 and 8", "1 234 567 and eight")],
        *[("-5", "minus five"), ("5 degrees below zero", "minus five"), ("100 to 200", "one hundred to two hundred")],
    ],
)
def test_english_numbers_are_compared_by_value(digits: str, words: str) -> None:
    assert agree(digits, words, "en") == (True, True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("13", "one third"), ("13", "thirty"), ("five", "minus five"), ("2:30", "half past three")],
        *[("1:45", "quarter past two"), ("300", "two hundred"), ("0.125", "125"), ("24", "two hundred")],
        ("102", "between one hundred and two hundred"),
    ],
)
def test_other_english_numbers_are_not(one: str, other: str) -> None:
    assert agree(one, other, "en") == (False, False)


@pytest.mark.parametrize(
    ("lang", "digits", "words"),
    [
        *[("fr", "80", "quatre-vingts"), ("fr", "70", "soixante-dix"), ("fr", "97", "quatre-vingt-dix-sept")],
        *[("fr", "1000", "1 000"), ("fr", "1 000", "mille"), ("fr", "71", "soixante et onze"), ("fr", "77 et", "77")],
        *[("fr", "1990", "mille neuf cent quatre-vingt-dix"), ("fr", "10:30", "dix heures et demie")],
        *[("de", "21", "einundzwanzig"), ("de", "205", "zweihundertfünf"), ("de", "30.000", "dreißig tausend")],
        *[("de", "6:30", "halb sieben"), ("de", "7:15", "Viertel nach sieben"), ("de", "3,5", "3.5")],
        *[("es", "31", "treinta y uno"), ("es", "2500", "dos mil quinientos"), ("es", "8:30", "las ocho y media")],
        *[("it", "28", "ventotto"), ("it", "2007", "duemilasette"), ("it", "2:45", "alle tre meno un quarto")],
        *[("pt", "122", "cento e vinte e dois"), ("pt", "22", "vinte e duas")],
        *[("zh", "21", "二十一"), ("zh", "2024年", "二〇二四年"), ("zh", "3万", "三万"), ("zh", "3:30", "三点半")],
        *[("zh", "10:20", "十点二十分"), ("zh", "105", "一百零五"), ("zh", "1500", "一千五百")],
    ],
)
def test_numbers_of_other_languages_are_compared_by_value(lang: str, digits: str, words: str) -> None:
    assert agree(digits, words, lang) == (True, True)


@pytest.mark.parametrize(
    ("lang", "one", "other"),
    [
        ("fr", "24", "quatre-vingts"),
        ("zh", "20", "二十一"),
        ("de", "12", "einundzwanzig"),
        ("es", "30", "treinta y uno"),
    ],
)
def test_a_part_of_a_number_is_not_that_number(lang: str, one: str, other: str) -> None:
    assert agree(one, other, lang) == (False, False)


def test_phrases_are_read_whole_and_one_alone_is_no_number() -> None:
    said = numbers("nineteen ninety two, a dozen, 1.5 and 1,200; one of them, the third")
    assert [str(one.value) for one in said] == ["1992", "12", "3/2", "1200", "3"]
    assert 1 in number_values_in("one of them", "en")
    assert numbers("Second, she comes in a second.") == []
    assert [str(one.value) for one in numbers("2-3 lamps, COVID-19, the second one")] == ["2", "3", "19", "2"]


@pytest.mark.parametrize("text", ["9" * 5000, "nine " * 5000, "1." * 5000, "million " * 3000, "½" * 99, "0/0", "1/0"])
def test_no_row_of_digits_is_too_long(text: str) -> None:
    assert _is_known(text, text, "en")


def test_no_row_of_numerals_is_too_long() -> None:
    assert _is_known("九" * 5000, "", "zh")
    assert _is_known("hundert" * 300, "hundert" * 300, "de")
