"""Biasing lists: over ten thousand draws they are what was asked for."""

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlspeech.errors import UserError
from rlspeech.maths.text import raw_words
from rlspeech.plugins import load_class
from rlspeech.types import Sample

DRAWS = 10_000
POOL = [
    f"{a}{b}{c}" for a in ("kal", "bren", "tos", "vir") for b in "aeiou" for c in ("mik", "dan", "rov", "les", "tun")
]
SAMPLE = Sample("s1", "Transcribe.", reference="Call Kalamik and Ann Lee now.", rare_words=("Kalamik", "Ann Lee"))


def lists(**options: Any) -> Any:
    return load_class("data_synth", "bias_words", "Synth", options)


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    """Lists of 4 to 8 in 80 of 100 prompts, with rare words in 90 of 100 of those, 50 to 100 % of them."""
    synth = lists(present=0.8, hit=0.9, size_low=4, size_high=8, share_low=0.5, share_high=1.0, hard=0.5)
    return [synth.draw(SAMPLE, turn=turn, pool=POOL) for turn in range(DRAWS)]


def test_lists_are_present_and_hit_as_often_as_asked(drawn) -> None:
    present = [one for one in drawn if one.biasing_words]
    hits = [one for one in present if set(one.biasing_words) & set(SAMPLE.rare_words)]
    assert len(present) / DRAWS == pytest.approx(0.8, abs=0.015)
    assert len(hits) / len(present) == pytest.approx(0.9, abs=0.015)


def test_sizes_are_spread_evenly(drawn) -> None:
    sizes = Counter(len(one.biasing_words) for one in drawn if one.biasing_words)
    assert sorted(sizes) == [4, 5, 6, 7, 8]
    expected = sizes.total() / 5
    assert sum((count - expected) ** 2 / expected for count in sizes.values()) < 18.5  # chi-square, 4 degrees, 0.1 %


def test_the_share_of_the_references_words_is_as_asked(drawn) -> None:
    """Of two rare words, a share drawn from 0.5..1 is one word below 0.75 and both above."""
    held = [len(set(one.biasing_words) & set(SAMPLE.rare_words)) for one in drawn if one.biasing_words]
    both = held.count(2) / (held.count(1) + held.count(2))
    assert both == pytest.approx(0.5, abs=0.02)


def test_a_place_in_the_list_tells_nothing(drawn) -> None:
    places = Counter(
        one.biasing_words.index("Kalamik")
        for one in drawn
        if len(one.biasing_words) == 8 and "Kalamik" in one.biasing_words
    )
    expected = places.total() / 8
    assert sum((places[place] - expected) ** 2 / expected for place in range(8)) < 24.3  # 7 degrees, 0.1 %


def test_half_of_the_distractors_are_spelled_alike(drawn) -> None:
    """`kal...` are the near ones of Kalamik; drawn evenly they would be a quarter."""
    near = [word.startswith("Kal") for one in drawn for word in one.biasing_words if word not in SAMPLE.rare_words]
    plain = lists(present=1.0, size_low=8, size_high=8, hard=0.0)
    even = [
        word.startswith("Kal")
        for turn in range(2000)
        for word in plain.draw(SAMPLE, turn=turn, pool=POOL).biasing_words
        if word not in SAMPLE.rare_words
    ]
    assert sum(even) / len(even) < 0.3
    assert sum(near) / len(near) > 0.4


def test_a_hard_distractor_is_the_nearest_in_spelling_or_sound_and_never_one_that_is_not_near() -> None:
    sample = Sample("s", "?", reference="call Kathy", rare_words=("Kathy",))
    pool = ["ww", "zz", "Cathy", "Bo", "Kowal", "Xi", "Ogden", "Utt"]
    for turn in range(200):
        synth = lists(present=1.0, hit=0.0, size_low=1, size_high=1, hard=1.0)
        assert synth.draw(sample, turn=turn, pool=pool).biasing_words == ("Cathy",)
    sounds = replace(sample, reference="call Phil", rare_words=("Phil",))
    found = {synth.draw(sounds, turn=turn, pool=["Pole", "Fill", "Chin"]).biasing_words for turn in range(50)}
    assert found == {("Fill",)}  # all three have as many letters in common with it
    by_chance = Counter(synth.draw(sample, turn=turn, pool=["ww", "zz", "Bo"]).biasing_words[0] for turn in range(300))
    assert min(by_chance.values()) > 60  # none is near: the list is filled evenly


def test_of_near_words_chance_decides_and_other_rare_words_take_up_what_one_does_not_have() -> None:
    pool = ["Kalamit", "Kalamid", "Kalemik", "Kalimik", *[f"Uo{a}{b}" for a in "pqrstuv" for b in "pqrstuv"]]
    synth = lists(present=1.0, hit=0.0, size_low=2, size_high=2, hard=1.0)
    found = Counter(word for turn in range(400) for word in synth.draw(SAMPLE, turn=turn, pool=pool).biasing_words)
    assert set(found) == set(pool[:4])
    assert min(found[word] for word in ("Kalemik", "Kalimik")) > 300  # one letter of seven is another one in each


@pytest.mark.parametrize(
    ("rare", "listed"),
    [
        (("Bo", "Kim Moore"), {"Ann Lee", "O'neil", "McKay", "Ibm"}),
        (("bo",), {"ann lee", "o'neil", "mckay", "ibm"}),
        (("BO",), {"ANN LEE", "O'NEIL", "MCKAY", "IBM"}),
        (("iPhone", "北京"), {"ann lee", "o'neil", "McKay", "IBM"}),
        ((), {"ann lee", "o'neil", "McKay", "IBM"}),
    ],
)
def test_the_case_of_a_word_does_not_give_the_answer_away(rare: tuple[str, ...], listed: set[str]) -> None:
    sample = Sample("s", "?", reference="x", rare_words=rare)
    synth = lists(present=1.0, hit=0.0, size_low=4, size_high=4)
    assert set(synth.draw(sample, turn=0, pool=["ann lee", "o'neil", "McKay", "IBM"]).biasing_words) == listed


def test_capitals_are_as_frequent_as_among_the_rare_words() -> None:
    sample = Sample("s", "?", reference="Bo and hum", rare_words=("Bo", "hum"))
    synth = lists(present=1.0, hit=0.0, size_low=100, size_high=100, hard=0.0)
    found = [word.islower() for turn in range(100) for word in synth.draw(sample, turn=turn, pool=POOL).biasing_words]
    assert sum(found) / len(found) == pytest.approx(0.5, abs=0.02)


def test_words_of_a_script_without_sounds_are_compared_by_spelling() -> None:
    sample = Sample("s", "?", reference="Иван", rare_words=("Иван",))
    synth = lists(present=1.0, hit=0.0, size_low=1, size_high=1, hard=1.0)
    pool = ["Мумтоз", "Иваси", "Щукуюы", "Ёфлэхц"]
    assert {synth.draw(sample, turn=turn, pool=pool).biasing_words for turn in range(50)} == {("Иваси",)}


def test_long_lists_have_their_share_of_hard_distractors() -> None:
    """700 words are Kalamik with three digits more; the other 20,000 have no letter in common with it."""
    near = ["{}kalamik{}{}".format(*f"{place:03d}") for place in range(700)]
    pool = [f"x{place:05d}" for place in range(20_000)] + near
    sample = replace(SAMPLE, rare_words=("Kalamik",))
    for hard, size, expected in ((0.3, 2_000, 600), (0.05, 500, 25), (1.0, 10, 10)):
        synth = lists(present=1.0, hit=0.0, size_low=size, size_high=size, hard=hard)
        held = [len(set(synth.draw(sample, turn=turn, pool=pool).biasing_words) & set(near)) for turn in range(20)]
        by_chance = (size - expected) * (700 - expected) / (20_700 - expected)
        assert min(held) >= expected
        assert sum(held) / 20 == pytest.approx(expected + by_chance, abs=4)


def test_the_mean_share_of_many_rare_words_is_that_of_the_range() -> None:
    """0.9 to 1 of four words is 3.8 of them in the mean: three in 20 of 100 lists."""
    sample = replace(SAMPLE, rare_words=("Kalamik", "Ann", "Lee", "Bo"))
    synth = lists(present=1.0, size_low=20, size_high=20, share_low=0.9, share_high=1.0)
    held = Counter(
        len(set(synth.draw(sample, turn=turn, pool=POOL).biasing_words) & set(sample.rare_words))
        for turn in range(DRAWS)
    )
    assert set(held) == {3, 4}
    assert held[3] / DRAWS == pytest.approx(0.2, abs=0.015)


def test_no_distractor_of_ten_thousand_lists_is_a_word_of_the_reference(drawn) -> None:
    for one in drawn:
        distractors = set(one.biasing_words) - set(SAMPLE.rare_words)
        assert not set(raw_words(" ".join(distractors))) & set(raw_words(SAMPLE.reference))
        assert len(one.biasing_words) == len(set(one.biasing_words))


def test_a_phrase_with_a_part_of_a_rare_one_is_no_distractor() -> None:
    """A word that is not rare may be part of one: "call" in "Call Bo"."""
    pool = ["Ann Moore", "Lee", "ANN LEE", "ann, lee!", "Kim Moore", "Kim  moore", "Call Bo", "and Ann", "--"]
    listed = lists(present=1.0, hit=0.0, size_low=9, size_high=9).draw(SAMPLE, turn=0, pool=pool).biasing_words
    assert sorted(listed) == ["Call Bo", "Kim Moore"]


def test_in_a_script_without_spaces_what_is_said_is_found_and_a_shared_character_does_no_harm() -> None:
    sample = Sample("s", "转写。", reference="我要去北京路。", rare_words=("北京",), lang="zh")
    synth = lists(present=1.0, hit=0.0, size_low=9, size_high=9)
    listed = synth.draw(sample, turn=0, pool=["北京", "北海", "要去", "京路", "南京"]).biasing_words
    assert sorted(listed) == ["北海", "南京"]


def test_nothing_that_is_said_is_a_distractor_and_nothing_comes_twice() -> None:
    synth = lists(present=1.0, hit=0.0, size_low=30, size_high=30, hard=0.5)
    pool = [*POOL, "now", "Call", "Ann", "kalamik", "ann lee", "lee now", "Annlee"]
    for turn in range(300):
        words = synth.draw(SAMPLE, turn=turn, pool=pool).biasing_words
        assert len(set(words)) == len(words) == 30
        assert not {"now", "call", "ann", "kalamik", "ann lee", "lee now"} & {word.lower() for word in words}


def test_a_draw_hangs_on_seed_turn_and_sample_alone() -> None:
    synth, other = lists(size_low=9, size_high=9, present=1.0), lists(size_low=9, size_high=9, present=1.0, seed=1)
    first = synth.draw(SAMPLE, turn="3.0", pool=POOL)
    assert synth.draw(SAMPLE, turn="3.0", pool=POOL) == first
    assert lists(size_low=9, size_high=9, present=1.0).draw(SAMPLE, turn="3.0", pool=POOL) == first
    others = [
        synth.draw(SAMPLE, turn="4.0", pool=POOL),
        other.draw(SAMPLE, turn="3.0", pool=POOL),
        synth.draw(replace(SAMPLE, id="s2"), turn="3.0", pool=POOL),
    ]
    assert all(one.biasing_words != first.biasing_words for one in others)


def test_the_prompt_shows_the_list_with_marks_where_asked() -> None:
    synth = lists(
        size_low=2, size_high=2, present=1.0, hit=1.0, marks=True, separator="; ", with_list="{instruction} [{list}]"
    )
    one = synth.draw(SAMPLE, turn=0, pool=POOL)
    assert one.instruction in ("Transcribe. [*Kalamik*; *Ann Lee*]", "Transcribe. [*Ann Lee*; *Kalamik*]")
    assert one.reference == "Call *Kalamik* and *Ann Lee* now."
    silent = lists(present=0.0, marks=True).draw(SAMPLE, turn=0, pool=POOL)
    assert (silent.instruction, silent.reference, silent.biasing_words) == ("Transcribe.", SAMPLE.reference, ())
    told = lists(present=0.0, without_list="{instruction} No words are given.").draw(SAMPLE, turn=0, pool=POOL)
    assert told.instruction == "Transcribe. No words are given."


def test_what_an_instruction_or_a_word_spells_is_no_place_of_the_template() -> None:
    sample = replace(SAMPLE, instruction="Fill {list}.", rare_words=("{instruction}",))
    one = lists(size_low=1, size_high=1, present=1.0).draw(sample, turn=0, pool=[])
    assert one.instruction == "Fill {list}. These words may be said: {instruction}"


def test_rare_words_are_those_that_are_not_common(tmp_path: Path) -> None:
    (tmp_path / "common.txt").write_text("call\nand\nnow\nkalamik\n")
    plain = replace(SAMPLE, rare_words=())
    assert lists(common=str(tmp_path / "common.txt")).rare_words(plain) == ("Ann", "Lee")
    assert lists(common=str(tmp_path / "common.txt"), common_words=3).rare_words(plain) == ("Kalamik", "Ann", "Lee")
    assert lists().rare_words(plain) == ()


def test_rare_words_are_the_published_ones_of_every_utterance_of_librispeech_test_clean(shared: Path) -> None:
    folder = shared / "data" / "librispeech_biasing"
    synth = lists(common=str(folder / "words" / "common_words_5k.txt"))
    rows = [line.split("\t") for line in (folder / "ref" / "test-clean.biasing_100.tsv").read_text().splitlines()]
    assert len(rows) == 2620
    for name, text, published, _ in rows:
        assert set(synth.rare_words(Sample(name, "?", reference=text))) == set(json.loads(published))


def test_a_marked_list_of_two_thousand_is_drawn_at_once() -> None:
    synth = lists(present=1.0, size_low=2_000, size_high=2_000, marks=True)
    pool = [f"{word}{place}" for word in POOL for place in range(100)]
    begin = time.perf_counter()
    found = [synth.draw(SAMPLE, turn=turn, pool=pool) for turn in range(10)]
    assert time.perf_counter() - begin < 5
    assert {one.reference for one in found} == {"Call *Kalamik* and *Ann Lee* now."}
    assert all(len(one.biasing_words) == 2_000 for one in found)


def test_a_list_of_two_thousand_takes_milliseconds() -> None:
    synth = lists(present=1.0, size_low=2_000, size_high=2_000)
    pool = tuple(f"{word}{place}" for word in POOL for place in range(50))
    synth.draw(SAMPLE, turn=-1, pool=pool)  # the pool is read once
    begin = time.perf_counter()
    for turn in range(10):
        synth.draw(SAMPLE, turn=turn, pool=pool)
    assert time.perf_counter() - begin < 1


def test_a_line_of_the_common_words_ends_at_its_end_alone(tmp_path: Path) -> None:
    (tmp_path / "common.txt").write_bytes("\ufeffcall\r\nand\u2028\r\nnow\n".encode())
    synth = lists(common=str(tmp_path / "common.txt"), common_words=3)
    assert synth.rare_words(replace(SAMPLE, rare_words=())) == ("Kalamik", "Ann", "Lee")


def test_as_a_synthesiser_it_takes_words_of_the_samples_before(tmp_path: Path) -> None:
    synth = lists(present=1.0, hit=0.0, size_low=2, size_high=2, hard=0.0, buffer=2)
    rows = [Sample(f"{i}", "?", reference=f"w{i}", rare_words=(f"w{i}",)) for i in range(5)]
    found = list(synth(rows))
    assert found[0].biasing_words == ()
    assert set(found[1].biasing_words) == {"w0"}
    assert set(found[4].biasing_words) == {"w2", "w3"}  # the latest two


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"size_low": 3, "size_high": 2}, "size_low <= size_high <= 2000, got 3 and 2"),
        ({"size_high": 2001}, "got 1 and 2001"),
        ({"hit": 1.5}, "hit must be in 0..1, got 1.5"),
        ({"common": "nowhere.txt"}, "common: no file nowhere.txt"),
        ({"with_list": "{list}"}, "with_list must hold {instruction} and {list}, the list once"),
        ({"with_list": "{instruction} {list} {list}"}, "with_list must hold {instruction} and {list}, the list once"),
        ({"without_list": "Write. {list}"}, "without_list must hold {instruction} and no {list}"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line.replace(".", r"\.").replace("{", r"\{").replace("(", r"\(")):
        lists(**options)


def test_no_name_of_the_test_set_is_ever_learned() -> None:
    sets = {
        split: list(load_class("data_synth", "calls", "Synth", {"split": split, "count": 400})())
        for split in ("train", "test")
    }
    names = {
        split: {word for one in rows for word in raw_words(" ".join(one.rare_words))} for split, rows in sets.items()
    }
    assert not names["train"] & names["test"]
    assert len(names["test"]) > 300
    assert all(set(raw_words(" ".join(one.rare_words))) <= set(raw_words(one.reference)) for one in sets["train"])
