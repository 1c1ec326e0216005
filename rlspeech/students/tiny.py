"""The family `tiny`: Whisper tiny.en's encoder, a projector and SmolLM2-135M, laptop-sized and real.

Its architecture is AudioFlamingo3, its prompt SmolLM2's: `rlspeech/embedded/pair.py` puts it together.
"""

from transformers import AudioFlamingo3ForConditionalGeneration

from rlspeech.embedded.pair import SOUND
from rlspeech.students._whisper import WhisperFamily


class Student(WhisperFamily):
    MODEL = AudioFlamingo3ForConditionalGeneration
    AUDIO = SOUND
    several = False

    @property
    def longest_s(self) -> float:
        return self.settings["max_audio_len"]
