"""The synth stage on its own output: real speech, held-out voices and texts held out, resumed, never overwritten."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rlspeech.config import SynthConfig
from rlspeech.data import audio, manifest
from rlspeech.data.rows import recording_of
from rlspeech.errors import UserError
from rlspeech.plugins import find_class
from rlspeech.recipe import load
from rlspeech.stages import synth
from rlspeech.types import Sample

SETS = {"train": 24, "test_voice": 8, "test_text": 8}
NEEDS = ("audio", "transcript", "reference", "words")


def read(folder: Path, name: str) -> tuple[Sample, ...]:
    return manifest.read(folder / f"{name}.jsonl", needs=NEEDS).samples


def config(folder: Path, **changes: object) -> SynthConfig:
    return SynthConfig.model_validate({"out": folder, "sets": {"train": 2}, **changes})


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synth.run(config(folder, sets=SETS))
    return folder


def test_every_recording_asked_for_is_there_with_its_instructions(rendered: Path):
    for name, count in SETS.items():
        samples = read(rendered, name)
        recordings = {recording_of(sample) for sample in samples}
        assert len(recordings) == count
        assert len({sample.audio for sample in samples}) == count
        assert len(samples) > 3 * count
        assert {f"{recording}/transcribe" for recording in recordings} <= {sample.id for sample in samples}
        assert all(sample.tags["split"] == name for sample in samples)


def test_the_wav_files_are_16_khz_16_bit_mono(rendered: Path):
    import soundfile

    files = list((rendered / "audio").rglob("*.wav"))
    assert len(files) == sum(SETS.values())
    assert {(i.samplerate, i.channels, i.subtype) for i in map(soundfile.info, files)} == {(16000, 1, "PCM_16")}
    rows = [json.loads(line) for line in (rendered / "train.jsonl").read_text().splitlines()]
    assert all(row["audio"] == f"audio/train/{row['id']}.wav" for row in rows)
    assert [row["duration_s"] for row in rows] == pytest.approx(
        [soundfile.info(rendered / row["audio"]).duration for row in rows], abs=1e-4
    )


def test_held_out_voices_are_never_in_train(rendered: Path):
    voices = {name: {turn.voice for sample in read(rendered, name) for turn in sample.turns} for name in SETS}
    assert not voices["test_voice"] & voices["train"]
    assert len(voices["test_voice"]) > 1


def test_held_out_texts_are_never_in_train(rendered: Path):
    texts = {name: {sample.transcript for sample in read(rendered, name)} for name in SETS}
    assert not texts["test_text"] & texts["train"]
    assert [len(texts[name]) for name in SETS] == [24, 8, 8]


def test_the_transcript_is_what_is_said_word_by_word(rendered: Path):
    for sample in read(rendered, "train"):
        assert sample.transcript == " ".join(turn.text for turn in sample.turns)
        assert sample.transcript == " ".join(word.text for word in sample.words)


def test_words_lie_in_order_inside_the_audio_and_can_be_heard(rendered: Path):
    for sample in {sample.audio: sample for sample in read(rendered, "test_voice")}.values():
        wave = audio.read(sample.audio)
        times = [time for word in sample.words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert 0 <= times[0] < times[-1] <= wave.duration_s
        for word in sample.words:
            heard = wave.samples[round(word.start_s * 16000) : round(word.end_s * 16000)]
            assert np.sqrt(np.mean(heard**2)) > 0.01, (sample.id, word)


def test_long_lists_are_named_in_order_and_only_where_asked_for() -> None:
    shipped = find_class("data_synth", "exchanges", "Synth")
    lists = [sample for sample in shipped(count=30, long_lists=1.0)() if sample.tags["kind"] == "list"]
    assert len(lists) == 30
    assert {len(sample.tags["key"].split()) for sample in lists} == {5, 6, 7, 8}
    for sample in lists:
        items = sample.tags["key"].split()
        assert len({*items}) == len(items)
        assert sample.reference == f"The items are {', '.join(items[:-1])} and {items[-1]}."
        assert sample.reference.removeprefix("The items are ").rstrip(".") in sample.transcript
    assert all("What do we need" not in sample.transcript for sample in shipped(count=60)())
    with pytest.raises(ValueError, match=r"long_lists must be in 0..1, got 2"):
        shipped(long_lists=2)


def test_the_same_settings_make_the_same_bytes(rendered: Path, tmp_path: Path):
    synth.run(config(tmp_path, sets={"test_voice": 8}))  # alone, and in another order
    files = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*.*") if file.is_file())
    assert len(files) == 10
    assert all((tmp_path / file).read_bytes() == (rendered / file).read_bytes() for file in files)


def test_another_seed_makes_other_recordings(rendered: Path, tmp_path: Path):
    synth.run(config(tmp_path, sets={"test_text": 8}, seed=1))
    ours, theirs = ({s.transcript for s in read(folder, "test_text")} for folder in (tmp_path, rendered))
    assert ours != theirs


def test_a_set_that_is_there_is_kept_and_a_missing_one_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("rlspeech"), "propagate", True)
    caplog.set_level(logging.INFO, logger="rlspeech")
    sets = {"train": 2, "test_voice": 2}
    synth.run(config(tmp_path, sets=sets))
    (tmp_path / "train.jsonl").rename(tmp_path / "before")
    kept = (tmp_path / "test_voice.jsonl").stat()
    caplog.clear()
    synth.run(config(tmp_path, sets=sets))
    assert (tmp_path / "train.jsonl").read_bytes() == (tmp_path / "before").read_bytes()
    assert (tmp_path / "test_voice.jsonl").stat().st_mtime_ns == kept.st_mtime_ns
    assert f"{tmp_path}/test_voice.jsonl: there already, made with the same settings" in caplog.messages
    assert caplog.messages[-1].startswith(f"{tmp_path}/train.jsonl: 2 recordings, 0.")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"sets": {"train": 3}}, "recordings was 2, now 3"),
        ({"noise_share": 0.5}, "noise_share was 0.3, now 0.5"),
        ({"options": {"rate_low_wpm": 170}}, "options was {}, now {'rate_low_wpm': 170}"),
    ],
)
def test_a_manifest_of_other_settings_is_never_overwritten(tmp_path: Path, changes: dict, what: str):
    synth.run(config(tmp_path))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()}
    sets = {"test_voice": 2, **changes.get("sets", {"train": 2})}
    with pytest.raises(UserError) as error:
        synth.run(config(tmp_path, **{**changes, "sets": sets}))
    manifest_path = tmp_path / "train.jsonl"
    assert str(error.value) == f"{manifest_path}: made with other settings ({what}); remove it or choose another --out"
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*") if file.is_file()} == before


def test_a_manifest_of_someone_else_is_never_overwritten(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"train\.jsonl: there already, but no train\.synth\.json tells how"):
        synth.run(config(tmp_path))
    assert (tmp_path / "train.jsonl").read_text() == "mine"


def test_noise_and_silence_follow_the_settings(tmp_path: Path):
    for share in (0.0, 1.0):
        folder = tmp_path / str(share)
        synth.run(config(folder, noise_share=share, snr_db=(20.0, 20.0), max_silence_s=0.5))
        for sample in {sample.audio: sample for sample in read(folder, "train")}.values():
            wave = audio.read(sample.audio)
            before = wave.samples[: round(sample.words[0].start_s * 16000)]
            assert (np.abs(before).max() > 1e-3) == (share == 1.0)
            assert len(before) <= 0.51 * 16000


def own(folder: Path, samples: str) -> Path:
    (folder / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from rlspeech.types import Sample, Turn\n"
        "A, B = (Turn('A', text, 'en-us') for text in ('Hello there.', 'Good bye.'))\n"
        "@dataclass(frozen=True)\n"
        "class Synth:\n    split: str\n    count: int\n    seed: int\n"
        f"    def __call__(self, samples):\n        {samples}\n"
    )
    return folder / "mine.py"


def test_a_synthesiser_of_ones_own_is_rendered(tmp_path: Path):
    file = own(tmp_path, "yield Sample('a/transcribe', 'Write.', transcript='Hello there.', reference='x', turns=(A,))")
    synth.run(config(tmp_path / "out", synth=str(file), sets={"any": 1}))
    (sample,) = manifest.read(tmp_path / "out" / "any.jsonl").samples
    assert [word.text for word in sample.words] == ["Hello", "there."]


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ("yield Sample('../a/x', 'i', turns=(A,))", "recording '../a' cannot name a file"),
        ("yield Sample('a/x', 'i')", "sample 'a/x' has no turns to speak"),
        (
            "yield from (Sample(f'{r}/x', 'i', turns=(A,)) for r in 'aba')",
            "recording 'a' comes twice; its samples must follow one another",
        ),
        (
            "yield from (Sample('a/x', 'i', turns=(t,)) for t in (A, B))",
            "the samples of recording 'a' differ in what is said",
        ),
    ],
)
def test_a_synthesiser_that_breaks_its_promise_is_named(tmp_path: Path, samples: str, message: str):
    with pytest.raises(UserError, match=f"^synth: {message.replace('.', '[.]')}"):
        synth.run(config(tmp_path / "out", synth=str(own(tmp_path, samples))))
    assert not (tmp_path / "out" / "train.jsonl").exists(), "a set that failed must not look whole"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": {"a/b": 1}}, "sets: 'a/b' cannot name a file"),
        ({"snr_db": (30.0, 10.0)}, "snr_db: from 30 to 10 is no range"),
        ({"options": {"seed": 3}}, "options.seed: comes from seed"),
        ({"options": {"rate_lo_wpm": 3}}, "unknown option 'rate_lo_wpm'; did you mean 'rate_low_wpm'"),
        ({"sets": {"tset_voice": 1}}, "option 'split' should be 'train', 'test_voice' or 'test_text'"),
        ({"synth": "exchangs"}, "did you mean 'exchanges'"),
        ({"out": Path(__file__) / "out"}, "Not a directory; choose another --out"),
    ],
)
def test_settings_that_cannot_act_are_refused_before_anything_is_written(tmp_path: Path, changes: dict, message: str):
    with pytest.raises(UserError) as error:
        synth.run(config(**{"folder": tmp_path / "out", **changes}))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_shipped_recipe_is_valid():
    recipe = load(SynthConfig, "tiny/synth", {})
    assert set(recipe.sets) == set(SETS)
