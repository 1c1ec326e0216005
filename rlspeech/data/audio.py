"""Audio files as mono waveforms at the rate asked for; what is wrong with a file is said in one line.

Reads what libsndfile reads (wav, flac, mp3, ogg, opus, aiff), in blocks, so that an hour costs its float32 result only.
Trainer and sampler hear these samples: nothing decodes or resamples them a second time.

Shape letters: S audio samples, C channels.
"""

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from rlspeech.errors import UserError
from rlspeech.types import Audio, Waveform

BLOCK_FRAMES = 1 << 18
OVERHANG_S = 0.1  # a stretch may end this much past the end of its file: manifests round
UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # of a wav's data chunk, as written into a pipe


def read(audio: Audio, rate_hz: int = 16000) -> Waveform:
    """The stretch of the file as float32 [S], channels averaged, resampled (soxr, high quality) where the rate differs.

    Raises UserError naming the file where it is missing, empty, truncated, damaged or not audio, where samples are NaN
    or infinite, and where the stretch ends before it starts or lies past the end.
    """
    with _opened(audio.path) as file:
        start, stop = _stretch(audio, file)
        file.seek(start)
        blocks = _mono_blocks(file, stop - start, audio.path)
        if file.samplerate != rate_hz:
            blocks = _resampled(blocks, file.samplerate, rate_hz)
        return Waveform(_joined(blocks, at_most=-(-(stop - start) * rate_hz // file.samplerate)), rate_hz)


def duration_s(audio: Audio) -> float:
    """Length of the stretch, from the file's header; raises UserError as `read` does for what a header can tell."""
    with _opened(audio.path) as file:
        start, stop = _stretch(audio, file)
        return (stop - start) / file.samplerate


def probe(audio: Audio) -> float:
    """`duration_s`, once the last frame of the stretch has been decoded: the whole file is there, if not yet sound.

    Raises UserError as `read` does, but for damage in the middle and for NaN. A truncated ogg that ends on a whole page
    cannot be told from a shorter one.
    """
    with _opened(audio.path) as file:
        start, stop = _stretch(audio, file)
        file.seek(stop - 1)
        for _ in _mono_blocks(file, 1, audio.path):
            pass
        return (stop - start) / file.samplerate


def wav_bytes(wave: Waveform) -> bytes:
    """A 16-bit PCM wav file; samples beyond full scale are clipped."""
    buffer = io.BytesIO()
    samples = np.clip(wave.samples, -1.0, 1.0)
    soundfile.write(buffer, samples, wave.rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write(path: Path, wave: Waveform) -> None:
    """A 16-bit PCM wav file, written beside and renamed; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(wav_bytes(wave))
    os.replace(beside, path)


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    if not path.is_file():
        raise UserError(f"audio missing: {path}")
    try:
        _refuse_truncated_wav(path)
        if path.stat().st_size == 0:
            raise UserError(f"audio empty: {path} has no bytes")
        file = soundfile.SoundFile(path)
    except soundfile.LibsndfileError as error:
        raise UserError(f"not audio: {path} is not wav, flac, mp3 or ogg that libsndfile can read") from error
    except OSError as error:
        raise UserError(f"audio unreadable: {path}: {error.strerror}") from error
    with file:
        if file.frames == 0:
            raise UserError(f"audio empty: {path} has no samples")
        try:
            yield file
        except soundfile.LibsndfileError as error:
            raise UserError(f"audio truncated or damaged: {path}; decode or copy it anew") from error


def _refuse_truncated_wav(path: Path) -> None:
    """libsndfile takes a wav that was cut off for a shorter one; its header knows better."""
    size = path.stat().st_size
    with path.open("rb") as file:
        riff = file.read(12)
        if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
            return
        while len(head := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", head)
            if name == b"data":
                here = size - file.tell()
                if length not in UNKNOWN_SIZES and length > here:
                    raise UserError(f"audio truncated: {path} holds {here} of {length} bytes of sound")
                return
            file.seek(length + length % 2, os.SEEK_CUR)


def _stretch(audio: Audio, file: soundfile.SoundFile) -> tuple[int, int]:
    """First frame and the one after the last."""
    whole_s = file.frames / file.samplerate
    end_s = whole_s if audio.end_s is None else audio.end_s
    where = f"{audio.path} from {audio.start_s:g} to {end_s:g} s"
    if audio.start_s < 0:
        raise UserError(f"audio starts before 0: {where}")
    if audio.start_s >= whole_s:
        raise UserError(f"audio starts past its end: {where}, but it lasts {whole_s:g} s")
    if end_s <= audio.start_s:
        raise UserError(f"audio ends before it starts: {where}")
    if end_s > whole_s + OVERHANG_S:
        raise UserError(f"audio ends too late: {where}, but it lasts {whole_s:g} s")
    start = round(audio.start_s * file.samplerate)
    return start, min(max(round(end_s * file.samplerate), start + 1), file.frames)


def _mono_blocks(file: soundfile.SoundFile, frames: int, path: Path) -> Iterator[np.ndarray]:
    left = frames
    while left > 0:
        block_SC = file.read(min(BLOCK_FRAMES, left), dtype="float32", always_2d=True)
        if len(block_SC) == 0:
            raise UserError(f"audio truncated: {path} ends {left / file.samplerate:g} s before its header says")
        if not np.isfinite(block_SC).all():
            raise UserError(f"audio has NaN or infinite samples: {path}")
        left -= len(block_SC)
        yield block_SC.mean(axis=1)


def _joined(blocks: Iterator[np.ndarray], *, at_most: int) -> np.ndarray:
    """The blocks one behind the other, in an array that is there before they come: they are never held twice."""
    samples, filled = np.empty(at_most, np.float32), 0
    for block in blocks:
        samples[filled : filled + len(block)] = block
        filled += len(block)
    return samples[:filled]


def _resampled(blocks: Iterator[np.ndarray], from_hz: int, to_hz: int) -> Iterator[np.ndarray]:
    stream = soxr.ResampleStream(from_hz, to_hz, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
