"""A small thinker of Qwen2.5-Omni. Its talker is not part of the folder."""

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families.common as common
import numpy as np
from transformers import (
    AutoTokenizer,
    ProcessorMixin,
    Qwen2_5OmniConfig,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

MODEL = Qwen2_5OmniThinkerForConditionalGeneration
STOPS_S = None  # the processor cuts audio off at 300 s; here it is heard in pieces
PIECE = 300 * common.RATE_HZ
AUDIO = "<|AUDIO|>"
NAMED = {
    "image_token": "<|IMAGE|>",
    "audio_token": AUDIO,
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
TEMPLATE = (  # as published, without what it says of images and video
    "{% set audio_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "{% set audio_count.value = audio_count.value + 1 %}{% if add_audio_id %}Audio {{ audio_count.value }}: {% endif %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    tokenizer = common.smollm2(*NAMED.values())
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()}
    text = common.text(tokenizer, head_dim=head_dim, context=context)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [head_dim // 4, head_dim // 8, head_dim // 8]}
    thinker = Qwen2_5OmniThinkerConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "output_dim": text["hidden_size"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": text["hidden_size"],
            "fullatt_block_indexes": [0],
        },
        text_config=text | {"rope_parameters": rope},
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        tie_word_embeddings=False,
    )
    whole = Qwen2_5OmniConfig(thinker_config=thinker.to_dict(), enable_audio_output=False)
    common.write("qwen2_5_omni", folder, MODEL(thinker), tokenizer, config=whole, architecture="Qwen2_5OmniModel")
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=300).to_dict()
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5OmniProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor | PIXELS | kinds))
    video = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(PIXELS | video))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_special_tokens": NAMED}))
    return folder


class ForSound(Qwen2_5OmniProcessor):
    """The family's processor without its part for images and video, which wants torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return


@cache
def processor(folder: Path) -> ForSound:
    unseen = SimpleNamespace(merge_size=2, model_input_names=[])
    extractor, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    template = ProcessorMixin.get_processor_dict(folder)[0]["chat_template"]
    return ForSound(unseen, unseen, extractor, tokenizer, chat_template=template)


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    own = processor(folder)
    pieces = [[wave[start : start + PIECE] for start in range(0, len(wave), PIECE)] for wave in waves]
    text = own.apply_chat_template(common.chat(question, waves), add_generation_prompt=True)
    heard = [piece for cut in pieces for piece in cut]
    return own(text=[common.one_a_piece(text, AUDIO, pieces)], audio=heard or None, return_tensors="pt")
