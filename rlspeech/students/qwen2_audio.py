"""The family `qwen2_audio` (Qwen2-Audio): Whisper large's encoder, a linear projector, Qwen 7B.

Its processor cuts an audio off at 30 s. Here longer audio is heard in pieces of 30 s, one behind the other.
"""

from transformers import Qwen2AudioForConditionalGeneration

from rlspeech.students._whisper import WhisperFamily


class Student(WhisperFamily):
    ARCHITECTURES = ("Qwen2AudioForConditionalGeneration",)
    MODEL = Qwen2AudioForConditionalGeneration
    AUDIO = "<|AUDIO|>"

    @property
    def piece(self) -> int:
        return self.window
