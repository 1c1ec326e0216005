"""Speech from text in process: eSpeak NG through ctypes, with the time of every word.

The library comes in the wheel `espeakng-loader`, an optional package (eSpeak NG is GPL 3). It keeps state from one
utterance to the next (flutter of the pitch, phase of the wave, noise) that no call of its interface resets, so each
utterance gets a freshly loaded library: the same turn is then the same sound, whatever was said before.

Shape letter: S audio samples.
"""

import ctypes
import re
import threading
from _ctypes import dlclose
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from rlspeech.errors import UserError, did_you_mean
from rlspeech.types import Turn, Waveform, Word

RATE_HZ = 16000
SLOWEST_WPM, FASTEST_WPM = 80, 450  # what eSpeak can do; it clamps without a word
HIGHEST_PITCH = 99
PEAK = 0.95  # of full scale, after rendering
AUDIBLE = 0.01  # of the peak; below it a stretch is silence

_SYNCHRONOUS, _BUFFER_MS, _UTF8 = 2, 500, 1  # espeak_AUDIO_OUTPUT, espeakCHARS_UTF8 of speak_lib.h
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_LIST_END, _WORD = 0, 1  # espeak_EVENT_TYPE
_SPOKEN = re.compile(r"[^\W_]|[&%+=@#$€£¥<>]")  # a token without any of these is mere punctuation

_one_at_a_time = threading.Lock()  # the library is not reentrant


@dataclass(frozen=True)
class Spoken:
    """Speech at 16 kHz and its words in order, written as in the text (punctuation included)."""

    wave: Waveform
    words: tuple[Word, ...]


def speak(turn: Turn) -> Spoken:
    """One turn, without its pause.

    Raises UserError where eSpeak is not installed, does not know the voice, cannot do the rate or the pitch, or finds
    nothing to say.
    """
    _check(turn)
    with _fresh_library() as library:
        wave, rate_hz, events = library.say(turn)
    samples = soxr.resample(wave.astype(np.float32) / 32768, rate_hz, RATE_HZ)
    return Spoken(Waveform(samples, RATE_HZ), timed_words(turn.text, events, Waveform(samples, RATE_HZ)))


def render(turns: Sequence[Turn], *, snr_db: float | None, silence_s: tuple[float, float], seed: int) -> Spoken:
    """Turns with their pauses, silence before and after, and white noise over all of it; the peak is 0.95.

    `snr_db` is the power of the speech, pauses included, over that of the noise; None adds none.
    Raises UserError as `speak` does.
    """
    lead_s, trail_s = silence_s
    pieces, words, at_s = [_silence(lead_s)], [], len(_silence(lead_s)) / RATE_HZ
    for turn in turns:
        spoken = speak(turn)
        pause = _silence(turn.pause_s)
        at_s += len(pause) / RATE_HZ
        words += [Word(w.text, w.start_s + at_s, w.end_s + at_s) for w in spoken.words]
        pieces += [pause, spoken.wave.samples]
        at_s += spoken.wave.duration_s
    clean = np.concatenate([*pieces, _silence(trail_s)])
    if snr_db is not None:
        power = float(np.mean(np.concatenate(pieces[1:]) ** 2))
        noise = np.random.default_rng(seed).standard_normal(len(clean), dtype=np.float32)
        clean = clean + noise * np.float32(np.sqrt(power / 10 ** (snr_db / 10)))
    return Spoken(Waveform(clean * np.float32(PEAK / np.abs(clean).max()), RATE_HZ), tuple(words))


def timed_words(text: str, events: Sequence[tuple[int, float]], wave: Waveform) -> tuple[Word, ...]:
    """Words of a text from eSpeak's events (1-based character position, start in seconds).

    A word starts with its first event and ends with its last audible sample before the next. eSpeak says some
    neighbours as one ("of the"): they share the time by their lengths.
    """
    tokens = [match for match in re.finditer(r"\S+", text) if _SPOKEN.search(match.group())]
    ends = [token.end() for token in tokens]
    starts: dict[int, float] = {}
    for position, start_s in events:
        token = bisect_left(ends, position)
        if token < len(tokens) and token > max(starts, default=-1):
            starts[token] = start_s
    if not starts:
        raise UserError(f"eSpeak finds nothing to say in {text!r}; give a text with words")
    firsts = [0, *list(starts)[1:]]  # whatever comes before the first event belongs to it
    times = [*starts.values(), wave.duration_s]
    words: list[Word] = []
    for first, after, start_s, limit_s in zip(firsts, [*firsts[1:], len(tokens)], times, times[1:], strict=False):
        words += _share([t.group() for t in tokens[first:after]], start_s, _last_audible_s(wave, start_s, limit_s))
    return tuple(words)


def _share(tokens: Sequence[str], start_s: float, end_s: float) -> list[Word]:
    lengths = np.cumsum([0, *map(len, tokens)])
    edges = np.interp(lengths, [0, lengths[-1]], [start_s, end_s])  # meets both ends exactly
    return [Word(token, float(a), float(b)) for token, a, b in zip(tokens, edges, edges[1:], strict=False)]


def _last_audible_s(wave: Waveform, start_s: float, limit_s: float) -> float:
    start, limit = round(start_s * wave.rate_hz), round(limit_s * wave.rate_hz)
    audible = np.flatnonzero(np.abs(wave.samples[start:limit]) > AUDIBLE * np.abs(wave.samples).max())
    return min((start + int(audible[-1]) + 1) / wave.rate_hz, limit_s) if len(audible) else limit_s


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), dtype=np.float32)


def _check(turn: Turn) -> None:
    if not SLOWEST_WPM <= turn.rate_wpm <= FASTEST_WPM:
        raise UserError(f"rate of {turn.rate_wpm} words a minute; eSpeak does {SLOWEST_WPM} to {FASTEST_WPM}")
    if not 0 <= turn.pitch <= HIGHEST_PITCH:
        raise UserError(f"pitch {turn.pitch}; eSpeak does 0 to {HIGHEST_PITCH}")


def _hint(word: str, options: Iterable[str], examples: str) -> str:
    """As did_you_mean, but without a hundred names where none is close."""
    hint = did_you_mean(word, options)
    return hint if "did you mean" in hint else f"; such as: {examples}"


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Library:
    """The loaded library, for one utterance."""

    def __init__(self, handle: ctypes.CDLL, data: Path) -> None:
        self._handle, self._data = handle, data
        self._pieces: list[np.ndarray] = []
        self._words: list[tuple[int, int]] = []  # 1-based position in characters, start in samples
        self._callback = _Callback(self._receive)  # kept: the library holds no reference
        self._rate_hz = handle.espeak_Initialize(_SYNCHRONOUS, _BUFFER_MS, str(data).encode(), 0)
        if self._rate_hz <= 0:
            raise UserError(f"eSpeak NG cannot read its data in {data}; reinstall the package espeakng-loader")
        handle.espeak_SetSynthCallback(self._callback)
        handle.espeak_ng_SetRandSeed(ctypes.c_long(1))

    def say(self, turn: Turn) -> tuple[np.ndarray, int, list[tuple[int, float]]]:
        """Samples [S] as int16, their rate, and word events (1-based character position, start in seconds)."""
        self._set_voice(turn.voice)
        self._handle.espeak_SetParameter(_RATE, turn.rate_wpm, 0)
        self._handle.espeak_SetParameter(_PITCH, turn.pitch, 0)
        text = turn.text.encode() + b"\0"
        size = ctypes.c_size_t(len(text))
        status = self._handle.espeak_Synth(text, size, 0, 1, 0, _UTF8, None, None)
        assert status == 0, f"espeak_Synth: status {status}"
        self._handle.espeak_Synchronize()
        wave = np.concatenate([np.zeros(0, dtype=np.int16), *self._pieces])
        return wave, self._rate_hz, [(position, start / self._rate_hz) for position, start in self._words]

    def _set_voice(self, voice: str) -> None:
        language, plus, variant = voice.partition("+")
        variants = {path.name for path in (self._data / "voices" / "!v").iterdir()}
        if plus and variant not in variants:  # eSpeak would take the voice without its variant
            raise UserError(f"voice {voice!r}: eSpeak has no variant {variant!r}{_hint(variant, variants, 'f2, m3')}")
        if self._handle.espeak_SetVoiceByName(voice.encode()) != 0:
            languages = {path.name.lower() for path in (self._data / "lang").rglob("*") if path.is_file()}
            raise UserError(
                f"voice {voice!r}: eSpeak has no voice {language!r}{_hint(language, languages, 'en-us, de')}"
            )

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events and events[index].type != _LIST_END:
            if events[index].type == _WORD:
                self._words.append((events[index].text_position, events[index].sample))
            index += 1
        return 0


@contextmanager
def _fresh_library() -> Iterator[_Library]:
    try:
        import espeakng_loader
    except ImportError:
        raise UserError("speech synthesis needs eSpeak NG; install it with: pip install 'rlspeech[tiny]'") from None
    with _one_at_a_time:
        handle = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            yield _Library(handle, Path(espeakng_loader.get_data_path()))
        finally:
            handle.espeak_Terminate()
            dlclose(handle._handle)
