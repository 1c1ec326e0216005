"""Audio files of every kind, whole and broken, made here by libsndfile."""

import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.data import audio
from rlspeech.errors import UserError
from rlspeech.types import Audio, Waveform


def tone(hz: float, *, rate_hz: int, seconds: float, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def strongest_hz(wave: Waveform) -> float:
    spectrum = np.abs(np.fft.rfft(wave.samples * np.hanning(len(wave.samples))))
    return float(np.argmax(spectrum)) * wave.rate_hz / len(wave.samples)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.ogg", "a.aiff"])
@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_every_format_and_rate_keeps_pitch_length_and_level(tmp_path: Path, name: str, rate_hz: int):
    soundfile.write(tmp_path / name, tone(440, rate_hz=rate_hz, seconds=1.5), rate_hz)
    wave = audio.read(Audio(tmp_path / name))
    assert (wave.rate_hz, wave.samples.dtype) == (16000, np.float32)
    assert wave.duration_s == pytest.approx(1.5, abs=1e-3)
    assert strongest_hz(wave) == pytest.approx(440, abs=1)
    middle = wave.samples[2000:-2000]
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.03)
    assert audio.probe(Audio(tmp_path / name)) == pytest.approx(1.5, abs=1e-3)


def test_channels_are_averaged(tmp_path: Path):
    left, right = np.full(800, 0.6, dtype=np.float32), np.full(800, -0.2, dtype=np.float32)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    assert audio.read(Audio(tmp_path / "two.wav")).samples == pytest.approx(np.full(800, 0.2), abs=1e-6)


def test_a_file_read_in_blocks_is_the_file_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    noise = np.random.default_rng(0).standard_normal((30000, 2)) * 0.1
    soundfile.write(tmp_path / "a.wav", noise, 22050, subtype="FLOAT")
    whole = audio.read(Audio(tmp_path / "a.wav")).samples
    monkeypatch.setattr(audio, "BLOCK_FRAMES", 777)
    assert audio.read(Audio(tmp_path / "a.wav")).samples == pytest.approx(whole, abs=1e-6)


@pytest.fixture(scope="module")
def half_an_hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stereo at 44.1 kHz, 30 minutes: 635 MB as float32, 1.3 GB as float64; mono at 16 kHz, 115 MB."""
    path = tmp_path_factory.mktemp("long") / "meeting.wav"
    minute = np.random.default_rng(0).integers(-8000, 8000, (60 * 44_100, 2), np.int16)
    with soundfile.SoundFile(path, "w", 44_100, 2, "PCM_16") as file:
        for _ in range(30):
            file.write(minute)
    return path


def test_half_an_hour_is_never_held_but_as_its_result(half_an_hour: Path):
    """numpy tells tracemalloc of all that it holds: the result of 115 MB, and blocks of 2 MB."""
    tracemalloc.start()
    samples = audio.read(Audio(half_an_hour)).samples
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(samples) == 1800 * 16_000
    assert held < 1.1 * samples.nbytes


@pytest.mark.parametrize(("start_s", "end_s"), [(0.0, 90.0), (605.25, 700.0), (1799.99, 1800.0)])
def test_a_long_file_is_resampled_as_if_at_once(half_an_hour: Path, start_s: float, end_s: float):
    """A stretch is cut first and resampled then: soxr's one-shot resampler of that stretch is the witness."""
    first, last = (round(at * 44_100) for at in (start_s, end_s))
    mono = soundfile.read(half_an_hour, start=first, stop=last, dtype="float32")[0].mean(axis=1)
    expected = soxr.resample(mono, 44_100, 16_000)
    assert np.abs(audio.read(Audio(half_an_hour, start_s, end_s)).samples - expected).max() < 1e-6


@given(st.floats(0, 1.9), st.floats(0.01, 2))
@settings(max_examples=30, deadline=None)
def test_a_stretch_is_that_part_of_the_whole(tmp_path_factory: pytest.TempPathFactory, start_s: float, length_s: float):
    path = tmp_path_factory.getbasetemp() / "stretch.flac"
    if not path.exists():
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 32000), 16000)
    whole = audio.read(Audio(path)).samples
    end_s = min(start_s + length_s, 2.0)
    part = audio.read(Audio(path, start_s, end_s))
    assert np.array_equal(part.samples, whole[round(start_s * 16000) : round(end_s * 16000)])
    assert audio.duration_s(Audio(path, start_s, end_s)) == pytest.approx(part.duration_s)


def test_an_end_that_was_rounded_up_reads_to_the_end(tmp_path: Path):
    soundfile.write(tmp_path / "a.wav", tone(440, rate_hz=16000, seconds=0.96), 16000)
    assert audio.duration_s(Audio(tmp_path / "a.wav", 0.5, 1.0)) == pytest.approx(0.46)


def test_wav_bytes_come_back_within_half_a_step_and_clip(tmp_path: Path):
    wave = Waveform(np.array([0.0, 0.5, -0.25, 1.5, -3.0], dtype=np.float32), 16000)
    samples, rate_hz = soundfile.read(io.BytesIO(audio.wav_bytes(wave)))
    assert rate_hz == 16000
    assert samples == pytest.approx([0, 0.5, -0.25, 1, -1], abs=1 / 32000)
    audio.write(tmp_path / "new" / "a.wav", wave)
    assert (tmp_path / "new" / "a.wav").read_bytes() == audio.wav_bytes(wave)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.wav"]


def test_a_wav_written_into_a_pipe_has_no_size_and_is_read(tmp_path: Path):
    whole = audio.wav_bytes(Waveform(tone(440, rate_hz=16000, seconds=1), 16000))
    (tmp_path / "pipe.wav").write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    assert audio.read(Audio(tmp_path / "pipe.wav")).duration_s == 1


def cut(share: float, name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 32000), 16000, format=name)
        path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])

    return make


def holding(samples: list[float]) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, np.array(samples), 16000, format="WAV", subtype="FLOAT")


BROKEN = [
    (lambda path: None, "audio missing: {path}"),
    (lambda path: path.mkdir(), "audio missing: {path}"),
    (lambda path: path.write_bytes(b""), "audio empty: {path} has no bytes"),
    (holding([]), "audio empty: {path} has no samples"),
    (
        lambda path: path.write_text("{}" * 999),
        "not audio: {path} is not wav, flac, mp3 or ogg that libsndfile can read",
    ),
    (cut(0.5, "WAV"), "audio truncated: {path} holds 31978 of 64000 bytes of sound"),
    (cut(0.5, "FLAC"), "audio truncated or damaged: {path}; decode or copy it anew"),
]


@pytest.mark.parametrize(("make", "message"), BROKEN)
@pytest.mark.parametrize("use", [audio.read, audio.probe])
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, make: Callable, message: str, use: Callable):
    make(tmp_path / "a")
    with pytest.raises(UserError) as error:
        use(Audio(tmp_path / "a"))
    assert str(error.value) == message.format(path=tmp_path / "a")


@pytest.mark.parametrize("use", [audio.read, audio.probe])
def test_a_truncated_mp3_is_refused(tmp_path: Path, use: Callable):
    cut(0.5, "MP3")(tmp_path / "a.mp3")
    with pytest.raises(UserError, match=r"^audio truncated.*a\.mp3"):
        use(Audio(tmp_path / "a.mp3"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_sample_that_is_no_number_is_refused(tmp_path: Path, bad: float):
    holding([0.1] * 50 + [bad] + [0.1] * 50)(tmp_path / "a.wav")
    with pytest.raises(UserError) as error:
        audio.read(Audio(tmp_path / "a.wav"))
    assert str(error.value) == f"audio has NaN or infinite samples: {tmp_path / 'a.wav'}"


@pytest.mark.parametrize(
    ("start_s", "end_s", "message"),
    [
        (0.8, 0.2, "audio ends before it starts: {path} from 0.8 to 0.2 s"),
        (0.8, 0.8, "audio ends before it starts: {path} from 0.8 to 0.8 s"),
        (-0.1, None, "audio starts before 0: {path} from -0.1 to 1 s"),
        (1.0, None, "audio starts past its end: {path} from 1 to 1 s, but it lasts 1 s"),
        (7.0, 9.0, "audio starts past its end: {path} from 7 to 9 s, but it lasts 1 s"),
        (0.5, 1.5, "audio ends too late: {path} from 0.5 to 1.5 s, but it lasts 1 s"),
    ],
)
@pytest.mark.parametrize("use", [audio.read, audio.probe, audio.duration_s])
def test_a_stretch_that_is_not_there_is_refused(
    tmp_path: Path, start_s: float, end_s: float | None, message: str, use: Callable
):
    holding([0.1] * 16000)(tmp_path / "a.wav")
    with pytest.raises(UserError) as error:
        use(Audio(tmp_path / "a.wav", start_s, end_s))
    assert str(error.value) == message.format(path=tmp_path / "a.wav")
