"""Detectors of faults in replies: worked by hand, on any text, and as good as docs/detectors.md says."""

import importlib.util
import random
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.maths.detect import prose_ratio
from rlspeech.maths.detectors import (
    DETECTORS,
    NEEDS_TRANSCRIPT,
    REFUSES,
    REPEATS,
    THRESHOLDS,
    UNSUPPORTED,
    examine,
    flags,
)
from rlspeech.maths.found import Found, Reply

ROOT = Path(__file__).resolve().parent.parent
SAID = "Anna Kowalski bought two hundred red lamps on Friday. She does not like John's blue ones."


def faults(text: str, transcript: str | None = SAID, **more) -> set[str]:
    return {*flags(examine(Reply(text, transcript, **more)))}


def evidence(name: str, text: str, transcript: str | None = SAID, **more) -> list[str]:
    found = DETECTORS[name](Reply(text, transcript, **more))
    return [text[start:end] for start, end in found.spans] if found else []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Anna Kowalsky bought 200 red lamps.", set()),  # spelt as a recogniser might, numbers by value
        ("Ana bought lamps on friday.", set()),
        ("Jon likes blue lamps? No: she does not like them.", set()),
        ("Kevin bought 200 red lamps.", set()),  # a first word is no name in a sentence
        ("The lamps were bought by Kevin.", {"names"}),
        ("Kevin.", {"names", "content"}),
        ("She bought 300 lamps.", {"numbers"}),
        ("She bought lamps on Monday.", {"dates"}),
        ('She said "come to my birthday party".', {"quotes", "content"}),
        ("She likes John's blue ones.", {"negation"}),
        ("Pirates attacked the harbour with cannons.", {"content"}),
        ("It was not said who sold them.", set()),
        ("It was not said who sold them, but Anna bought 200.", set()),
        ("It was not said who, but pirates attacked the harbour with cannons and stole all the gold.", {"content"}),
        ("It was not said who but pirates attacked the harbour with cannons and stole all the gold.", {"content"}),
        ("She said ‘come to my birthday party’.", {"quotes", "content"}),  # noqa: RUF001
        ("She said 'come to my birthday party'.", {"quotes", "content"}),
        ("She doesn't like John's 'blue ones' or Anna's.", set()),
        ("Anna's lamps, the lamps' reds and John's ones", set()),  # apostrophes, no quotation
    ],
)
def test_what_the_transcript_does_not_support_is_found(text: str, wanted: set[str]) -> None:
    assert faults(text) == wanted


@pytest.mark.parametrize(
    ("name", "text", "spans"),
    [
        (
            "word_loop",
            "First: How to Get Away - How to Get Away - How to Get Away -",
            ["How to Get Away - " * 2 + "How to Get Away"],
        ),
        ("character_loop", "She laughs hahahahahaha again", ["hahahahahaha"]),
        ("repeated_lines", "- red lamps\n- blue lamps\n- Red lamps.", ["- Red lamps."]),
        ("repeated_lines", "1. page 1\n2. page 2\n3. page 3", []),  # other digits, another item
        ("repeated_lines", "apples, pears, apples, plums", ["apples"]),
        ("repeated_lines", "1. Lost\n2. Lost.\n3. Fargo", ["2. Lost."]),
        ("repeated_lines", "1. Lost 2. Lost 3. Fargo", ["Lost"]),
        ("repeated_lines", "The items are oranges, lamps, boxes, pencils, and pencils.", ["and pencils"]),
        ("repeated_lines", "The items are oranges, boxes, lamps, boxes, and pencils.", ["boxes"]),
        ("repeated_lines", "The items are oranges, lamps and oranges.", ["oranges"]),
        ("repeated_lines", "Lost, Friends, Lost.", ["Lost"]),
        ("repeated_lines", "苹果、香蕉、苹果", ["苹果"]),
        ("repeated_lines", "a red colour, a lamp, a red color", ["a red color"]),
        ("repeated_lines", "Jane Smith, June Smith, Jean Smith", []),
        ("repeated_lines", "red lamps, blue lamps and green lamps", []),
        ("repeated_lines", "The lamp, she said, was red, and the table, she said, was blue.", []),  # no content
        ("numbers", "1. lamps\n2. tables", []),  # the numbers of a list are not said
        ("numbers", "It was 2:30, not $3 million.", ["2:30", "3 million"]),
        ("names", "Is it Anna or Quentin?", ["Quentin"]),
        ("names", "1. Anna\n2. Fargo\n3. Line of Duty", ["Fargo", "Line", "Duty"]),
        ("names", "1. Lamp\n2. Red ones\n3. She buys them on a Friday", []),  # capitals of the place
        ("names", "It was Dr. Quentin, not Mr. J. Kowalski.", ["Quentin"]),
    ],
)
def test_the_evidence_is_what_is_pointed_at(name: str, text: str, spans: list[str]) -> None:
    assert evidence(name, text) == spans


def test_a_loop_is_one_in_any_script_and_a_legitimate_repetition_is_none() -> None:
    assert "word_loop" in faults("好的好的好的好的好的好的", None)
    assert faults("No, no, I said no.", None) == set()
    assert "compression" in faults("the quick brown fox jumps over the lazy dog and runs away home. " * 6, None)


LOOP = "They mention How to Get Away - How to Get Away -"


@pytest.mark.parametrize("text", [LOOP, f"{LOOP} How to", "He says yes. He says yes."])
def test_a_phrase_said_twice_is_a_loop_where_it_ends_the_reply(text: str) -> None:
    assert "word_loop" in faults(text, None)
    assert "word_loop" not in faults(f"{text.rstrip(' -')} with it all, in the end.", None)
    assert "word_loop" not in faults(text, f"And now: {text}")  # it is said so


@pytest.mark.parametrize("text", ["It was very very", "Call 555 123 99 555 123 99", "day by day by day"])
def test_two_words_or_figures_said_twice_are_no_loop(text: str) -> None:
    assert faults(text, None) == set()


@pytest.mark.parametrize("end", ["", " How to", " How t"])
def test_a_phrase_said_twice_is_cut_off_within_its_loop(end: str) -> None:
    assert faults(LOOP + end, None, ended=False) >= {"word_loop", "cut_loop"}


def test_a_reply_is_held_against_the_length_of_its_audio_and_its_end() -> None:
    words = " ".join(f"word{i}" for i in range(60))
    assert "runaway" in faults(words, None, audio_s=3.0)
    assert "runaway" not in faults(words, None, audio_s=30.0)
    loop = "he said and he said and he said and he sa"
    assert "cut_loop" in faults(loop, None, ended=False)
    assert "cut_loop" not in faults(loop, None)
    assert "cut_loop" not in faults(f"{loop}id. Then he left.", None, ended=False)


def test_what_is_read_from_the_transcript_is_no_fault_of_the_reply() -> None:
    song = "Row, row, row your boat, merrily, merrily, merrily, on the stream, row your boat on the stream."
    assert faults(song, song) == set()
    assert faults(song, "They sing a song.") >= {"word_loop", "repeated_lines"}


@pytest.mark.parametrize("text", ["\u0130" * 12, "\u0130x" * 6])
def test_a_letter_that_lower_case_makes_two_keeps_its_place(text: str) -> None:
    assert DETECTORS["character_loop"](Reply(text)) == Found(1.0, ((0, 12),))


@pytest.mark.parametrize(
    ("said", "new"),
    [
        *[("Christina", "Christopher"), ("Tom", "Tim"), ("Louise", "Lisa"), ("Martha", "Martin"), ("Olivia", "Oliver")],
        *[("Iraq", "Iran"), ("Anna", "Hannah"), ("Maria", "Mario"), ("Julia", "Julie"), ("Jake", "Jack")],
    ],
)
def test_a_name_that_is_near_is_another_name(said: str, new: str) -> None:
    assert evidence("names", f"They asked {new}.", f"{said} was asked.") == [new]
    assert evidence("names", f"They asked {said}.", f"{new} was asked.") == [said]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *[("Kowalsky", "Kowalski"), ("Jon", "John"), ("Stephen", "Steven"), ("Catherine", "Katherine")],
        *[("Alan", "Allen"), ("Frances", "Francis"), ("Okonko", "Okonkwo"), ("Lefevre", "Lefèvre"), ("Mary", "Marie")],
    ],
)
def test_another_spelling_of_a_name_is_no_invention(one: str, other: str) -> None:
    assert faults(f"They asked {one}.", f"{other} was asked.") == set()
    assert faults(f"They asked {other}.", f"{one} was asked.") == set()


@pytest.mark.parametrize(
    ("said", "new"), [("bad", "bed"), ("interview", "internet"), ("translate", "transport"), ("lamb", "lamp")]
)
def test_a_word_with_the_same_beginning_or_consonants_is_another_word(said: str, new: str) -> None:
    assert evidence("content", f"It is the {new}.", f"This is the {said}.") == [new]


@pytest.mark.parametrize(
    ("said", "new"), [("decided", "deciding"), ("planned", "plan"), ("cities", "city"), ("colour", "color")]
)
def test_another_form_of_a_word_is_no_invention(said: str, new: str) -> None:
    assert evidence("content", f"It is the {new}.", f"This is {said}.") == []


def test_a_list_is_held_against_the_transcript_item_by_item() -> None:
    said = "We like Lost, The Wire and Friends."
    assert faults("1. Lost\n2. Friends\n3. The Wire", said) == set()
    assert faults("1. Lost\n2. Friends\n3. Fargo", said) == {"names"}


def test_questions_without_an_answer_and_silence() -> None:
    for text in ("That was not said.", "No one mentions it.", "The recording doesn't say.", "Das wird nicht erwähnt."):
        assert "not_said" not in faults(text, is_answerable=False)
        assert faults(text, is_answerable=True) == {"refused"}
        assert "refused" not in faults(text)
    assert "not_said" in faults("On Friday.", is_answerable=False)
    assert "refused" not in faults("On Friday.", is_answerable=True)
    long = "It was not said who sold the lamps, but Anna Kowalski bought two hundred of them."
    assert "refused" not in faults(long, is_answerable=True)


@pytest.mark.parametrize(
    "text", ["He did not tell her.", "She doesn't know.", "Anna does not say hello.", "unclear sky"]
)
def test_what_the_speech_says_itself_is_no_refusal(text: str) -> None:
    assert faults(text, f"Well. {text} It is late.", is_answerable=True) == set()
    assert "refused" in faults(text, is_answerable=True)
    assert faults("It is not known.", "I don't know the way home.", is_answerable=True) == {"refused"}


def test_a_refusal_excuses_no_invention_beside_it() -> None:
    told = "It was not said who, but pirates attacked the harbour with cannons and stole all the gold."
    assert faults(told, is_answerable=False) == {"content", "not_said"}
    assert faults(told, None, is_answerable=False) == {"not_said"}
    assert faults("It was not said who sold them, but Anna bought them on Friday.", is_answerable=False) == set()


@pytest.mark.parametrize("said", ["", "[noise]", "(music) [door slams]", "♪"])
def test_speech_told_of_where_there_is_none_is_found(said: str) -> None:
    for text in (
        "Anna bought lamps.",
        "Nobody knows that Kevin stole three hundred lamps from the harbour.",
        "There was a loud noise and then Kevin shouted for help.",
        "There is silence and a woman sells lamps at the market.",
    ):
        assert faults(text, said) == {"silence"}
    for text in ("There is no speech.", "Silence.", "[noise]", "(music)", "The recording has only loud noise.", ""):
        assert faults(text, said) == set()
        assert faults(text, said, lang="fr") == set()
    assert "silence" not in faults("Anna bought lamps.", "[noise] Anna bought lamps.")


@pytest.mark.parametrize(
    ("lang", "yes", "no"),
    [
        ("pt", "A Anna gosta das lâmpadas azuis.", "A Anna não gosta das lâmpadas azuis."),
        ("zh", "她喜欢蓝色的灯。", "她不喜欢蓝色的灯。"),
        ("zh", "他去了上海开会。", "他没有去上海开会。"),
    ],
)
def test_a_negation_is_found_in_portuguese_and_chinese(lang: str, yes: str, no: str) -> None:
    for one, other in ((yes, no), (no, yes)):
        assert evidence("negation", one, other, lang=lang) == [one.rstrip("。.")]
        assert faults(one, one, lang=lang) == set()
    assert DETECTORS["negation"](Reply("彼女は灯が好きです。", "彼女は灯が好きではない。", lang="ja")) is None


def test_what_a_negation_does_not_reach_is_not_denied() -> None:
    said = "Anna buys lemons at the market and does not like rain."
    assert evidence("negation", "Anna buys lemons at the market.", said) == []
    assert evidence("negation", "Anna does not buy lemons at the market.", "Anna buys lemons at the market.") != []


def test_twelve_replies_to_half_an_hour_of_speech_take_a_second_each_at_most(shared: Path) -> None:
    lines = (shared / "data/librispeech_biasing/ref/test-clean.biasing_100.tsv").read_text().splitlines()
    texts = [line.split("\t")[1].lower().capitalize() for line in lines]
    said = ". ".join(texts[:250])
    assert len(said.split()) > 4500
    starts = time.perf_counter()
    for place in range(12):
        examine(Reply(". ".join(texts[250 + 9 * place :][:9]), said, 1800.0))
    assert time.perf_counter() - starts < 12


def test_what_needs_a_transcript_does_not_apply_without_one() -> None:
    found = examine(Reply("Kevin bought 300 lamps on Monday."))
    assert not {*found} & {*NEEDS_TRANSCRIPT}
    assert {*REPEATS} | {*UNSUPPORTED} | {*REFUSES} == {*DETECTORS} == {*THRESHOLDS}


@given(
    st.text(max_size=80)
    | st.lists(st.sampled_from(["a", "na ", "Kevin", " 200", "\n- ", '"', "not ", "你好", "、"])).map("".join),
    st.text(max_size=40) | st.none(),
    st.sampled_from(["en", "de", "zh", "xx"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_on_any_text_scores_are_shares_and_spans_lie_in_it(text: str, said: str | None, lang: str, flag: bool) -> None:
    for found in examine(Reply(text, said, 2.0, flag, lang, "Who?", not flag)).values():
        assert 0 <= found.score <= 1
        edges = [edge for span in found.spans for edge in span]
        assert edges == sorted(edges)
        assert all(0 <= start < end <= len(text) for start, end in found.spans)
        assert found.score == 0 or found.spans or not any(map(str.isalnum, text))


ODD = [*"ßİ½²٣９Ⅷ亿万十点'’-–:/% ", "\ud800", "\u202f", "\u200d", "e\u0301", "👩\u200d👧", "quatre-vingt-"]  # noqa: RUF001
ODD += ["9" * 5000, "九" * 5000, "[" * 400, "(" * 400 + ")" * 400, "1.", "1,", "/0", "h30", " 000", "\n", "\n1. "]
ODD += ["million ", "hundert", "half past ", "and a half ", "Dr. ", "not said ", "no ", "ha"]


@pytest.mark.parametrize("lang", ["en", "de", "fr", "es", "it", "pt", "zh", "ja", "", "xx-YY"])
def test_no_text_makes_a_detector_fail(lang: str) -> None:
    rng = random.Random(lang)
    for _ in range(25):
        text, said = ("".join(rng.choices(ODD, k=rng.randint(0, 12))) for _ in range(2))
        for found in examine(Reply(text, said, 0.0, rng.random() < 0.5, lang, said[:9], rng.random() < 0.5)).values():
            assert 0 <= found.score <= 1
            assert all(0 <= start < end <= len(text) for start, end in found.spans)


def test_prose_compresses_as_its_curve_says(shared: Path) -> None:
    import zlib

    lines = (shared / "data/librispeech_biasing/ref/test-clean.biasing_100.tsv").read_text().splitlines()
    text = " ".join(line.split("\t")[1] for line in lines).lower()
    rng = random.Random(0)
    for size in (80, 120, 200, 500, 1000, 5000):
        starts = [rng.randrange(len(text) - size) for _ in range(100)]
        ratios = [len(zlib.compress(text[start : start + size].encode(), 9)) / size for start in starts]
        assert sum(ratios) / len(ratios) == pytest.approx(prose_ratio(size), abs=0.02)


def test_the_labelled_set_gives_the_thresholds_in_use_and_the_figures_of_the_docs(monkeypatch) -> None:
    benchmark = _benchmark(monkeypatch)
    choosing, judging = benchmark.halves(0)
    rows, unseen = _table(6), _table(5)
    assert {*rows} == {*unseen} == {*DETECTORS}
    for name, (threshold, *told) in rows.items():
        assert benchmark.chosen_threshold(name, choosing) == THRESHOLDS[name] == float(threshold)
        assert benchmark.told(name, THRESHOLDS[name], judging) == tuple(told)
    held_out = benchmark.held_out(0)
    assert {name: benchmark.told(name, THRESHOLDS[name], held_out) for name in DETECTORS} == {
        name: tuple(told) for name, told in unseen.items()
    }


def _benchmark(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("detectors_benchmark", ROOT / "benchmarks" / "detectors.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "detectors_benchmark", benchmark)
    spec.loader.exec_module(benchmark)
    return benchmark


def _table(width: int) -> dict[str, list[str]]:
    """The cells after a detector's name, of the docs' table with so many columns."""
    lines = (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in DETECTORS and len(row) == width}
