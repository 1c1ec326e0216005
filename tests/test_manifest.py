"""Manifests of ours, NeMo's and Hugging Face's, read into samples; every kind of bad row by its exact message."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.data import audio, manifest
from rlspeech.data.rows import TRANSCRIBE, recording_of, rows_of
from rlspeech.errors import UserError
from rlspeech.types import Audio, Sample, Turn, Word

GOOD = {"id": "r1", "audio": "clips/1.wav", "instruction": "Who?", "answer": "Anna.", "transcript": "Anna came."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("1", "2"):
        soundfile.write(tmp_path / "clips" / f"{name}.wav", 0.1 * np.ones(16000), 16000)
    (tmp_path / "clips" / "empty.wav").write_bytes(b"")
    (tmp_path / "clips" / "text.wav").write_text("hello " * 100)
    whole = (tmp_path / "clips" / "1.wav").read_bytes()
    (tmp_path / "clips" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def written(folder: Path, *lines: Any) -> Path:
    path = folder / "train.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


def test_each_instruction_of_a_row_becomes_a_sample(folder: Path):
    row = {
        "id": "r1",
        "audio": "clips/1.wav",
        "start_s": 0.25,
        "duration_s": 1,
        "transcript": "Anna came.",
        "speakers": [{"speaker": "A", "text": "Anna came.", "voice": "en-us", "pause_s": 0.5}],
        "words": [{"text": "Anna", "start_s": 0, "end_s": 0.4}, {"text": "came.", "start_s": 0.4, "end_s": 1}],
        "lang": "de",
        "tags": {"split": "train"},
        "biasing_words": ["Anna", "Otto"],
        "rare_words": ["Anna"],
        "instructions": [
            {"kind": "transcribe", "instruction": "Transcribe.", "answer": "Anna came."},
            {"kind": "who", "instruction": "Who came?", "answer": "Anna."},
            {"kind": "who", "instruction": "Who did not?"},
        ],
    }
    loaded = manifest.read(written(folder, row))
    common = {
        "audio": Audio(folder / "clips/1.wav", 0.25),
        "transcript": "Anna came.",
        "lang": "de",
        "biasing_words": ("Anna", "Otto"),
        "rare_words": ("Anna",),
        "turns": (Turn("A", "Anna came.", "en-us", pause_s=0.5),),
        "words": (Word("Anna", 0, 0.4), Word("came.", 0.4, 1)),
    }
    transcribe, who = {"split": "train", "kind": "transcribe"}, {"split": "train", "kind": "who"}
    assert loaded.samples == (
        Sample("r1/transcribe", "Transcribe.", reference="Anna came.", tags=transcribe, **common),
        Sample("r1/who", "Who came?", reference="Anna.", tags=who, **common),
        Sample("r1/who-2", "Who did not?", reference=None, tags=who, **common),
    )
    assert {recording_of(sample) for sample in loaded.samples} == {"r1"}


@pytest.mark.parametrize("key", ["answer", "reference"])
def test_one_instruction_may_stand_on_the_row(folder: Path, key: str):
    row = {"id": "r1", "audio": "clips/1.wav", "kind": "who", "instruction": "Who?", key: "Anna."}
    (sample,) = manifest.read(written(folder, row)).samples
    assert (sample.id, sample.tags["kind"], sample.reference) == ("r1/who", "who", "Anna.")


def test_blank_lines_and_a_byte_order_mark_are_passed_over(folder: Path):
    path = written(folder, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", b"  ", {**GOOD, "id": "r2"})
    assert [sample.id for sample in manifest.read(path).samples] == ["r1/other", "r2/other"]


@pytest.mark.parametrize("where", ["../clips/1.wav", "{folder}/clips/1.wav"])
def test_audio_may_lie_outside_the_folder_of_the_manifest(folder: Path, where: str):
    (folder / "lists").mkdir()
    row = {**GOOD, "audio": where.format(folder=folder)}
    (sample,) = manifest.read(written(folder / "lists", row)).samples
    assert audio.read(sample.audio).duration_s == 1


BAD = [
    (b"{'id': 1}", "not JSON: expecting property name enclosed in double quotes at character 2"),
    (b'{"id": "\xff"}', "not UTF-8: byte 0xff at 8"),
    ([1, 2], "not a JSON object: [1, 2]"),
    ({**GOOD, "trancript": "x"}, "unknown key 'trancript'; did you mean 'transcript'?"),
    ({**GOOD, "words": [{"txt": "x", "start_s": 0, "end_s": 1}]}, "unknown key 'words[0].txt'; did you mean 'text'?"),
    ({k: v for k, v in GOOD.items() if k != "id"}, "'id' missing"),
    ({**GOOD, "id": 7}, "'id' should be a valid string, got 7"),
    ({**GOOD, "tags": {"a": 1}}, "'tags.a' should be a valid string, got 1"),
    ({**GOOD, "words": [{"text": "x", "start_s": 2, "end_s": 1}]}, "words[0] ('x') ends before it starts"),
    ({**GOOD, "duration_s": "long"}, "'duration_s' should be a valid number, got 'long'"),
    ({k: v for k, v in GOOD.items() if k != "instruction"}, "instruction missing"),
    ({**GOOD, "instruction": " "}, "instruction empty (kind 'other')"),
    ({**GOOD, "reference": "Anna."}, "both 'answer' and 'reference'; keep one"),
    (
        {**GOOD, "instructions": [{"kind": "who", "instruction": "Who?"}]},
        "both 'instructions' and 'instruction' on the row; keep one",
    ),
    ({**GOOD, "transcript": " "}, "transcript missing: it is what the teacher reads"),
    ({**GOOD, "answer": None}, "answer missing (kind 'other')"),
    ({k: v for k, v in GOOD.items() if k != "audio"}, "audio missing: the row names none"),
    ({**GOOD, "audio": "clips/9.wav"}, "audio missing: {folder}/clips/9.wav"),
    ({**GOOD, "audio": "clips/empty.wav"}, "audio empty: {folder}/clips/empty.wav has no bytes"),
    (
        {**GOOD, "audio": "clips/text.wav"},
        "not audio: {folder}/clips/text.wav is not wav, flac, mp3 or ogg that libsndfile can read",
    ),
    (
        {**GOOD, "audio": "clips/cut.wav"},
        "audio truncated: {folder}/clips/cut.wav holds 15978 of 32000 bytes of sound",
    ),
    ({**GOOD, "start_s": 3}, "audio starts past its end: {folder}/clips/1.wav from 3 to 1 s, but it lasts 1 s"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_is_named_and_what_is_wrong_is_said(folder: Path, line: Any, message: str):
    path = written(folder, {**GOOD, "id": "r0"}, line)
    needs = ("audio", "transcript", "reference")
    with pytest.raises(UserError) as error:
        manifest.read(path, needs=needs)
    whole = f"{path}:2: {message.format(folder=folder)}"
    assert str(error.value) == whole
    loaded = manifest.read(path, needs=needs, skip_bad=True)
    assert [sample.id for sample in loaded.samples] == ["r0/other"]
    assert loaded.skipped == (whole,)


def test_the_same_id_twice_is_refused(folder: Path):
    path = written(folder, GOOD, GOOD)
    with pytest.raises(UserError) as error:
        manifest.read(path)
    assert str(error.value) == f"{path}:2: duplicate id 'r1'; first at {path}:1"


def test_only_what_is_needed_is_asked_for(folder: Path):
    path = written(folder, {"id": "r1", "audio": "clips/9.wav", "instruction": "Who?"})
    assert len(manifest.read(path, needs=()).samples) == 1
    with pytest.raises(UserError, match="words missing: their times are needed"):
        manifest.read(path, needs=("words",))


def test_a_manifest_that_is_not_there_suggests_its_neighbours(folder: Path):
    written(folder, GOOD)
    with pytest.raises(UserError) as error:
        manifest.read(folder / "trian.jsonl")
    assert str(error.value) == f"{folder}/trian.jsonl: no such manifest; did you mean 'train.jsonl'?"
    with pytest.raises(UserError) as error:
        manifest.read(folder / "no" / "train.jsonl")
    assert str(error.value) == f"{folder}/no/train.jsonl: no such manifest"


def test_a_manifest_without_a_good_row_is_refused(folder: Path):
    with pytest.raises(UserError) as error:
        manifest.read(written(folder))
    assert str(error.value) == f"{folder}/train.jsonl: no recordings"
    with pytest.raises(UserError) as error:
        manifest.read(written(folder, b"{"), skip_bad=True)
    assert str(error.value).startswith(f"{folder}/train.jsonl: no recordings but bad ones: {folder}/train.jsonl:1: not")


NAMES = st.text("abcü“,", min_size=1, max_size=5)
TIMES = st.floats(0, 9).map(lambda time: round(time, 4))
TASKS = st.lists(st.tuples(st.sampled_from(["who", "when", "transcribe"]), NAMES, st.none() | NAMES), min_size=1)


@given(st.dictionaries(NAMES, st.tuples(TASKS, NAMES, TIMES), min_size=1, max_size=4), st.sampled_from(["en", "ja"]))
@settings(max_examples=40, deadline=None)
def test_samples_written_and_read_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, recordings: dict[str, Any], lang: str
):
    path = tmp_path_factory.getbasetemp() / "round" / "trip.jsonl"
    samples = []
    for name, (tasks, text, time) in recordings.items():
        kinds: list[str] = []
        for kind, instruction, answer in tasks:
            kinds.append(kind)
            samples.append(
                Sample(
                    f"{name}/{kind}" + (f"-{kinds.count(kind)}" if kinds.count(kind) > 1 else ""),
                    instruction,
                    Audio(path.parent / "audio" / f"{name}.wav", time, time + 1),
                    transcript=text,
                    reference=answer,
                    lang=lang,
                    tags={"split": "train", "kind": kind, **({"key": answer} if answer else {})},
                    turns=(Turn("A", text, "en-us", pause_s=time),),
                    words=(Word(text, time, time + 1),) if round(time + 1, 4) == time + 1 else (),
                )
            )
    manifest.write(path, rows_of(samples))
    assert manifest.read(path, needs=("transcript",)).samples == tuple(samples)
    assert [file.name for file in path.parent.iterdir()] == ["trip.jsonl"]


def test_audio_is_written_relative_to_the_manifest(folder: Path):
    path = folder / "lists" / "a.jsonl"
    manifest.write(path, [{**GOOD, "audio": folder / "clips" / "1.wav"}])
    assert json.loads(path.read_text())["audio"] == "../clips/1.wav"
    assert len(manifest.read(path).samples) == 1


def test_further_audio_of_a_row_is_probed_read_and_written_again(folder: Path):
    path = written(folder, GOOD | {"more_audio": ["clips/2.wav"]})
    (sample,) = manifest.read(path, needs=["audio"]).samples
    assert sample.more_audio == (Audio(folder / "clips" / "2.wav"),)
    again = folder / "again" / "train.jsonl"
    manifest.write(again, rows_of([sample]))
    assert json.loads(again.read_text())["more_audio"] == ["../clips/2.wav"]
    with pytest.raises(UserError, match=r"audio empty: .*empty\.wav has no bytes"):
        manifest.read(written(folder, GOOD | {"more_audio": ["clips/empty.wav"]}), needs=["audio"])


def test_a_row_that_could_not_be_read_back_is_not_written(folder: Path):
    with pytest.raises(UserError, match="unknown key 'trancript'"):
        manifest.write(folder / "a.jsonl", [GOOD, {"id": "x", "trancript": "y"}])
    assert not list(folder.glob("*a.jsonl*"))


def test_nemo_rows_ask_for_their_transcript(folder: Path):
    path = written(
        folder,
        {"audio_filepath": "clips/1.wav", "duration": 1.0, "text": "Anna came.", "speaker": "s7", "lang": "en"},
        {"audio_filepath": "clips/2.wav", "duration": 0.5, "offset": 0.25, "text": "Anna"},
        {"audio_filepath": "clips/2.wav", "duration": 1.0, "text": "Anna", "instruction": "Who?", "answer": "Anna."},
    )
    first, second, third = manifest.read(path, needs=("audio", "transcript", "reference")).samples
    assert first == Sample(
        "line-1/transcribe",
        TRANSCRIBE,
        Audio(folder / "clips/1.wav"),
        transcript="Anna came.",
        reference="Anna came.",
        tags={"speaker": "s7", "kind": "transcribe"},
    )
    assert second.audio == Audio(folder / "clips/2.wav", 0.25, 0.75)
    assert (third.instruction, third.reference, third.transcript) == ("Who?", "Anna.", "Anna")


def test_a_hugging_face_folder_is_read_without_torchcodec(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setenv("RLSPEECH_CACHE", str(folder / "cache"))
    table = {
        "audio": [str(folder / "clips" / "1.wav"), str(folder / "clips" / "2.wav")],
        "sentence": ["Anna came.", "Peter left."],
        "instruction": ["Who came?", "Who left?"],
        "answer": ["Anna.", "Peter."],
        "speaker_id": [3, 4],
    }
    saved = folder / "data set"
    datasets.Dataset.from_dict(table).cast_column("audio", datasets.Audio()).save_to_disk(saved)
    samples = manifest.read(saved, needs=("audio", "transcript", "reference")).samples
    assert [(s.id, s.instruction, s.reference, s.transcript, s.tags) for s in samples] == [
        ("row-0/other", "Who came?", "Anna.", "Anna came.", {"speaker_id": "3", "kind": "other"}),
        ("row-1/other", "Who left?", "Peter.", "Peter left.", {"speaker_id": "4", "kind": "other"}),
    ]
    assert samples[0].audio.path.is_relative_to(folder / "cache")
    assert audio.read(samples[0].audio).samples == pytest.approx(audio.read(Audio(folder / "clips/1.wav")).samples)


def test_a_hugging_face_folder_without_instructions_asks_for_the_transcript(folder: Path, monkeypatch):
    import datasets

    monkeypatch.setenv("RLSPEECH_CACHE", str(folder / "cache"))
    table = {"sound": [str(folder / "clips" / "1.wav")], "text": ["Anna came."]}
    datasets.Dataset.from_dict(table).cast_column("sound", datasets.Audio()).save_to_disk(folder / "asr")
    (sample,) = manifest.read(folder / "asr").samples
    assert (sample.tags["kind"], sample.instruction, sample.reference) == ("transcribe", TRANSCRIBE, "Anna came.")


def test_a_folder_that_is_no_data_set_is_refused(folder: Path):
    import datasets

    text = datasets.Dataset.from_dict({"text": ["a"]})
    text.save_to_disk(folder / "text")
    datasets.DatasetDict({"train": text, "test": text}).save_to_disk(folder / "splits")
    for name, message in {
        "clips": "not a manifest, nor a data set folder of datasets' save_to_disk",
        "text": "no column of type Audio among text",
        "splits": f"a data set of several splits; name one: {folder}/splits/train, {folder}/splits/test",
    }.items():
        with pytest.raises(UserError) as error:
            manifest.read(folder / name)
        assert str(error.value) == f"{folder / name}: {message}"


def test_a_bad_row_of_a_hugging_face_folder_is_named_by_its_number(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setenv("RLSPEECH_CACHE", str(folder / "cache"))
    table = {"audio": [str(folder / "clips" / "1.wav"), str(folder / "clips" / "text.wav")], "text": ["a", "b"]}
    datasets.Dataset.from_dict(table).cast_column("audio", datasets.Audio()).save_to_disk(folder / "asr")
    with pytest.raises(UserError, match=r"asr\[1\]: not audio: .*/cache/audio/"):
        manifest.read(folder / "asr")


def test_real_recordings_are_read(shared: Path):
    names = ["0870", "0880"]
    path = shared / "data" / "librivox"
    for name in names:
        file = path / f"sense_and_sensibility_01_austen_64kb-{name}.wav"
        wave = audio.read(Audio(file))
        assert 1 < wave.duration_s == pytest.approx(audio.probe(Audio(file)), abs=1e-3)
        assert 0.01 < np.abs(wave.samples).max() <= 1
