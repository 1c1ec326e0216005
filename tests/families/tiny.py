"""A small student of the tiny one's architecture."""

from functools import cache
from pathlib import Path
from typing import Any

import families.common as common
import numpy as np
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoProcessor,
    WhisperFeatureExtractor,
)

from rlspeech.embedded.pair import CHAT_TEMPLATE, LONGEST_AUDIO_S, MARK, SOUND

MODEL = AudioFlamingo3ForConditionalGeneration
STOPS_S = LONGEST_AUDIO_S


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    write_flamingo("tiny", folder, CHAT_TEMPLATE, head_dim=head_dim, context=context)
    (folder / MARK).write_text('{"family": "tiny"}')
    return folder


def write_flamingo(family: str, folder: Path, template: str, *, head_dim: int, context: int) -> Path:
    tokenizer = common.smollm2(SOUND)
    extractor = WhisperFeatureExtractor(feature_size=16, return_attention_mask=True)
    processor = AudioFlamingo3Processor(extractor, tokenizer, chat_template=template, max_audio_len=LONGEST_AUDIO_S)
    config = AudioFlamingo3Config(
        audio_token_id=tokenizer.convert_tokens_to_ids(SOUND),
        tie_word_embeddings=False,
        audio_config={
            "num_mel_bins": 16,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
        text_config={"model_type": "qwen2"} | common.text(tokenizer, head_dim=head_dim, context=context),
    )
    return common.write(family, folder, MODEL(config), processor)


loaded = cache(AutoProcessor.from_pretrained)


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    processor = loaded(folder)
    text = processor.apply_chat_template(common.chat(question, waves), add_generation_prompt=True)
    return processor(text=[text], audio=list(waves) or None, return_tensors="pt")
