"""Phi-4-multimodal's two layouts: that of the hub's remote code, and transformers' native one, which is trained here.

`to_native` gives a downloaded model the native layout; none of its code is run. A trained checkpoint has the speech
adapter merged: `apart` takes it out again, onto the native model that the training began with. `to_hub` gives a native
model, its adapters apart, the layout of the hub; what is neither weight nor adapter comes from the downloaded folder.

In the layout of the hub, adapted matrices are called `base_layer`, and both adapters lie among the weights.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM

from rlspeech.errors import UserError
from rlspeech.students._phi4mm_config import hub_settings, native_config, token_ids, write_processor
from rlspeech.students._phi4mm_lora import CONFIG, PEFT, SPEECH, VISION, WEIGHTS, adapter_settings, plain
from rlspeech.students._rewrite import Conversion, Stored, by_file, check_tensors, new_folder, stored, write_weights

AUDIO, IMAGE = "model.embed_tokens_extend.audio_embed.", "model.embed_tokens_extend.image_embed."
NAMES = (  # of the hub, native; beginnings of what follows AUDIO, IMAGE or a block of the encoder
    (AUDIO, "audio_projection.speech.0.", "up_proj_for_speech."),
    (AUDIO, "audio_projection.speech.2.", "down_proj_for_speech."),
    (AUDIO, "audio_projection.vision.0.", "up_proj_for_vision_speech."),
    (AUDIO, "audio_projection.vision.2.", "down_proj_for_vision_speech."),
    (IMAGE, "img_projection.0.", "img_projection_up."),
    (IMAGE, "img_projection.2.", "img_projection_down."),
    (IMAGE, "glb_GN", "global_img_feature_extensor"),
    (IMAGE, "sub_GN", "sub_img_feature_extensor"),
)
IN_BLOCK = (
    ("feed_forward_in.net.0.linear.", "feed_forward_in.gate_up_proj."),
    ("feed_forward_in.net.2.", "feed_forward_in.down_proj."),
    ("feed_forward_out.net.0.linear.", "feed_forward_out.gate_up_proj."),
    ("feed_forward_out.net.2.", "feed_forward_out.down_proj."),
    *((f"self_attn.linear_{name}.", f"self_attn.{name}_proj.") for name in "qkv"),
    ("self_attn.linear_out.", "self_attn.o_proj."),
)
BLOCK = re.compile(re.escape(f"{AUDIO}encoder.encoders.") + r"\d+\.")
ADAPTED = re.compile(r"(model\.layers\.\d+\.(?:self_attn\.(?:qkv|o)_proj|mlp\.(?:gate_up|down)_proj))\.weight")
FOLDERS = {"speech": SPEECH, "vision": VISION}
UNEXPLAINED = 0.05  # of what training moved: a trained matrix may differ by so much from base and adapter together

Shapes = Mapping[str, tuple[int, ...]]


def native_name(name: str) -> str:
    """Of a weight of the hub that is not an adapter's.

    >>> native_name("model.layers.0.mlp.down_proj.base_layer.weight")
    'model.layers.0.mlp.down_proj.weight'
    """
    return _renamed(name.replace(".base_layer.", "."), 0, 1)


def hub_name(name: str) -> str:
    """
    >>> hub_name("model.layers.0.mlp.down_proj.weight")
    'model.layers.0.mlp.down_proj.base_layer.weight'
    """
    adapted = ADAPTED.fullmatch(name)
    return f"{adapted[1]}.base_layer.weight" if adapted else _renamed(name, 1, 0)


def adapter_of(name: str) -> str | None:
    """`speech` or `vision` where a weight of the hub is an adapter's.

    >>> adapter_of("model.layers.0.mlp.down_proj.lora_A.speech.weight")
    'speech'
    """
    found = re.search(r"\.lora_[AB]\.(\w+)\.weight$", name)
    return found[1] if found else None


def native_shapes(config: Phi4MultimodalConfig) -> Shapes:
    """Of what a folder in the native layout holds, by name."""
    with torch.device("meta"):
        model = Phi4MultimodalForCausalLM(config)
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}


def hub_shapes(native: Shapes, ranks: Mapping[str, int]) -> Shapes:
    """Of what a folder in the hub's layout holds; `ranks` by adapter."""
    of_adapters = {
        name.replace(".weight", f".{adapter}.weight"): shape
        for adapter, rank in ranks.items()
        for name, shape in adapter_shapes(native, rank).items()
    }
    return {hub_name(name): shape for name, shape in native.items()} | of_adapters


def adapter_shapes(native: Shapes, rank: int) -> Shapes:
    """Of the factors A [rank, in] and B [out, rank] of every adapted matrix [out, in]."""
    found = {}
    for name, shape in native.items():
        if adapted := ADAPTED.fullmatch(name):
            found |= {f"{adapted[1]}.lora_A.weight": (rank, shape[1]), f"{adapted[1]}.lora_B.weight": (shape[0], rank)}
    return found


def to_native(original: Path, new: Path) -> None:
    """The native layout of a folder of the hub. Raises UserError where that is not one, or not whole."""
    settings = hub_settings(original)
    config = native_config(settings, token_ids(original))
    found = stored(original)
    wanted = hub_shapes(native_shapes(config), _ranks(settings))
    check_tensors(original, found, wanted, "a whole Phi-4-multimodal in the hub's layout")
    weights = {native_name(name): one for name, one in found.items() if adapter_of(name) is None}
    with new_folder(new, found.values()) as folder:
        config.save_pretrained(folder)
        write_processor(original, folder)
        for adapter, beside in FOLDERS.items():
            own = {plain(name): one for name, one in found.items() if adapter_of(name) == adapter}
            _write_adapter(folder / beside, own)
            _write_settings(folder / beside, settings[f"{adapter}_lora"])
        write_weights(folder, by_file(weights))


def apart(trained: Path, new: Path, *, base: Path) -> None:
    """A trained checkpoint with its adapter beside the weights that it was merged into, which `base` has still.

    Raises UserError where the checkpoint has no adapter of its own, or is not what `base` and the adapter make up.
    """
    adapter = trained / "adapter"
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"{trained}: no folder adapter: what its stage learned cannot be taken out of its weights")
    merged, before = stored(trained), stored(base)
    check_tensors(trained, merged, {name: one.shape for name, one in before.items()}, f"the model of {base}")
    factors = _adapter(adapter, {name: one.shape for name, one in before.items()})
    _check_sums(trained, base, merged, before, adapter)
    chosen = {
        name: replace(one, dtype=merged[name].dtype) if ADAPTED.fullmatch(name) else merged[name]
        for name, one in before.items()
    }
    parts = [{name: chosen[name] for name in part} for part in by_file(before)]
    with new_folder(new, [*chosen.values(), *factors.values()]) as folder:
        for file in sorted(trained.iterdir()):
            if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        _write_adapter(folder / SPEECH, factors)
        shutil.copyfile(adapter / CONFIG, folder / SPEECH / CONFIG)
        if (base / VISION).is_dir():
            shutil.copytree(base / VISION, folder / VISION)
        write_weights(folder, parts)


def to_hub(native: Path, new: Path, *, base: Path) -> None:
    """The hub's layout of a native folder; `base` is the downloaded one.

    Raises UserError where the adapters are not apart, or the two folders are not of one architecture.
    """
    settings = hub_settings(base)
    shapes = native_shapes(native_config(settings, token_ids(base)))
    weights = stored(native)
    check_tensors(native, weights, shapes, f"the model of {base}")
    extra: dict[str, Stored] = {}
    for adapter, beside in FOLDERS.items():
        if not (native / beside / WEIGHTS).is_file():
            raise UserError(f"{native}: no folder {beside}; of a trained checkpoint, --to apart makes it")
        _check_scale(native / beside, settings[f"{adapter}_lora"], base)
        factors = _adapter(native / beside, shapes)
        extra |= {name.replace(".weight", f".{adapter}.weight"): one for name, one in factors.items()}
    parts = [{hub_name(name): one for name, one in part.items()} for part in by_file(weights)]
    with new_folder(new, [*weights.values(), *extra.values()]) as folder:
        kept = shutil.ignore_patterns("*.safetensors", "*.index.json", ".git*")
        shutil.copytree(base, folder, ignore=kept, dirs_exist_ok=True)
        for adapter, beside in FOLDERS.items():
            own = {plain(name): one for name, one in extra.items() if adapter_of(name) == adapter}
            _write_adapter(folder / beside, own)
            if not (folder / beside / CONFIG).is_file():
                shutil.copyfile(native / beside / CONFIG, folder / beside / CONFIG)
        _set_dtype(folder / "config.json", weights.values())
        write_weights(folder, [*parts, extra])


def _renamed(name: str, have: int, want: int) -> str:
    block = BLOCK.match(name)
    head = block[0] if block else next((head for head in (AUDIO, IMAGE) if name.startswith(head)), "")
    pairs = IN_BLOCK if block else [pair for where, *pair in NAMES if where == head]
    rest = name.removeprefix(head)
    pair = next((pair for pair in pairs if rest.startswith(pair[have])), None)
    return name if pair is None else head + pair[want] + rest.removeprefix(pair[have])


def _ranks(settings: Mapping[str, Any]) -> dict[str, int]:
    return {adapter: settings[f"{adapter}_lora"]["r"] for adapter in FOLDERS}


def _adapter(folder: Path, native: Shapes) -> dict[str, Stored]:
    """The factors of an adapter under plain names; they are those of every adapted matrix, or it raises UserError."""
    found = {plain(name): one for name, one in stored(folder, WEIGHTS).items()}
    wanted = adapter_shapes(native, adapter_settings(folder)["rank"])
    check_tensors(folder, found, wanted, "an adapter of this model")
    return found


def _check_scale(folder: Path, wanted: Mapping[str, Any], base: Path) -> None:
    own = adapter_settings(folder)
    if (own["rank"], own["alpha"]) != (wanted["r"], wanted["lora_alpha"]):
        raise UserError(
            f"{folder}: rank {own['rank']} and alpha {own['alpha']:g}, where {base} has rank {wanted['r']} and alpha "
            f"{wanted['lora_alpha']:g}"
        )


def _check_sums(
    trained: Path, base: Path, merged: Mapping[str, Stored], before: Mapping[str, Stored], adapter: Path
) -> None:
    """The trained matrices are those of `base` with the adapter added, up to rounding."""
    settings = adapter_settings(adapter)
    factors = {plain(name): value.float() for name, value in load_file(adapter / WEIGHTS).items()}
    scale = settings["alpha"] / settings["rank"]
    wrong = []
    for name in sorted(filter(ADAPTED.fullmatch, before)):
        layer = name.removesuffix(".weight")
        old, now = before[name].read().float(), merged[name].read().float()
        added = scale * factors[f"{layer}.lora_B.weight"] @ factors[f"{layer}.lora_A.weight"]
        rounding = torch.finfo(merged[name].dtype).eps * now.abs().mean()
        if (now - old - added).abs().mean() > UNEXPLAINED * (now - old).abs().mean() + rounding:
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{trained}: {len(wrong)} matrices, such as {wrong[0]}, are not those of {base} with the adapter added: "
            "--base has to be the folder that this stage began with"
        )


def _write_adapter(folder: Path, tensors: Mapping[str, Stored]) -> None:
    folder.mkdir(exist_ok=True)
    named = {PEFT + name.replace(f".{adapter_of(name)}.", "."): one.read() for name, one in tensors.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})


def _write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    from peft import LoraConfig

    LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["dp"],
        target_modules=ADAPTED.pattern.removesuffix(r"\.weight"),
        task_type="CAUSAL_LM",
    ).save_pretrained(folder)


def _set_dtype(file: Path, tensors: Iterable[Stored]) -> None:
    """The type of the weights, under the name that the hub's config has for it."""
    (dtype, *_) = {str(one.dtype).removeprefix("torch.") for one in tensors}
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("torch_dtype") != dtype:
        file.write_text(json.dumps(config | {"torch_dtype": dtype}, indent=2), encoding="utf-8")


CONVERSIONS = {
    "native": Conversion(to_native),
    "hub": Conversion(to_hub, base="the folder as it was downloaded from the hub"),
    "apart": Conversion(apart, base="the native folder that the stage began with"),
}
