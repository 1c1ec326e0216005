"""Config and processor of Phi-4-multimodal in transformers' native format, from those of the hub's remote code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Phi4MultimodalAudioConfig, Phi4MultimodalConfig, Phi4MultimodalVisionConfig

from rlspeech.errors import UserError

SAME = (  # settings of the encoder that both layouts know by one name
    *("activation", "chunk_size", "conv_activation", "conv_glu_type", "depthwise_multiplier", "dropout_rate"),
    *("ext_pw_out_channel", "input_size", "kernel_size", "left_chunk", "num_blocks", "time_reduction"),
)
OTHER = {  # native: of the hub
    "hidden_size": "attention_dim",
    "num_attention_heads": "attention_heads",
    "intermediate_size": "linear_units",
    "depthwise_separable_out_channel": "depthwise_seperable_out_channel",
}
DROPPED = {  # of the hub's remote code alone
    *("_name_or_path", "architectures", "auto_map", "model_type", "transformers_version", "_attn_implementation"),
    *("audio_processor", "embd_layer", "img_processor", "speech_lora", "vision_lora", "interpolate_factor"),
    *("full_attn_mod", "lm_head_bias", "mlp_bias", "attention_bias"),
}
VISION = {  # of the vision tower: fixed in the hub's remote code, not in its config.json
    **{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16},
    **{"image_size": 448, "patch_size": 14},
}
ENDS = ("<|endoftext|>", "<|end|>")
TOKENS = {"<|endoftext10|>": "<|image|>", "<|endoftext11|>": "<|audio|>"}
NAMED = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
COPIED = ("generation_config.json", "merges.txt", "LICENSE")
# A turn is its role, its parts one behind the other, and <|end|>; tools are told behind a system's turn.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] -}}
{%- elif part['type'] in ('audio', 'image') -%}{{- '<|' + part['type'] + '|>' -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'system' and message['tools'] -%}
{{- '<|tool|>' + message['tools'] + '<|/tool|>' -}}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else eos_token -}}
"""
PROCESSOR = {
    "processor_class": "Phi4MultimodalProcessor",
    "image_processor_type": "Phi4MultimodalImageProcessor",
    "feature_extractor_type": "Phi4MultimodalFeatureExtractor",
}


def hub_settings(folder: Path) -> dict[str, Any]:
    """The config.json of a folder in the hub's layout. Raises UserError where it is another's."""
    settings = _read(folder / "config.json")
    if not is_hub_layout(settings):
        raise UserError(f"{folder}: not in the layout of the hub's remote code: no embd_layer in its config.json")
    absent = [name for name in ("audio_processor", "speech_lora", "vision_lora") if name not in settings]
    if absent:
        raise UserError(f"{folder / 'config.json'}: no {', '.join(absent)}; a whole Phi-4-multimodal has it")
    return settings


def is_hub_layout(settings: Mapping[str, Any]) -> bool:
    return "embd_layer" in settings


def token_ids(folder: Path) -> dict[str, int]:
    """Ids of the special tokens of a folder in the hub's layout, by their names there."""
    tokens = {token["content"]: token["id"] for token in _read(folder / "tokenizer.json").get("added_tokens", ())}
    absent = [name for name in (*TOKENS, *ENDS) if name not in tokens]
    if absent:
        raise UserError(f"{folder / 'tokenizer.json'}: no token {', '.join(absent)}, as Phi-4-multimodal's has")
    return tokens


def native_config(original: Mapping[str, Any], tokens: Mapping[str, int]) -> Phi4MultimodalConfig:
    """Of a config.json of the hub and the ids that its tokenizer gives the special tokens."""
    encoder = original["audio_processor"]["config"]
    audio = {name: encoder[name] for name in SAME if name in encoder}
    audio |= {name: encoder[theirs] for name, theirs in OTHER.items() if theirs in encoder}
    audio["nemo_conv_channels"] = encoder["nemo_conv_settings"]["conv_channels"]
    audio["bias_max_distance"] = encoder["relative_attention_bias_args"]["t5_bias_max_distance"]
    audio["downsample_rate"] = original["embd_layer"]["audio_embd_layer"].get("downsample_rate", 1)
    image_id, audio_id = (tokens[name] for name in TOKENS)
    vision = VISION | {"crop_size": original["embd_layer"]["image_embd_layer"].get("crop_size", 448)}
    kept = {name: value for name, value in original.items() if name not in DROPPED}
    return Phi4MultimodalConfig(
        **kept | {"eos_token_id": [tokens[name] for name in ENDS]},
        architectures=["Phi4MultimodalForCausalLM"],
        audio_config=Phi4MultimodalAudioConfig(**audio, audio_token_id=audio_id),
        vision_config=Phi4MultimodalVisionConfig(**vision, image_token_id=image_id),
    )


def write_processor(original: Path, new: Path) -> None:
    """Tokenizer, chat template and settings of the processor: two spare tokens get the names that it calls them by."""
    for name in COPIED:
        if (original / name).is_file():
            (new / name).write_bytes((original / name).read_bytes())
    state = _read(original / "tokenizer.json")
    for token in state["added_tokens"]:
        token["content"] = TOKENS.get(token["content"], token["content"])
    vocabulary = state["model"]["vocab"]
    for theirs, ours in TOKENS.items():
        if theirs in vocabulary:
            vocabulary[ours] = vocabulary.pop(theirs)
    _write(new / "tokenizer.json", state)
    settings = _read(original / "tokenizer_config.json")
    for token in settings.get("added_tokens_decoder", {}).values():
        token["content"] = TOKENS.get(token["content"], token["content"])
    settings.pop("auto_map", None)
    settings.pop("chat_template", None)
    _write(new / "tokenizer_config.json", settings | {"extra_special_tokens": NAMED})
    write_settings(new)


def write_settings(folder: Path) -> None:
    """What a processor needs beside its tokenizer: all of it as the family's classes have it by default."""
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write(folder / "preprocessor_config.json", PROCESSOR)
    _write(folder / "processor_config.json", {"processor_class": PROCESSOR["processor_class"]})


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file.parent}: no {file.name}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as JSON") from error


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
