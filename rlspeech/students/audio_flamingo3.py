"""The family `audio_flamingo3` (Audio Flamingo 3): Whisper large's encoder, two linear layers, Qwen2.5 7B."""

from transformers import AudioFlamingo3ForConditionalGeneration

from rlspeech.students._whisper import WhisperFamily


class Student(WhisperFamily):
    ARCHITECTURES = ("AudioFlamingo3ForConditionalGeneration",)
    MODEL = AudioFlamingo3ForConditionalGeneration
    AUDIO = "<sound>"
    several = False

    @property
    def longest_s(self) -> float:
        """What is longer its processor, and vLLM's, cut off."""
        return self.settings["max_audio_len"]
