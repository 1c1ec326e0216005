"""What vLLM makes of audio for a family that our plug-in brings: features and placeholders, by the student's own code.

The family's processor takes no part, so that nothing of pictures, nor torchaudio, has to be installed.

N audio samples, M feature frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor

FEATURES = "audio_features"  # the argument of a model's `embed_multimodal`: [M, bins] of each audio


@dataclass(frozen=True)
class Hearing:
    """Of one family; the extractor is what `extractor` reads out of the model's folder."""

    extractor: Callable[[str], Any]
    features: Callable[[Any, np.ndarray], Tensor]  # extractor, audio [N] at 16 kHz: [M, bins]
    placeholders: Callable[[int], int]  # of M frames
    samples: Callable[[Any, int], int]  # extractor, placeholders: N of the longest audio that has no more
    audio_id: Callable[[Any], int]  # of the model's config
    most: Callable[[Any], int] | None = (
        None  # extractor: placeholders of the longest audio; None: what a sequence holds
    )


@cache
def processing(hearing: Hearing) -> tuple[type, type, type]:
    """Processor, its information, and the audio by which vLLM measures how much memory the longest one takes."""
    return _processor(hearing), _info(hearing), _dummies(hearing)


def _info(hearing: Hearing) -> type:
    from vllm.multimodal.parse import MultiModalDataParser
    from vllm.multimodal.processing import BaseProcessingInfo

    read = cache(hearing.extractor)

    class Info(BaseProcessingInfo):
        @property
        def extractor(self) -> Any:
            return read(self.model_id)

        @property
        def audio_id(self) -> int:
            return hearing.audio_id(self.get_hf_config())

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
            return {"audio": self.most(seq_len)}

        def most(self, tokens: int) -> int:
            """Placeholders of an audio that has so much room."""
            return max(1, min(tokens, hearing.most(self.extractor) if hearing.most else tokens))

    return Info


def _dummies(hearing: Hearing) -> type:
    from vllm.multimodal.processing import BaseDummyInputsBuilder

    class Dummies(BaseDummyInputsBuilder):
        def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
            token = self.info.get_tokenizer().convert_ids_to_tokens(self.info.audio_id)
            return token * mm_counts.get("audio", 0)

        def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> Any:
            """As much audio as a sequence holds, in so many pieces."""
            count = mm_counts.get("audio", 0)
            length = hearing.samples(self.info.extractor, self.info.most(seq_len // max(1, count)))
            return {"audio": self._get_dummy_audios(length=length, num_audios=count, overrides=mm_options.get("audio"))}

    return Dummies


def _processor(hearing: Hearing) -> type:
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig
    from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement

    class Processor(BaseMultiModalProcessor):
        def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
            heard = [np.asarray(audio, np.float32) for audio in hf_data["audio"]]
            return BatchFeature({FEATURES: [hearing.features(self.info.extractor, audio) for audio in heard]})

        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, Any]:
            return {FEATURES: MultiModalFieldConfig.batched("audio")}

        def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
            found = out_mm_kwargs.get_data().get(FEATURES, [])
            audio_id = self.info.audio_id

            def placeholders(at: int) -> list[int]:
                return [audio_id] * hearing.placeholders(len(found[at]))

            return [PromptReplacement(modality="audio", target=[audio_id], replacement=placeholders)]

    return Processor
