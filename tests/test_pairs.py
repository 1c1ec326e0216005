"""Which replies make a pair, and files of pairs in TRL's columns."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from rlspeech.cli import main
from rlspeech.data.pairs import Pair, read, write
from rlspeech.errors import UserError
from rlspeech.maths.preferences import Candidate, Rules, choose
from rlspeech.types import Audio, Sample

GOOD = Candidate("Anna buys two red lamps.", nats_per_byte=-0.5)
LOOP = Candidate(
    "Anna buys lamps and lamps and lamps and lamps.",
    scores={"word_loop": 0.8},
    faults=("word_loop",),
    nats_per_byte=-0.4,
)
WRONG = Candidate("Kevin buys two red lamps.", scores={"names": 1.0}, faults=("names",), nats_per_byte=-0.9)


ASKED, SYSTEM = {"role": "user", "content": "Who speaks?"}, {"role": "system", "content": "Be brief."}
HEARD = {"type": "audio", "audio": "a.wav"}


def said(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def after(*messages: dict[str, Any]) -> dict[str, Any]:
    """Conversations that begin so."""
    return {"chosen": [*messages, said("Anna.")], "rejected": [*messages, said("Kevin.")]}


def never(one: Candidate, longest: int) -> None:
    raise AssertionError("nothing is too long")


def test_the_clean_reply_is_preferred_to_those_with_a_fault_the_worst_first() -> None:
    found, why = choose([LOOP, GOOD, WRONG], Rules(), never)
    assert why is None
    assert [(one.chosen.text, one.rejected.text, one.reason, one.margin) for one in found] == [
        (GOOD.text, WRONG.text, ("names",), 1.0),
        (GOOD.text, LOOP.text, ("word_loop",), 0.8),
    ]


def test_pairs_of_a_prompt_are_few_and_teach_different_things() -> None:
    also = replace(WRONG, text="Peter buys two red lamps.", scores={"names": 0.9})
    found, _ = choose([GOOD, WRONG, also, LOOP], Rules(per_prompt=2), never)
    assert [one.reason for one in found] == [("names",), ("word_loop",)]
    found, _ = choose([GOOD, WRONG, also, LOOP], Rules(per_prompt=3), never)
    assert [one.rejected.text for one in found] == [WRONG.text, LOOP.text, also.text]


def test_of_clean_replies_the_teachers_likeliest_is_preferred_but_the_students_own_first() -> None:
    other = replace(GOOD, text="Two lamps are bought.", nats_per_byte=-0.3)
    teachers = Candidate("Anna buys lamps.", origin="teacher", nats_per_byte=-0.1)
    found, _ = choose([GOOD, other, teachers, WRONG], Rules(), never)
    assert found[0].chosen is other
    found, _ = choose([teachers, WRONG], Rules(), never)
    assert found[0].chosen is teachers
    known = replace(teachers, text="Two red lamps.", origin="reference")
    found, _ = choose([known, teachers, WRONG], Rules(), never)
    assert found[0].chosen is teachers
    found, _ = choose([known, WRONG], Rules(), never)
    assert found[0].chosen is known
    cut = replace(GOOD, ended=False)
    assert choose([cut, WRONG], Rules(), never) == ([], "no_clean")
    (one,), _ = choose([cut, GOOD, WRONG], Rules(), never)  # the same text twice, once cut off behind it
    assert one.chosen is GOOD


def test_a_reply_may_be_rejected_for_being_unlikely_or_judged_worse() -> None:
    unlikely = Candidate("Anna does buy two lamps.", nats_per_byte=-1.6, judged=0.2)
    good = replace(GOOD, judged=0.9)
    assert choose([good, unlikely], Rules(), never) == ([], "clean")
    (one,), _ = choose([good, unlikely], Rules(unlikely_nats=1.0), never)
    assert (one.reason, one.margin) == (("unlikely",), pytest.approx(1.1))
    (one,), _ = choose([good, unlikely], Rules(judged=0.5), never)
    assert (one.reason, one.margin) == (("judged",), pytest.approx(0.7))
    assert choose([good, unlikely], Rules(unlikely_nats=1.2, judged=0.8), never) == ([], "clean")


def test_no_reply_is_rejected_that_the_judge_finds_better() -> None:
    wrong = replace(WRONG, judged=1.0)
    assert choose([replace(GOOD, judged=0.1), wrong], Rules(judged=0.5), never) == ([], "margin")
    assert len(choose([replace(GOOD, judged=0.6), wrong], Rules(judged=0.5), never)[0]) == 1
    assert len(choose([replace(GOOD, judged=0.1), wrong], Rules(), never)[0]) == 1  # nobody asked for the judge's word


def test_a_pair_does_not_teach_length() -> None:
    """A longer loop is cut to what the ratio allows; any other reply that is too long, or too short, makes no pair."""
    long = replace(LOOP, text="lamps and " * 20)
    asked = []

    def shorten(one: Candidate, longest: int) -> Candidate:
        asked.append(longest)
        return replace(one, text=one.text[:longest], ended=False)

    (one,), _ = choose([GOOD, long], Rules(length_ratio=1.5), shorten)
    assert asked == [36]
    assert (len(one.rejected.text), one.rejected.ended) == (36, False)
    assert choose([GOOD, long], Rules(), lambda *_: None) == ([], "length")
    assert choose([GOOD, replace(WRONG, text="Kevin.")], Rules(), never) == ([], "length")


def test_why_there_is_no_pair() -> None:
    assert choose([GOOD, replace(GOOD, text=f" {GOOD.text} ")], Rules(), never) == ([], "alike")
    assert choose([LOOP, WRONG], Rules(), never) == ([], "no_clean")
    assert choose([GOOD, replace(WRONG, scores={"names": 0.1})], Rules(), never) == ([], "margin")


def pairs_of(folder: Path) -> list[Pair]:
    soundfile.write(folder / "a.wav", np.zeros(16_000, np.float32), 16_000)
    sample = Sample("a/who", "Who speaks?", Audio(folder / "a.wav"), transcript="I am Anna.", tags={"kind": "who"})
    return [
        Pair(sample, "Anna.", "Kevin.", reason=("names",), evidence=("Kevin",), margin=1.0),
        Pair(
            replace(sample, id="a/list", instruction="What is told?", lang="de"),
            "Wörter 你好",
            "no no no",
            rejected_ended=False,
            chosen_origin="teacher",
            reason=("word_loop", "cut_loop"),
            margin=0.5,
            chosen_nats_per_byte=-0.25,
        ),
    ]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_pairs_are_read_as_they_were_written(name: str, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    write(tmp_path / name, pairs)
    assert read(tmp_path / name) == pairs


def test_trl_takes_the_file_as_its_conversational_preference_format(tmp_path: Path) -> None:
    from datasets import load_dataset
    from real_tokenizers import fresh_smollm2
    from trl import is_conversational, maybe_apply_chat_template

    write(tmp_path / "pairs.jsonl", pairs_of(tmp_path))
    rows = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    assert is_conversational(rows[0])
    keys = ("prompt", "chosen", "rejected")
    told = maybe_apply_chat_template({key: rows[0][key] for key in keys}, fresh_smollm2())
    assert told["prompt"].endswith("Who speaks?<|im_end|>\n<|im_start|>assistant\n")
    assert (told["chosen"], told["rejected"]) == ("Anna.<|im_end|>\n", "Kevin.<|im_end|>\n")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Who speaks?", "chosen": "Anna.", "rejected": "Kevin."},
        {
            "chosen": [{"role": "user", "content": "Who speaks?"}, {"role": "assistant", "content": "Anna."}],
            "rejected": [{"role": "user", "content": "Who speaks?"}, {"role": "assistant", "content": "Kevin."}],
            "score": 3,
        },
        {"prompt": "Who speaks?", "chosen": [ASKED, said("Anna.")], "rejected": [ASKED, said("Kevin.")]},
        {
            "prompt": [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Who speaks?"}]}],
            "chosen": [said([{"type": "text", "text": "Anna", "audio": None}, {"type": "text", "text": "."}])],
            "rejected": "Kevin.",
        },
        {
            "prompt": [{"role": "user", "content": [HEARD, {"type": "text", "text": "Who speaks?"}]}],
            "chosen": [said("Anna.")],
            "rejected": [said("Kevin.")],
            "audio": None,
        },
        {"prompt": "Who speaks?", "chosen": "Anna.", "rejected": "Kevin.", "audio": ["a.wav"]},
    ],
)
def test_pairs_of_others_are_read_in_trls_forms(row: dict, tmp_path: Path) -> None:
    pairs_of(tmp_path)
    (tmp_path / "their.jsonl").write_text(json.dumps({"audio": "a.wav", **row}) + "\n")
    (pair,) = read(tmp_path / "their.jsonl")
    assert (pair.sample.instruction, pair.chosen, pair.rejected) == ("Who speaks?", "Anna.", "Kevin.")
    assert pair.sample.audio == Audio(tmp_path / "a.wav")
    assert pair.sample.more_audio == ()


@pytest.mark.parametrize(
    "columns",
    [
        {"audio": "a.wav", "more_audio": ["b.wav"]},
        {"audio": ["a.wav", "b.wav"]},
        {
            "prompt": [
                {"role": "user", "content": [HEARD, {**HEARD, "audio": "b.wav"}, {"type": "text", "text": "Who?"}]}
            ]
        },
    ],
)
def test_every_audio_of_a_pair_is_heard_and_must_be_there(columns: dict, tmp_path: Path) -> None:
    pairs_of(tmp_path)
    path = tmp_path / "p.jsonl"
    rows = [{"prompt": "Who?", "chosen": "Anna.", "rejected": "Kevin.", "audio": "a.wav"}]
    rows.append({key: value for key, value in rows[0].items() if key != "audio"} | columns)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value) == f"{path}:2: audio missing: {tmp_path}/b.wav"
    shutil.copy(tmp_path / "a.wav", tmp_path / "b.wav")
    assert read(path)[1].sample.more_audio == (Audio(tmp_path / "b.wav"),)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"audio": "gone.wav"}, "p.jsonl:1: audio missing"),
        ({"audio": None}, "p.jsonl:1: 'audio' missing"),
        ({"audio": {"bytes": ""}}, "'audio' must be the path of a file"),
        ({"rejected": "Anna."}, "chosen and rejected are the same text"),
        ({"prompt": None}, "'chosen' has no message of a user, and there is no 'prompt'"),
        ({"chosen": 3}, "'chosen' must be a text or a list of messages"),
        ({"reason": 3}, "'reason' should be a valid list, got 3"),
        ({"start_s": "soon"}, "'start_s' should be a valid number, got 'soon'"),
        ({"more_audio": [1]}, "'more_audio[0]' should be a valid string, got 1"),
        ({"audio": ["a.wav", 1]}, "'audio' must be the path of a file, relative to the one that names it, or a list"),
        (
            {"prompt": [SYSTEM, ASKED]},
            "p.jsonl:1: 'prompt' has a message of role 'system'; a sample is one instruction",
        ),
        ({"prompt": [ASKED, said("Anna."), ASKED]}, "p.jsonl:1: 'prompt' has several turns (user, assistant, user, "),
        ({"prompt": None} | after(SYSTEM, ASKED), "p.jsonl:1: 'chosen' has a message of role 'system'"),
        ({"prompt": None} | after(ASKED, said("Bo."), ASKED), "p.jsonl:1: 'chosen' has several turns (user, "),
        ({"prompt": None} | after(ASKED) | {"rejected": [SYSTEM, said("No.")]}, "begin with different messages"),
        ({"prompt": "When?"} | after(ASKED), "'prompt' is not what chosen and rejected begin with"),
        ({"prompt": None, "chosen": [ASKED], "rejected": [ASKED]}, "there is no 'prompt'"),
        ({"rejected": [said("")]}, "'rejected' has no reply"),
        ({"chosen": [said([{"type": "image"}])]}, "'chosen[0].content[0]' must be a part of type text, with its text"),
        ({"chosen": [said([HEARD])]}, "'chosen' has audio in the reply; a reply is text"),
    ],
)
def test_what_is_no_pair_is_one_line(change: dict, what: str, tmp_path: Path) -> None:
    pairs_of(tmp_path)
    row = {"prompt": "Who?", "chosen": "Anna.", "rejected": "Kevin.", "audio": "a.wav", **change}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "p.jsonl")
    assert what in str(caught.value)


def test_an_empty_or_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no pairs"):
        read(tmp_path / "p.jsonl")
    assert main(["pairs", "--student", "tiny", "--detectors.names", "lops"]) == 2
    assert "detectors: 'lops' is none" in capsys.readouterr().err
