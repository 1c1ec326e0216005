"""Phi-4-multimodal as the hub has it: its config.json, in full size and small, its weights by name and shape.

Written from the model's own description, without our converter: what the converter makes is held against this.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Phi4MultimodalConfig

SHORT = [1.0] * 48
LONG = [
    *(1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649),
    *(2.446418898, 2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533),
    *(5.984965424, 6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651),
    *(14.64173252, 16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03),
    *(32.1, 32.13, 32.23, 32.6, 32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77),
]
ENCODER = {
    "activation": "swish",
    "activation_checkpointing": {"interval": 1, "module": "transformer", "offload": False},
    "attention_dim": 1024,
    "attention_heads": 16,
    "batch_norm": False,
    "bias_in_glu": True,
    "causal": True,
    "chunk_size": -1,
    "cnn_layer_norm": True,
    "conv_activation": "swish",
    "conv_glu_type": "swish",
    "depthwise_multiplier": 1,
    "depthwise_seperable_out_channel": 1024,
    "dropout_rate": 0.0,
    "encoder_embedding_config": {"input_size": 80},
    "ext_pw_kernel_size": 1,
    "ext_pw_out_channel": 1024,
    "input_layer": "nemo_conv",
    "input_size": 80,
    "kernel_size": 3,
    "left_chunk": 18,
    "linear_units": 1536,
    "nemo_conv_settings": {"conv_channels": 1024},
    "num_blocks": 24,
    "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
    "time_reduction": 8,
}
ADAPTED = "((layers.*self_attn\\.(qkv|o)_proj)|(layers.*mlp\\.(gate_up|down)_proj))"
CONFIG = {
    "architectures": ["Phi4MMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "audio_processor": {"config": ENCODER, "name": "cascades"},
    "auto_map": {"AutoConfig": "configuration_phi4mm.Phi4MMConfig"},
    "bos_token_id": 199999,
    "embd_layer": {
        "audio_embd_layer": {
            "compression_rate": 8,
            "downsample_rate": 1,
            "embedding_cls": "audio",
            "enable_gradient_checkpointing": True,
            "projection_cls": "mlp",
            "use_conv_downsample": False,
            "use_qformer": False,
        },
        "embedding_cls": "image_audio",
        "image_embd_layer": {"crop_size": 448, "embedding_cls": "tune_image", "projection_cls": "mlp"},
    },
    "embd_pdrop": 0.0,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi4mm",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": LONG, "short_factor": SHORT, "type": "longrope"},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "speech_lora": {"dp": 0.01, "layer": ADAPTED, "lora_alpha": 640, "r": 320},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.1",
    "use_cache": True,
    "vision_lora": {"dp": 0.0, "layer": ADAPTED, "lora_alpha": 512, "r": 256},
    "vocab_size": 200064,
}


def small(native: Any) -> dict[str, Any]:
    """The config of the hub that a small native one (of tests/families/phi4mm.py) would have come from."""
    config: dict[str, Any] = deepcopy(CONFIG)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    more = ("vocab_size", "max_position_embeddings", "original_max_position_embeddings", "bos_token_id", "pad_token_id")
    config |= {name: getattr(native, name) for name in (*names, *more)}
    rope = native.rope_parameters
    config["rope_scaling"] = {name: rope[name] for name in ("long_factor", "short_factor")} | {"type": "longrope"}
    audio = native.audio_config
    config["audio_processor"]["config"] |= {
        "attention_dim": audio.hidden_size,
        "attention_heads": audio.num_attention_heads,
        "linear_units": audio.intermediate_size,
        "num_blocks": audio.num_blocks,
        "ext_pw_out_channel": audio.ext_pw_out_channel,
        "depthwise_seperable_out_channel": audio.depthwise_separable_out_channel,
        "nemo_conv_settings": {"conv_channels": audio.nemo_conv_channels},
        "relative_attention_bias_args": {"t5_bias_max_distance": audio.bias_max_distance, "type": "t5"},
    }
    for name in ("speech_lora", "vision_lora"):
        config[name] |= {"r": 4, "lora_alpha": 8}
    config["embd_layer"]["image_embd_layer"]["crop_size"] = native.vision_config.crop_size
    return config


Shape = tuple[int, ...]
SIGLIP = {"width": 1152, "inner": 4304, "layers": 27, "patch": 14, "patches": 32 * 32}
SCRIPT = (  # of transformers' convert_phi4_multimodal_weights_to_hf.py: what it renames, and into what
    (r"encoders\.(\d+)\.feed_forward_(in|out)\.net\.0\.linear\.", r"encoders.\1.feed_forward_\2.gate_up_proj."),
    (r"encoders\.(\d+)\.feed_forward_(in|out)\.net\.2\.", r"encoders.\1.feed_forward_\2.down_proj."),
    (r"encoders\.(\d+)\.self_attn\.linear_(q|k|v)\.", r"encoders.\1.self_attn.\2_proj."),
    (r"encoders\.(\d+)\.self_attn\.linear_out\.", r"encoders.\1.self_attn.o_proj."),
    (r"image_embed\.img_projection\.0\.", "image_embed.img_projection_up."),
    (r"image_embed\.img_projection\.2\.", "image_embed.img_projection_down."),
    (r"image_embed\.glb_GN", "image_embed.global_img_feature_extensor"),
    (r"image_embed\.sub_GN", "image_embed.sub_img_feature_extensor"),
    (r"audio_embed\.audio_projection\.speech\.0\.", "audio_embed.up_proj_for_speech."),
    (r"audio_embed\.audio_projection\.speech\.2\.", "audio_embed.down_proj_for_speech."),
    (r"audio_embed\.audio_projection\.vision\.0\.", "audio_embed.up_proj_for_vision_speech."),
    (r"audio_embed\.audio_projection\.vision\.2\.", "audio_embed.down_proj_for_vision_speech."),
    (r"\.base_layer\.", "."),
)


def renamed(name: str) -> str:
    """As transformers' script names a weight of the hub; an adapter's factor as PEFT names it."""
    for pattern, new in SCRIPT:
        name = re.sub(pattern, new, name)
    return re.sub(r"(lora_[AB])\.(?:speech|vision)\.", r"\1.", name)


def tensors(config: Mapping[str, Any], siglip: Mapping[str, int] = SIGLIP) -> dict[str, Shape]:
    """Name and shape of every tensor in the files of weights; the output layer is tied, and in none."""
    embedded = "model.embed_tokens_extend."
    return dict(
        [
            ("model.embed_tokens.weight", (config["vocab_size"], config["hidden_size"])),
            *_language_model(config),
            ("model.norm.weight", (config["hidden_size"],)),
            *((f"{embedded}audio_embed.{name}", shape) for name, shape in _audio(config)),
            *((f"{embedded}image_embed.{name}", shape) for name, shape in _image(config["hidden_size"], **siglip)),
        ]
    )


def _language_model(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, inner, heads = (config[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads"))
    fused = width + 2 * config["num_key_value_heads"] * (width // heads)
    matrices = {
        "self_attn.qkv_proj": (fused, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_up_proj": (2 * inner, width),
        "mlp.down_proj": (width, inner),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{norm}.weight", (width,)
        for name, (outputs, inputs) in matrices.items():
            yield f"{layer}.{name}.base_layer.weight", (outputs, inputs)
            for adapter in ("speech", "vision"):
                rank = config[f"{adapter}_lora"]["r"]
                yield f"{layer}.{name}.lora_A.{adapter}.weight", (rank, inputs)
                yield f"{layer}.{name}.lora_B.{adapter}.weight", (outputs, rank)


def _audio(config: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    encoder = config["audio_processor"]["config"]
    width, channels, mels = encoder["attention_dim"], encoder["nemo_conv_settings"]["conv_channels"], 80
    for name in ("global_mean", "global_invstd"):
        yield f"encoder.encoder_embedding.{name}", (mels,)
    yield from _biased("encoder.embed.conv.0", (channels, 1, 3, 3))
    for depthwise, pointwise in ((2, 3), (5, 6)):
        yield from _biased(f"encoder.embed.conv.{depthwise}", (channels, 1, 3, 3))
        yield from _biased(f"encoder.embed.conv.{pointwise}", (channels, channels, 1, 1))
    yield from _biased("encoder.embed.out", (width, channels * mels // 8))
    for number in range(encoder["num_blocks"]):
        yield from _block(f"encoder.encoders.{number}", encoder)
    distances = 2 * encoder["relative_attention_bias_args"]["t5_bias_max_distance"]
    yield "encoder.relative_attention_bias_layer.bias_values.weight", (distances, encoder["attention_heads"])
    hidden = config["hidden_size"]
    for mode in ("speech", "vision"):
        yield from _biased(f"audio_projection.{mode}.0", (hidden, width))
        yield from _biased(f"audio_projection.{mode}.2", (hidden, hidden))


def _block(block: str, encoder: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, inner = encoder["attention_dim"], encoder["linear_units"]
    wide, between = encoder["ext_pw_out_channel"], encoder["depthwise_seperable_out_channel"]
    for part in ("in", "out"):
        yield from _biased(f"{block}.feed_forward_{part}.layer_norm", (width,))
        yield from _biased(f"{block}.feed_forward_{part}.net.0.linear", (2 * inner, width))
        yield from _biased(f"{block}.feed_forward_{part}.net.2", (width, inner))
    for name in ("q", "k", "v", "out"):
        yield from _biased(f"{block}.self_attn.linear_{name}", (width, width))
    for name in ("layer_norm_att", "layer_norm", "conv.layer_norm"):
        yield from _biased(f"{block}.{name}", (width,))
    yield from ((f"{block}.conv.glu.b1", (1, wide, 1)), (f"{block}.conv.glu.b2", (1, wide, 1)))
    yield from _biased(f"{block}.conv.glu.ext_pw_conv_1d", (2 * wide, width, 1))
    yield from _biased(f"{block}.conv.dw_sep_conv_1d.dw_conv", (width, 1, encoder["kernel_size"]))
    yield from _biased(f"{block}.conv.dw_sep_conv_1d.pw_conv", (between, width, 1))
    yield from _biased(f"{block}.conv.ext_pw_conv_1d", (wide, width, 1))


def _image(
    hidden: int, *, width: int, inner: int, layers: int, patch: int, patches: int
) -> Iterator[tuple[str, Shape]]:
    tower = "img_processor"
    yield from _biased(f"{tower}.embeddings.patch_embedding", (width, 3, patch, patch))
    yield f"{tower}.embeddings.position_embedding.weight", (patches, width)
    for number in range(layers):
        layer = f"{tower}.encoder.layers.{number}"
        for name in ("q", "k", "v", "out"):
            yield from _biased(f"{layer}.self_attn.{name}_proj", (width, width))
        yield from (*_biased(f"{layer}.layer_norm1", (width,)), *_biased(f"{layer}.layer_norm2", (width,)))
        yield from (*_biased(f"{layer}.mlp.fc1", (inner, width)), *_biased(f"{layer}.mlp.fc2", (width, inner)))
    yield from _biased(f"{tower}.post_layernorm", (width,))
    yield f"{tower}.head.probe", (1, 1, width)
    yield f"{tower}.head.attention.in_proj_weight", (3 * width, width)
    yield f"{tower}.head.attention.in_proj_bias", (3 * width,)
    yield from _biased(f"{tower}.head.attention.out_proj", (width, width))
    yield from _biased(f"{tower}.head.layernorm", (width,))
    yield from (*_biased(f"{tower}.head.mlp.fc1", (inner, width)), *_biased(f"{tower}.head.mlp.fc2", (width, inner)))
    yield from (("glb_GN", (1, 1, width)), ("sub_GN", (1, 1, 1, width)))
    yield from _biased("img_projection.0", (hidden, width))
    yield from _biased("img_projection.2", (hidden, hidden))


def _biased(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


# A folder


SMALL_SIGLIP = {"width": 16, "inner": 16, "layers": 2, "patch": 14, "patches": 2 * 2}  # tests/families/phi4mm.py
SMALL_VISION = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"image_size": 28, "patch_size": 14},
}
SPARE = {"<|image|>": "<|endoftext10|>", "<|audio|>": "<|endoftext11|>"}  # native name, and the hub's


def write(folder: Path, native: Path) -> Path:
    """What a small native folder, with both adapters beside its weights, would have been downloaded as."""
    config = small(Phi4MultimodalConfig.from_pretrained(native))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    (folder / "generation_config.json").write_bytes((native / "generation_config.json").read_bytes())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (native / name).read_text()
        for ours, theirs in SPARE.items():
            text = text.replace(ours, theirs)
        settings = json.loads(text)
        settings.pop("extra_special_tokens", None)
        (folder / name).write_text(json.dumps(settings | {"auto_map": {}} if "config" in name else settings))
    (folder / "modeling_phi4mm.py").write_text("raise SystemExit('run')\n")
    (folder / "README.md").write_text("Phi-4-multimodal\n")
    for adapter in ("speech", "vision"):
        shutil.copytree(native / f"{adapter}-lora", folder / f"{adapter}-lora")
    values = weights(config, native)
    parts = _parts(list(values))
    for number, names in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: values[name] for name in names}, folder / file, metadata={"format": "pt"})
    return folder


def weights(config: Mapping[str, Any], native: Path) -> dict[str, Tensor]:
    """The tensors of a native folder and of its adapters, under the names of the hub."""
    plain = load_file(native / "model.safetensors")
    for adapter in ("speech", "vision"):
        for name, value in load_file(native / f"{adapter}-lora" / "adapter_model.safetensors").items():
            plain[f"{adapter} {name.removeprefix('base_model.model.')}"] = value
    found = {}
    for name, shape in tensors(config, SMALL_SIGLIP).items():
        adapter = next((f"{one} " for one in ("speech", "vision") if f".{one}.weight" in name and ".lora_" in name), "")
        found[name] = plain.pop(adapter + renamed(name))
        assert tuple(found[name].shape) == shape, name
    assert not plain, plain.keys()
    return found


def _parts(names: list[str]) -> list[list[str]]:
    """Three files: the large embedding last, and one with nothing but factors of adapters."""
    factors = [name for name in names if ".layers.1." in name and ".lora_" in name]
    last = ["model.embed_tokens.weight"]
    return [[name for name in names if name not in {*factors, *last}], factors, last]
