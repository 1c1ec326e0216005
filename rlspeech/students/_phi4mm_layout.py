"""Phi-4-multimodal's two layouts: that of the hub's remote code, and transformers' native one, which is trained here.

    python -m rlspeech.students._phi4mm_layout native ORIGINAL NEW
    python -m rlspeech.students._phi4mm_layout apart TRAINED NATIVE NEW
    python -m rlspeech.students._phi4mm_layout original NATIVE ORIGINAL NEW

`native` gives a downloaded model the native layout; none of its code is run. A trained checkpoint has the speech
adapter merged: `apart` takes it out again, onto the native model that the training began with. `original` gives a
native model, its adapters apart, the layout of the hub; what is neither weight nor adapter comes from ORIGINAL.

In the layout of the hub, adapted matrices are called `base_layer`, and both adapters lie among the weights.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlspeech.errors import UserError
from rlspeech.students._phi4mm_config import native_config, write_processor
from rlspeech.students._phi4mm_lora import CONFIG, PEFT, SPEECH, VISION, WEIGHTS, plain

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
INDEX = "model.safetensors.index.json"


def native_name(name: str) -> str:
    """Of a weight of the hub that is not an adapter's.

    >>> native_name("model.layers.0.mlp.down_proj.base_layer.weight")
    'model.layers.0.mlp.down_proj.weight'
    """
    return _renamed(name.replace(".base_layer.", "."), 0, 1)


def original_name(name: str) -> str:
    """
    >>> original_name("model.layers.0.mlp.down_proj.weight")
    'model.layers.0.mlp.down_proj.base_layer.weight'
    """
    adapted = ADAPTED.fullmatch(name)
    return f"{adapted[1]}.base_layer.weight" if adapted else _renamed(name, 1, 0)


def _renamed(name: str, have: int, want: int) -> str:
    block = BLOCK.match(name)
    head = block[0] if block else next((head for head in (AUDIO, IMAGE) if name.startswith(head)), "")
    pairs = IN_BLOCK if block else [pair for where, *pair in NAMES if where == head]
    rest = name.removeprefix(head)
    pair = next((pair for pair in pairs if rest.startswith(pair[have])), None)
    return name if pair is None else head + pair[want] + rest.removeprefix(pair[have])


def adapter_of(name: str) -> str | None:
    """`speech` or `vision` where a weight of the hub is an adapter's.

    >>> adapter_of("model.layers.0.mlp.down_proj.lora_A.speech.weight")
    'speech'
    """
    found = re.search(r"\.lora_[AB]\.(\w+)\.weight$", name)
    return found[1] if found else None


def to_native(original: Path, new: Path) -> None:
    """The native layout of a model of the hub, a file of weights at a time. Raises UserError for another model."""
    settings = _json(original / "config.json")
    if "embd_layer" not in settings:
        raise UserError(f"{original}: not in the layout of the hub's remote code: no embd_layer in its config.json")
    new.mkdir(parents=True)
    native_config(settings).save_pretrained(new)
    write_processor(original, new)
    adapters: dict[str, dict[str, Tensor]] = {name: {} for name in FOLDERS}

    def convert(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        kept = {}
        for name, value in tensors:
            adapter = adapter_of(name)
            if adapter is None:
                kept[native_name(name)] = value
            else:
                adapters[adapter][PEFT + plain(name)] = value
        return kept

    _convert_files(original, new, convert)
    for adapter, tensors in adapters.items():
        _write_adapter(new / FOLDERS[adapter], tensors, settings[f"{adapter}_lora"])


def apart(trained: Path, native: Path, new: Path) -> None:
    """A trained checkpoint with its speech adapter beside the weights that it was merged into.

    Raises UserError where the checkpoint has no adapter of its own: then all of the language model may have learned.
    """
    adapter = trained / "adapter"
    if not (adapter / WEIGHTS).is_file():
        raise UserError(f"{trained}: no folder adapter: what its stage learned cannot be taken out of its weights")
    new.mkdir(parents=True)
    for file in sorted(trained.iterdir()):
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copyfile(file, new / file.name)
    merged = {name: file for file in _weight_files(trained) for name in _names(file)}

    def convert(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: value if ADAPTED.fullmatch(name) or name not in merged else _tensor(merged[name], name)
            for name, value in tensors
        }

    _convert_files(native, new, convert)
    (new / SPEECH).mkdir()
    save_file(load_file(adapter / WEIGHTS), new / SPEECH / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(adapter / CONFIG, new / SPEECH / CONFIG)
    if (native / VISION).is_dir():
        shutil.copytree(native / VISION, new / VISION)


def to_original(native: Path, original: Path, new: Path) -> None:
    """The hub's layout of a native model. Raises UserError where its adapters are not apart."""
    for folder in FOLDERS.values():
        if not (native / folder / WEIGHTS).is_file():
            raise UserError(f"{native}: no {folder}; of a trained checkpoint it is made by `apart`")
    new.mkdir(parents=True)
    kept = shutil.ignore_patterns("*.safetensors", "*.index.json", ".git*")
    shutil.copytree(original, new, ignore=kept, dirs_exist_ok=True)

    def convert(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
        return {original_name(name): value for name, value in tensors}

    extra = {}
    for adapter, folder in FOLDERS.items():
        tensors = load_file(native / folder / WEIGHTS)
        extra |= {plain(name).replace(".weight", f".{adapter}.weight"): value for name, value in tensors.items()}
        (new / folder).mkdir(exist_ok=True)
        save_file({PEFT + plain(name): value for name, value in tensors.items()}, new / folder / WEIGHTS)
    _convert_files(native, new, convert, extra=extra)


def _write_adapter(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    from peft import LoraConfig

    folder.mkdir()
    save_file(dict(tensors), folder / WEIGHTS, metadata={"format": "pt"})
    LoraConfig(
        r=settings["r"],
        lora_alpha=settings["lora_alpha"],
        lora_dropout=settings["dp"],
        target_modules=ADAPTED.pattern.removesuffix(r"\.weight"),
        task_type="CAUSAL_LM",
    ).save_pretrained(folder)


def _convert_files(
    source: Path,
    new: Path,
    convert: Callable[[Iterator[tuple[str, Tensor]]], dict[str, Tensor]],
    *,
    extra: Mapping[str, Tensor] = {},
) -> None:
    """File by file, with an index where there are several; what is `extra` goes into a file of its own."""
    files = _weight_files(source)
    count = len(files) + bool(extra)
    index: dict[str, str] = {}
    size = 0
    for number in range(count):
        name = "model.safetensors" if count == 1 else f"model-{number + 1:05}-of-{count:05}.safetensors"
        tensors = convert(_tensors(files[number])) if number < len(files) else dict(extra)
        save_file(tensors, new / name, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, name)
        size += sum(value.nbytes for value in tensors.values())
    if count > 1:
        (new / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=1))


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("model*.safetensors"))
    if not found:
        raise UserError(f"{folder}: no model*.safetensors")
    return found


def _names(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as tensors:
        return list(tensors.keys())


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            yield name, tensors.get_tensor(name)


def _tensor(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(name)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def main(arguments: list[str]) -> None:
    verbs: dict[str, tuple[Callable[..., None], int]] = {"native": (to_native, 2), "apart": (apart, 3)}
    verbs["original"] = (to_original, 3)
    verb, *folders = arguments or [""]
    if verb not in verbs or len(folders) != verbs[verb][1]:
        raise SystemExit(__doc__)
    try:
        verbs[verb][0](*map(Path, folders))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
