"""Detectors of faults in replies: worked by hand, on any text, and as good as docs/detectors.md says."""

import importlib.util
import sys
from pathlib import Path

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
from rlspeech.maths.found import Reply
from rlspeech.maths.quantities import numbers

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
        ("numbers", "1. lamps\n2. tables", []),  # the numbers of a list are not said
        ("numbers", "It was 2:30, not $3 million.", ["2", "30", "3 million"]),
        ("names", "Is it Anna or Quentin?", ["Quentin"]),
    ],
)
def test_the_evidence_is_what_is_pointed_at(name: str, text: str, spans: list[str]) -> None:
    assert evidence(name, text) == spans


def test_a_loop_is_one_in_any_script_and_a_legitimate_repetition_is_none() -> None:
    assert "word_loop" in faults("好的好的好的好的好的好的", None)
    assert faults("No, no, I said no.", None) == set()
    assert "compression" in faults("the quick brown fox jumps over the lazy dog and runs away home. " * 6, None)


def test_a_reply_is_held_against_the_length_of_its_audio_and_its_end() -> None:
    words = " ".join(f"word{i}" for i in range(60))
    assert "runaway" in faults(words, None, audio_s=3.0)
    assert "runaway" not in faults(words, None, audio_s=30.0)
    loop = "he said and he said and he said and he sa"
    assert "cut_loop" in faults(loop, None, ended=False)
    assert "cut_loop" not in faults(loop, None)
    assert "cut_loop" not in faults(f"{loop}id. Then he left.", None, ended=False)


def test_questions_without_an_answer_and_silence() -> None:
    for text in ("That was not said.", "No one mentions it.", "The recording doesn't say.", "Das wird nicht erwähnt."):
        assert "not_said" not in faults(text, is_answerable=False)
        assert faults(text, is_answerable=True) == {"refused"}
        assert "refused" not in faults(text)
    assert "not_said" in faults("On Friday.", is_answerable=False)
    assert "refused" not in faults("On Friday.", is_answerable=True)
    long = "It was not said who sold the lamps, but Anna Kowalski bought two hundred of them."
    assert "refused" not in faults(long, is_answerable=True)
    assert faults("Anna bought lamps.", "") == {"silence"}
    assert faults("There is no speech.", "") == set()
    assert "silence" not in faults("Anna bought lamps.")


def test_numbers_of_other_languages_are_compared_by_value() -> None:
    assert faults("12 Äpfel", "zwölf Äpfel", lang="de") == set()
    assert faults("13 Äpfel", "zwölf Äpfel", lang="de") == {"numbers"}
    assert faults("3本书", "三本书", lang="zh") == set()
    assert [str(one.value) for one in numbers("nineteen ninety two, a dozen, 1.5 and 1,200")] == [
        "1992",
        "12",
        "3/2",
        "1200",
    ]


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


def test_prose_compresses_as_its_curve_says(shared: Path) -> None:
    import random
    import zlib

    lines = (shared / "data/librispeech_biasing/ref/test-clean.biasing_100.tsv").read_text().splitlines()
    text = " ".join(line.split("\t")[1] for line in lines).lower()
    rng = random.Random(0)
    for size in (80, 120, 200, 500, 1000, 5000):
        starts = [rng.randrange(len(text) - size) for _ in range(100)]
        ratios = [len(zlib.compress(text[start : start + size].encode(), 9)) / size for start in starts]
        assert sum(ratios) / len(ratios) == pytest.approx(prose_ratio(size), abs=0.02)


def test_the_labelled_set_gives_the_thresholds_in_use_and_the_figures_of_the_docs(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "detectors_benchmark", None)
    spec = importlib.util.spec_from_file_location("detectors_benchmark", ROOT / "benchmarks" / "detectors.py")
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "detectors_benchmark", benchmark)
    spec.loader.exec_module(benchmark)
    choosing, judging = benchmark.halves(0)
    rows = {}
    for line in (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].strip("`") in DETECTORS and len(cells) == 6:
            rows[cells[0].strip("`")] = cells[1:]
    assert {*rows} == {*DETECTORS}
    for name, (threshold, precision, recall, planted, wrong) in rows.items():
        assert benchmark.chosen_threshold(name, choosing) == THRESHOLDS[name] == float(threshold)
        hits, misses, flagged = benchmark.counts(name, THRESHOLDS[name], judging)
        assert (hits + misses, flagged) == (int(planted), int(wrong))
        assert f"{hits / (hits + flagged):.2f}" == precision
        assert f"{hits / (hits + misses):.2f}" == recall
