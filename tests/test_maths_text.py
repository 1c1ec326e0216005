import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.maths.answers import RIGHT, exact, fuzzy, right
from rlspeech.maths.detect import is_repetitive, repetition_share
from rlspeech.maths.text import normalise, raw_words, words

CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's twenty-one dollars, Mr. Smith.", "it is $21 mister smith"),
        ("Two hundred and five", "205"),
        ("the 3rd, the third", "the 3rd the 3rd"),
        ("Um, hmm, yes (laughs) [noise]", "yes laughs noise"),
        ("call Ann [Bo (Lee)] {x} <y", "call ann bo lee x y"),
        (f"isn{CURLY}t", "is not"),
        ("seven o'clock", "7 oclock"),
        ("...", ""),
        ("", ""),
    ],
)
def test_english_is_normalised_in_whispers_way_but_for_brackets(text: str, expected: str):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "lang", "expected"),
    [
        ("नमस्ते, दुनिया!", "hi", "नमस्ते दुनिया"),
        ("नमस्ते, दुनिया!", "en", "नमस्ते दुनिया"),
        ("สวัสดี", "en", "สวัสดี"),
        ("Привет, МИР!", "ru", "привет мир"),
        ("Ünïcode straße", "de", "ünïcode straße"),
        ("你好。", "zh", "你好"),
        ("می\N{ZERO WIDTH NON-JOINER}روم", "fa", "میروم"),
    ],
)
def test_no_script_loses_its_letters_or_its_marks(text: str, lang: str, expected: str):
    assert normalise(text, lang) == expected


@given(st.text(max_size=30), st.sampled_from(["en", "de", "hi"]))
def test_any_text_is_normalised_to_words_and_single_spaces(text: str, lang: str):
    normalised = normalise(text, lang)
    assert normalised == " ".join(normalised.split())
    assert all(words(text, lang))
    raw_words(text)


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=10))
def test_letters_never_normalise_to_nothing_outside_english(text: str):
    assert words(text, "xx")


def test_characters_are_words_where_a_script_has_no_spaces():
    assert words("iPhone 手机 ラーメン") == ["iphone", "手", "机", "ラ", "ー", "メ", "ン"]
    assert words("สวัสดี", "th") == ["ส", "วั", "ส", "ดี"]


def test_raw_words_are_not_rewritten():
    assert raw_words("Uh, twenty-one don't... (ok)") == ["uh", "twenty", "one", "don't", "ok"]


def test_thousands_of_texts_are_normalised_in_seconds():
    start = time.perf_counter()
    for index in range(3000):
        words(f"Meeting {index} is at seven thirty on the third of May in London, isn't it?")
    assert time.perf_counter() - start < 5


def test_exact_answers_differ_in_case_punctuation_and_spelling_of_numbers_alone():
    assert exact("Two o'clock.", "2 o'clock")
    assert exact("", "...")
    assert not exact("Anna", "Anna and Bob")


@pytest.mark.parametrize(
    ("reference", "reply", "expected"),
    [
        ("Anna and Bob", "Bob and Anna", True),
        ("Anna Kowalski", "Anna Kowalsky", True),
        ("the third of May", "3rd of May", True),
        ("two red cars", "2 red cars", True),
        ("5 o'clock", "at five", False),
        ("Tuesday", "Thursday", False),
        ("Anna and Bob", "Anna", False),
        ("Anna", "it may have been Anna or Bob or Carol or somebody else", False),
        ("10 euros for the ticket", "100 euros for the ticket", False),
        ("fifteen people", "fifty people", False),
        ("Anna", "", False),
    ],
)
def test_what_passes_for_the_right_answer(reference: str, reply: str, expected: bool):
    assert right(reference, reply) is expected
    assert (fuzzy(reference, reply) >= RIGHT) is expected


def test_numbers_count_by_their_value_and_their_share():
    assert fuzzy("3.0 km", "3 km") == 1.0
    assert fuzzy("$5", "five dollars") == 1.0
    assert right("it costs $5 today", "it costs 5 today")
    assert fuzzy("10 euros", "100 euros") == 0.0
    # one number of two in common, all but one letter of "platform 2 5" (12 letters, 11 in common: 22 / 24)
    assert fuzzy("platform 2 5", "platform 2 6") == pytest.approx(0.5 * 22 / 24)


def test_two_texts_without_words_are_alike_and_one_alone_is_not():
    assert fuzzy("...", "") == 1.0
    assert fuzzy("Anna", "...") == 0.0


@given(st.text(max_size=20), st.text(max_size=20))
def test_likeness_is_within_bounds_and_symmetric(one: str, other: str):
    assert 0 <= fuzzy(one, other) <= 1
    assert fuzzy(one, other) == pytest.approx(fuzzy(other, one))
    assert fuzzy(one, one) == 1.0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("How to Get Away - How to Get Away - How to Get Away", 1.0),
        ("ha ha ha ha", 1.0),
        ("Ha, ha! HA.", 1.0),
        ("ha ha", 0.0),
        ("she said no no no and left", 3 / 7),
        ("a b a b a b a", 1.0),
        ("one two three one two three one two", 0.0),
        ("a a a then b b b", 6 / 7),
        ("Anna met Bob on Monday and Carol on Tuesday.", 0.0),
        ("哈哈哈哈", 1.0),
        ("......", 1.0),
        ("", 0.0),
    ],
)
def test_repetition_shares_worked_by_hand(text: str, share: float):
    assert repetition_share(text) == pytest.approx(share)


def test_a_phrase_of_eight_words_loops_and_one_of_nine_does_not():
    eight, nine = " ".join("abcdefgh"), " ".join("abcdefghi")
    assert repetition_share(" ".join([eight] * 3)) == 1.0
    assert repetition_share(" ".join([nine] * 3)) == 0.0


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, max_size=8), st.integers(3, 6))
def test_a_phrase_said_over_and_over_is_all_loop(phrase: list[str], times: int):
    assert repetition_share(", ".join([" ".join(phrase)] * times)) == 1.0


@given(st.lists(st.integers(), unique=True, max_size=30))
def test_words_that_never_recur_are_no_loop(numbers: list[int]):
    assert repetition_share(" ".join(f"w{abs(number)}{'n' if number < 0 else 'p'}" for number in numbers)) == 0.0


def test_a_reply_in_a_loop_is_repetitive_and_a_normal_one_is_not():
    assert is_repetitive("The shows are How to Get Away, How to Get Away, How to Get Away")
    assert not is_repetitive("The meeting is on Monday, and Anna brings the very, very large cake.")


def test_a_long_text_is_judged_quickly():
    start = time.perf_counter()
    repetition_share("word and other words " * 20_000)
    assert time.perf_counter() - start < 5
