"""A small Voxtral with a real Tekken tokenizer of mistral-common's, cut to 32,768 tokens."""

import base64
import io
import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import families.common as common
import numpy as np
import soundfile
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from safetensors.torch import load_file, save_file
from transformers import (
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import sinusoids
from transformers.tokenization_mistral_common import MistralCommonBackend

from rlspeech.students.voxtral import in_mistrals_layout

MODEL = VoxtralForConditionalGeneration
STOPS_S = None
AUDIO_ID = 24  # transformers' processor knows no other
TRANSCRIBE_ID = 34
VOCABULARY, SPECIAL = 32_768, 1_000
ENCODER = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
MELS = 16


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    folder.mkdir(parents=True)
    tokenizer = MistralCommonBackend(write_tekken(folder / "tekken.json"))
    text = common.text(tokenizer, head_dim=head_dim, context=context) | {"head_dim": head_dim, "pad_token_id": 11}
    config = VoxtralConfig(
        audio_token_id=AUDIO_ID,
        audio_config=ENCODER | {"num_mel_bins": MELS},
        text_config={"model_type": "llama", "rope_theta": 1e6} | text,
        tie_word_embeddings=False,
    )
    model = MODEL(config)
    model.model.audio_tower.embed_positions.weight.data = sinusoids(1500, ENCODER["hidden_size"])
    common.write("voxtral", folder, model, WhisperFeatureExtractor(feature_size=MELS))
    (folder / "params.json").write_text(json.dumps(params(config)))
    native = in_mistrals_layout(load_file(folder / "model.safetensors"), head_dim)
    save_file(native, folder / "consolidated.safetensors")
    return folder


def write_tekken(file: Path) -> Path:
    """Voxtral's file is Tekken's with three more special tokens and a word on audio."""
    origin = find_spec("mistral_common").origin
    state = json.loads((Path(origin).parent / "data" / "tekken_240911.json").read_text())
    known = list(Tekkenizer.DEPRECATED_SPECIAL_TOKENS)
    named = {AUDIO_ID: "[AUDIO]", AUDIO_ID + 1: "[BEGIN_AUDIO]", TRANSCRIBE_ID: "[TRANSCRIBE]"}
    state["special_tokens"] = known + [
        {"rank": rank, "token_str": named.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(len(known), TRANSCRIBE_ID + 1)
    ]
    state["vocab"] = state["vocab"][: VOCABULARY - SPECIAL]
    state["config"] |= {"version": "v7", "default_vocab_size": VOCABULARY, "num_vocab_tokens": VOCABULARY - SPECIAL}
    state["audio"] = {
        "sampling_rate": common.RATE_HZ,
        "frame_rate": 12.5,
        "audio_encoding_config": {"num_mel_bins": MELS, "hop_length": 160, "window_size": 400},
        "chunk_length_s": 30.0,
    }
    del state["image"]
    file.write_text(json.dumps(state))
    return file


def params(config: VoxtralConfig) -> dict[str, Any]:
    """As Mistral publishes it."""
    text, audio = config.text_config, config.audio_config
    mel = {"sampling_rate": common.RATE_HZ, "num_mel_bins": MELS, "hop_length": 160, "window_size": 400}
    encoder = {
        "audio_encoding_args": mel,
        "dim": audio.hidden_size,
        "n_layers": audio.num_hidden_layers,
        "head_dim": audio.hidden_size // audio.num_attention_heads,
        "hidden_dim": audio.intermediate_size,
        "n_heads": audio.num_attention_heads,
        "vocab_size": audio.vocab_size,
        "max_source_positions": audio.max_source_positions,
    }
    return {
        "dim": text.hidden_size,
        "n_layers": text.num_hidden_layers,
        "head_dim": text.head_dim,
        "hidden_dim": text.intermediate_size,
        "n_heads": text.num_attention_heads,
        "n_kv_heads": text.num_key_value_heads,
        "rope_theta": 1e6,
        "norm_eps": text.rms_norm_eps,
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_position_embeddings,
        "multimodal": {"whisper_model_args": {"encoder_args": encoder, "downsample_args": {"downsample_factor": 4}}},
    }


@cache
def processor(folder: Path) -> VoxtralProcessor:
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    return VoxtralProcessor(extractor, MistralCommonBackend.from_pretrained(folder))


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    content = [*({"type": "audio", "base64": encoded(wave)} for wave in waves), {"type": "text", "text": question}]
    return processor(folder).apply_chat_template([{"role": "user", "content": content}])


def encoded(wave: np.ndarray) -> str:
    file = io.BytesIO()
    soundfile.write(file, wave, common.RATE_HZ, format="WAV", subtype="FLOAT")
    return base64.b64encode(file.getvalue()).decode()
