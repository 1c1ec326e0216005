"""A small Granite Speech. Its processor is the family's, on features that need no torchaudio."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import families.common as common
import numpy as np
from transformers import (
    AutoTokenizer,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechProcessor,
)

from rlspeech.students._granite_features import GraniteFeatures

MODEL = GraniteSpeechForConditionalGeneration
STOPS_S = None
LOGITS_SCALING = (
    16.0  # which transformers forgets; published is 8, but the small model would be too sure of its replies
)
AUDIO, END = "<|audio|>", "<|end_of_text|>"
SYSTEM = (
    "Knowledge Cutoff Date: April 2024.\nToday's Date: April 9, 2025.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant"
)
TEMPLATE = (  # as published, without what it says of tools, documents and thinking
    "{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>{{ message['content'] }}"
    "<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
EXTRACTOR = {  # as published
    "feature_extractor_type": "GraniteSpeechFeatureExtractor",
    "melspec_kwargs": {"hop_length": 160, "n_fft": 512, "n_mels": 80, "sample_rate": 16000, "win_length": 400},
    "processor_class": "GraniteSpeechProcessor",
    "projector_downsample_rate": 5,
    "projector_window_size": 15,
    "sampling_rate": 16000,
}
WIDTH = 32


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    tokenizer = common.smollm2("<|start_of_role|>", "<|end_of_role|>", END, AUDIO)
    tokenizer.chat_template = TEMPLATE
    text = common.text(tokenizer, head_dim=head_dim, context=context) | {
        "tie_word_embeddings": True,
        "eos_token_id": tokenizer.convert_tokens_to_ids(END),
        "logits_scaling": LOGITS_SCALING,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": head_dim**-0.5,
    }
    projector = {
        "model_type": "blip_2_qformer",
        "hidden_size": WIDTH,
        "encoder_hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "cross_attention_frequency": 1,
    }
    config = GraniteSpeechConfig(
        text_config={"model_type": "granite"} | text,
        encoder_config={"num_layers": 2, "hidden_dim": WIDTH, "num_heads": 2, "feedforward_mult": 2},
        projector_config=projector,
        audio_token_index=tokenizer.convert_tokens_to_ids(AUDIO),
        has_lora_adapter=False,
        tie_word_embeddings=True,
    )
    common.write("granite_speech", folder, MODEL(config), tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps(EXTRACTOR))
    return folder


@cache
def processor(folder: Path) -> GraniteSpeechProcessor:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return GraniteSpeechProcessor(GraniteFeatures.from_pretrained(folder), tokenizer, chat_template=TEMPLATE)


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    own = processor(folder)
    user = AUDIO * len(waves) + question
    chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    text = own.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return own(text=[text], audio=list(waves) or None, return_tensors="pt")
