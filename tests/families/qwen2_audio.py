"""A small Qwen2-Audio, and what its own processor makes of a question about an audio."""

from functools import cache
from pathlib import Path
from typing import Any

import families.common as common
import numpy as np
from transformers import (
    AutoProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

MODEL = Qwen2AudioForConditionalGeneration
STOPS_S = None  # the processor cuts audio off at 30 s; here it is heard in pieces
PIECE = 30 * common.RATE_HZ
AUDIO = "<|AUDIO|>"


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    tokenizer = common.smollm2(AUDIO, "<|audio_bos|>", "<|audio_eos|>")
    processor = Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer)  # its template is the default
    config = Qwen2AudioConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
        },
        text_config=common.text(tokenizer, head_dim=head_dim, context=context),
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO),
        tie_word_embeddings=False,
    )
    return common.write("qwen2_audio", folder, MODEL(config), processor)


loaded = cache(AutoProcessor.from_pretrained)


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    processor = loaded(folder)
    cut = [[wave[start : start + PIECE] for start in range(0, len(wave), PIECE)] for wave in waves]
    pieces = [[piece for piece in one if len(piece) > 320] or one[:1] for one in cut]  # 20 ms are too short for it
    text = processor.apply_chat_template(common.chat(question, waves), add_generation_prompt=True)
    heard = [piece for one in pieces for piece in one]
    return processor(text=[common.one_a_piece(text, AUDIO, pieces)], audio=heard or None, return_tensors="pt")
