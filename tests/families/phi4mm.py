"""A small Phi-4-multimodal in transformers' native format, and what its own processor makes of a question."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import families.common as common
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import (
    AutoTokenizer,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalProcessor,
)
from transformers.image_processing_utils import BaseImageProcessor

from rlspeech.students._phi4mm_config import NAMED, write_settings

MODEL = Phi4MultimodalForCausalLM
STOPS_S = None
REACH = 1024  # tokens of the short frequencies
ROLES = ("<|assistant|>", "<|end|>", "<|user|>", "<|system|>")  # in the published tokenizer, spaces behind them go
LORA = {"rank": 4, "alpha": 8.0}


def write(folder: Path, *, head_dim: int = 8, context: int = 2048) -> Path:
    roles = [AddedToken(token, special=True, rstrip=True, normalized=False) for token in ROLES]
    tokenizer = common.smollm2("<|image|>", "<|audio|>", *roles)
    model = MODEL(config(tokenizer, head_dim=head_dim, context=context))
    norm = model.model.embed_tokens_extend.audio_embed.encoder.encoder_embedding
    norm.global_mean.normal_(8, 1, generator=torch.Generator().manual_seed(1))
    norm.global_invstd.fill_(0.25)
    common.write("phi4mm", folder, model, tokenizer)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"extra_special_tokens": NAMED}))
    write_settings(folder)
    return folder


def config(tokenizer: Any, *, head_dim: int, context: int) -> Phi4MultimodalConfig:
    turned = int(0.75 * head_dim) // 2
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "short_factor": [1.0] * turned,
        "long_factor": [1.0 + 2.5 * at for at in range(turned)],
        "original_max_position_embeddings": REACH,
    }
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image", "audio")}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Phi4MultimodalConfig(
        **common.text(tokenizer, head_dim=head_dim, context=context) | {"tie_word_embeddings": True},
        original_max_position_embeddings=REACH,
        sliding_window=262_144,
        rope_parameters=rope,
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "ext_pw_out_channel": 32,
            "depthwise_separable_out_channel": 32,
            "nemo_conv_channels": 16,
            "bias_max_distance": 50,
            "audio_token_id": ids["audio"],
        },
        vision_config=vision | {"image_size": 28, "crop_size": 28, "image_token_id": ids["image"]},
    )


def add_adapter(folder: Path, name: str = "speech-lora", *, seed: int = 3) -> Path:
    """An adapter beside the weights, as the native format has it."""
    from peft import LoraConfig

    from rlspeech.students.phi4mm import ADAPTED

    generator = torch.Generator().manual_seed(seed)
    model = MODEL.from_pretrained(folder)
    tensors = {}
    for layer, module in model.named_modules():
        if layer.startswith("model.layers.") and isinstance(module, torch.nn.Linear):
            sizes = {"A": (LORA["rank"], module.in_features), "B": (module.out_features, LORA["rank"])}
            for factor, size in sizes.items():
                tensors[f"base_model.model.{layer}.lora_{factor}.weight"] = 0.2 * torch.randn(size, generator=generator)
    (folder / name).mkdir()
    save_file(tensors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(r=LORA["rank"], lora_alpha=LORA["alpha"], target_modules=ADAPTED).save_pretrained(folder / name)
    return folder


class Pictures(BaseImageProcessor):
    """In the place of the family's own, which wants torchvision; no picture comes."""


@cache
def processor(folder: Path) -> Phi4MultimodalProcessor:
    return Phi4MultimodalProcessor(
        Pictures(),
        Phi4MultimodalFeatureExtractor.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )


def inputs(folder: Path, question: str, *waves: np.ndarray) -> Any:
    own = processor(folder)
    text = own.apply_chat_template(common.chat(question, waves), add_generation_prompt=True)
    audio = {"audio": list(waves), "sampling_rate": common.RATE_HZ} if waves else {}
    return own(text=[text], return_tensors="pt", **audio)
