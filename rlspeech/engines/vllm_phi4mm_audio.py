"""What vLLM makes of audio for Phi-4-multimodal: features and placeholders, by the code that the student runs.

The family's processor takes no part, so that nothing of vision has to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from rlspeech.students._conformer import STRIDE, log_mel, samples_of

FEATURES = "audio_features"


@cache
def _extractor(folder: str) -> Any:
    from transformers import Phi4MultimodalFeatureExtractor

    return Phi4MultimodalFeatureExtractor.from_pretrained(folder)


@cache
def processing() -> tuple[type, type, type]:
    """Processor, its information, and the audio by which vLLM measures how much memory the longest one takes."""
    return _processor(), _info(), _dummies()


def _info() -> type:
    from vllm.multimodal.parse import MultiModalDataParser
    from vllm.multimodal.processing import BaseProcessingInfo

    class Info(BaseProcessingInfo):
        @property
        def extractor(self) -> Any:
            return _extractor(self.model_id)

        @property
        def audio_id(self) -> int:
            return self.get_hf_config().audio_config.audio_token_id

        def get_data_parser(self) -> Any:
            return MultiModalDataParser(
                target_sr=self.extractor.sampling_rate,
                target_channels=1,
                expected_hidden_size=self._get_expected_hidden_size(),
            )

        def get_supported_mm_limits(self) -> Mapping[str, int | None]:
            return {"audio": None}

        def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
            return {}

        def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
            return {"audio": seq_len}

    return Info


def _dummies() -> type:
    from vllm.multimodal.processing import BaseDummyInputsBuilder

    class Dummies(BaseDummyInputsBuilder):
        def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
            token = self.info.get_tokenizer().convert_ids_to_tokens(self.info.audio_id)
            return token * mm_counts.get("audio", 0)

        def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
            """As much audio as a sequence holds, in so many pieces."""
            count = mm_counts.get("audio", 0)
            length = samples_of(self.info.extractor, max(1, seq_len // max(1, count)))
            return {"audio": self._get_dummy_audios(length=length, num_audios=count, overrides=mm_options.get("audio"))}

    return Dummies


def _processor() -> type:
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig
    from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement

    class Processor(BaseMultiModalProcessor):
        def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
            heard = [np.asarray(audio, np.float32) for audio in hf_data["audio"]]
            return BatchFeature({FEATURES: [log_mel(self.info.extractor, audio) for audio in heard]})

        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
            return {FEATURES: MultiModalFieldConfig.batched("audio")}

        def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
            mels = out_mm_kwargs.get_data().get(FEATURES, [])
            audio_id = self.info.audio_id

            def placeholders(at: int) -> list[int]:
                return [audio_id] * -(-len(mels[at]) // STRIDE)

            return [PromptReplacement(modality="audio", target=[audio_id], replacement=placeholders)]

    return Processor
