"""Speech synthesis by the real eSpeak NG: determinism, word times, noise, and what is refused."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rlspeech.embedded.espeak import PEAK, render, speak, timed_words
from rlspeech.errors import UserError
from rlspeech.types import Turn, Waveform, Word

QUESTION = Turn("A", "Who has the books?", "en-us+f2", 180, 40)
ANSWER = Turn("B", "Anna has two books.", "en+m5", 200, 60, pause_s=0.3)
TOKENS = ["Anna", "will", "buy,", "eight", "of", "the", "naïve", "books", "don't;", "“Monday”", "—", "at", "$3.50!"]


def loudness(wave: Waveform, start_s: float, end_s: float) -> float:
    part = wave.samples[round(start_s * wave.rate_hz) : round(end_s * wave.rate_hz)]
    return float(np.sqrt(np.mean(part**2)))


def test_the_same_turn_is_the_same_sound_whatever_was_said_before():
    turns = [Turn("A", "She sees six fish.", voice) for voice in ("en-us", "en-us+f2", "en-us+whisper", "en-us+f3")]
    rounds = [[speak(turn) for turn in order] for order in (turns, turns, turns[::-1])]
    for first, second, third in zip(rounds[0], rounds[1], rounds[2][::-1], strict=True):
        assert np.array_equal(first.wave.samples, second.wave.samples)
        assert np.array_equal(first.wave.samples, third.wave.samples)
        assert first.words == second.words == third.words


def test_another_process_makes_the_same_sound_at_another_time():
    turn = Turn("A", "She sees six fish.", "en-us+whisper")
    here = hashlib.sha256(speak(turn).wave.samples.tobytes()).hexdigest()
    program = f"""import hashlib, time; from rlspeech.embedded.espeak import speak, Turn
time.sleep(1.1)  # eSpeak seeds its noise by the clock's second
print(hashlib.sha256(speak({turn!r}).wave.samples.tobytes()).hexdigest())"""
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


def test_voices_rates_and_pitches_sound_different():
    turns = [QUESTION, Turn("A", QUESTION.text, "en-us+m3", 180, 40), Turn("A", QUESTION.text, "en-us+f2", 120, 40)]
    waves = [speak(turn).wave.samples.tobytes() for turn in [*turns, Turn("A", QUESTION.text, "en-us+f2", 180, 80)]]
    assert len(set(waves)) == 4
    assert len(waves[2]) > 1.2 * len(waves[0]), "120 words a minute last longer than 180"


@given(st.lists(st.sampled_from(TOKENS), min_size=1))
@settings(max_examples=25, deadline=None)
def test_word_times_are_ordered_and_lie_inside_the_audio(tokens: list[str]):
    assume(set(tokens) != {"—"})
    spoken = speak(Turn("A", " ".join(tokens), "en-us"))
    assert [word.text for word in spoken.words] == [token for token in tokens if token != "—"]
    times = [time for word in spoken.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= spoken.wave.duration_s
    assert all(word.start_s < word.end_s for word in spoken.words)


def test_speech_is_loud_within_words_and_silent_between_turns():
    spoken = render([QUESTION, ANSWER], snr_db=None, silence_s=(0.2, 0.4), seed=0)
    within = [loudness(spoken.wave, word.start_s, word.end_s) for word in spoken.words]
    last_of_question, first_of_answer = spoken.words[3], spoken.words[4]
    assert (last_of_question.text, first_of_answer.text) == ("books?", "Anna")
    assert min(within) > 0.02
    assert loudness(spoken.wave, last_of_question.end_s + 0.01, first_of_answer.start_s) < 0.005
    assert loudness(spoken.wave, 0, 0.2) == 0
    assert loudness(spoken.wave, spoken.wave.duration_s - 0.4, spoken.wave.duration_s) == 0


def test_pauses_and_silence_move_the_words_of_a_rendering():
    alone, answer = speak(QUESTION), speak(ANSWER)
    both = render([QUESTION, ANSWER], snr_db=None, silence_s=(0.25, 0.1), seed=0)
    shift = 0.25 + alone.wave.duration_s + 0.3
    assert both.wave.duration_s == pytest.approx(shift + answer.wave.duration_s + 0.1, abs=1e-3)
    assert both.words[0].start_s == pytest.approx(0.25 + alone.words[0].start_s)
    assert both.words[-1].end_s == pytest.approx(shift + answer.words[-1].end_s, abs=1e-3)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 25.0])
def test_measured_noise_is_the_noise_asked_for(snr_db: float):
    lead_s = 0.5
    clean = render([QUESTION], snr_db=None, silence_s=(lead_s, 0.5), seed=0)
    noisy = render([QUESTION], snr_db=snr_db, silence_s=(lead_s, 0.5), seed=3)
    end_s = clean.wave.duration_s - 0.5
    noise = loudness(noisy.wave, 0, lead_s) ** 2
    both = loudness(noisy.wave, lead_s, end_s) ** 2
    assert 10 * np.log10((both - noise) / noise) == pytest.approx(snr_db, abs=0.5)


def test_noise_follows_the_seed():
    waves = [render([QUESTION], snr_db=20, silence_s=(0, 0), seed=seed).wave.samples for seed in (1, 1, 2)]
    assert np.array_equal(waves[0], waves[1])
    assert not np.array_equal(waves[0], waves[2])


@pytest.mark.parametrize("snr_db", [None, -10.0])
def test_a_rendering_never_clips(snr_db: float | None):
    wave = render([QUESTION], snr_db=snr_db, silence_s=(0.1, 0.1), seed=0).wave
    assert wave.samples.dtype == np.float32
    assert np.abs(wave.samples).max() == pytest.approx(PEAK, abs=1e-5)


def test_words_that_are_said_as_one_share_the_time_by_their_lengths():
    wave = Waveform(np.ones(1000, dtype=np.float32), 1000)
    words = timed_words("— of the end", [(2, 0.0), (10, 0.5)], wave)
    assert words == (Word("of", 0.0, 0.2), Word("the", 0.2, 0.5), Word("end", 0.5, 1.0))


def test_a_word_ends_where_its_sound_ends():
    samples = np.zeros(1000, dtype=np.float32)
    samples[:300] = samples[500:900] = 1
    assert timed_words("one two", [(1, 0.0), (5, 0.5)], Waveform(samples, 1000)) == (
        Word("one", 0.0, 0.3),
        Word("two", 0.5, 0.9),
    )


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (Turn("A", "hi", "en-us+f22"), "voice 'en-us+f22': eSpeak has no variant 'f22'; did you mean 'f2'?"),
        (Turn("A", "hi", "en-us+zzz"), "voice 'en-us+zzz': eSpeak has no variant 'zzz'; such as: f2, m3"),
        (Turn("A", "hi", "en-usa"), "voice 'en-usa': eSpeak has no voice 'en-usa'; did you mean 'en-us'?"),
        (Turn("A", "...", "en-us"), "eSpeak finds nothing to say in '...'; give a text with words"),
        (Turn("A", "", "en-us"), "eSpeak finds nothing to say in ''; give a text with words"),
        (Turn("A", "hi", "en-us", 20), "rate of 20 words a minute; eSpeak does 80 to 450"),
        (Turn("A", "hi", "en-us", pitch=100), "pitch 100; eSpeak does 0 to 99"),
    ],
)
def test_what_espeak_cannot_do_is_refused_in_one_line(turn: Turn, message: str):
    with pytest.raises(UserError) as error:
        speak(turn)
    assert str(error.value) == message


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UserError, match=r"pip install 'rlspeech\[tiny\]'"):
        speak(QUESTION)
