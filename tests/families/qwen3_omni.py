"""A small thinker of Qwen3-Omni. Its talker is not part of the folder."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families.common as common
import numpy as np
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    ProcessorMixin,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.core_model_loading import revert_weight_conversion

MODEL = Qwen3OmniMoeThinkerForConditionalGeneration
STOPS_S = None
NAMED = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
TEMPLATE = (  # as published renders turns of text and audio: without tools, images and video
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'audio' or 'audio' in content or 'audio_url' in content %}"
    "<|audio_start|><|audio_pad|><|audio_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIXELS = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    tokenizer = common.smollm2(*NAMED.values())
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()}
    text = common.text(tokenizer, head_dim=head_dim, context=context)
    sections = [head_dim // 4, head_dim // 8, head_dim // 8]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, "mrope_interleaved": True}
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4 * head_dim}
    wide = {"head_dim": head_dim, "num_attention_heads": 8}  # together wider than the hidden states, as published
    thinker = Qwen3OmniMoeThinkerConfig(
        audio_config={
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
            "downsample_hidden_size": 8,
            "output_dim": text["hidden_size"],
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": text["hidden_size"],
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=text | moe | wide | {"rope_parameters": rope},
        audio_token_id=ids["audio_token"],
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        tie_word_embeddings=False,
    )
    whole = Qwen3OmniMoeConfig(thinker_config=thinker.to_dict(), enable_audio_output=False)
    model = MODEL(thinker)
    architecture = "Qwen3OmniMoeForConditionalGeneration"
    common.write("qwen3_omni", folder, model, tokenizer, config=whole, architecture=architecture)
    stacked = load_file(folder / "model.safetensors")
    each = {name: value.contiguous() for name, value in revert_weight_conversion(model, stacked).items()}
    save_file(each, folder / "model.safetensors", metadata={"format": "pt"})
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=300).to_dict()
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen3OmniMoeProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor | PIXELS | kinds))
    video = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(PIXELS | video))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_special_tokens": NAMED}))
    return folder


class ForSound(Qwen3OmniMoeProcessor):
    """The family's processor without its part for images and video, which wants torchvision."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    unseen = SimpleNamespace(merge_size=2, model_input_names=[])
    extractor, tokenizer = WhisperFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    template = ProcessorMixin.get_processor_dict(folder)[0]["chat_template"]
    processor = ForSound(unseen, unseen, extractor, tokenizer, chat_template=template)
    text = processor.apply_chat_template(common.chat(question, waves), add_generation_prompt=True)
    return processor(text=[text], audio=list(waves) or None, return_tensors="pt")
