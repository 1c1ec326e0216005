"""The tiny pair, assembled once into the cache: the student `tiny`, the text teacher `tiny-llm`, and `tiny-llm-split`.

The last is the same network behind a tokenizer with the first MERGES_KEPT of its 48,900 merges: a teacher that reads
the same text in other tokens. Its vocabulary, and so the network, is whole; it never meets what the lost merges made.

The student is Whisper tiny.en's encoder, a projector and SmolLM2-135M-Instruct, in the architecture AudioFlamingo3,
which transformers and vLLM both load. A Llama is a Qwen2 whose q, k and v biases are zero.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
)

from rlspeech.cache import cache_dir
from rlspeech.embedded import whisper_tiny
from rlspeech.embedded.smollm2 import load_smollm2
from rlspeech.embedded.wheels import file_sha256
from rlspeech.errors import UserError

log = logging.getLogger(__name__)

VERSION = 1  # part of the folders' names: raise it where what is assembled changes
SEED = 0  # of the projector
MERGES_KEPT = 16_000
SOUND = "<sound>"
END_TOKEN_ID = 2  # <|im_end|>
LONGEST_AUDIO_S = 600
HASHES = "sha256.json"
MARK = "rlspeech.json"  # tells which file under students/ a folder belongs to
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}"
    "{% elif 'audio' in c['type'] %}<sound>{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# transformers' parameter names and the published ones, which vLLM reads. transformers 5.19 writes a freshly built
# model as language_model.model.model.*, which vLLM cannot load: hence a writer of our own.
PUBLISHED = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.audio_tower.": "audio_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def published_name(parameter: str) -> str:
    """
    >>> published_name("model.audio_tower.conv1.weight")
    'audio_tower.conv1.weight'
    """
    for ours, theirs in PUBLISHED.items():
        if parameter.startswith(ours):
            return theirs + parameter.removeprefix(ours)
    return parameter


@cache
def student_folder() -> Path:
    """The untrained student. Its projector is random: `rlspeech align` comes first."""
    return _assembled(f"tiny-{VERSION}", _assemble_student)


@cache
def teacher_folder() -> Path:
    """SmolLM2-135M-Instruct with its own chat template."""
    return _assembled(f"tiny-llm-{VERSION}", _assemble_teacher)


@cache
def split_teacher_folder() -> Path:
    """SmolLM2-135M-Instruct behind a tokenizer that has lost merges."""
    return _assembled(f"tiny-llm-split-{VERSION}", _assemble_split_teacher)


FOLDERS = {"tiny": student_folder, "tiny-llm": teacher_folder, "tiny-llm-split": split_teacher_folder}


def write_published(folder: Path, model: AudioFlamingo3ForConditionalGeneration, state: Mapping[str, Tensor]) -> None:
    """Config, generation config and weights under published names, into an existing folder.

    The names of `state` are the model's own or published already.
    """
    model.config.architectures = [type(model).__name__]
    model.config.dtype = next(iter(state.values())).dtype
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tensors = {published_name(name): value.detach().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _assembled(name: str, assemble: Callable[[Path], None]) -> Path:
    folder = cache_dir() / "models" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{name}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not folder.exists():
            _write_beside(folder, assemble)
    _check_hashes(folder)
    return folder


def _write_beside(folder: Path, assemble: Callable[[Path], None]) -> None:
    log.info("assembling %s (once)", folder)
    beside = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        assemble(beside)
        hashes = {path.name: file_sha256(path) for path in sorted(beside.iterdir())}
        (beside / HASHES).write_text(json.dumps(hashes, indent=1))
        beside.chmod(0o755)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _check_hashes(folder: Path) -> None:
    remedy = f"delete the folder {folder} and run again: it is assembled anew"
    try:
        hashes = json.loads((folder / HASHES).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / HASHES}: cannot be read; {remedy}") from error
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file() or file_sha256(path) != expected:
            raise UserError(f"{path}: damaged (its SHA-256 is not the recorded one); {remedy}")


def _assemble_teacher(folder: Path) -> None:
    model, tokenizer = load_smollm2()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=END_TOKEN_ID, pad_token_id=END_TOKEN_ID)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _assemble_split_teacher(folder: Path) -> None:
    whole = teacher_folder()
    for path in whole.iterdir():
        if path.suffix == ".safetensors":
            _link(path, folder / path.name)
        elif path.name != HASHES:
            shutil.copy(path, folder)
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    state["model"]["merges"] = state["model"]["merges"][:MERGES_KEPT]
    file.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")


def _link(file: Path, to: Path) -> None:
    """One file of weights under two names; a copy where the file system has no links."""
    try:
        to.hardlink_to(file)
    except OSError:
        shutil.copy(file, to)


def _assemble_student(folder: Path) -> None:
    lm = LlamaForCausalLM.from_pretrained(teacher_folder(), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(teacher_folder())
    tokenizer.add_special_tokens({"additional_special_tokens": [SOUND]})
    tokenizer.chat_template = CHAT_TEMPLATE
    model = _join(lm, tokenizer)
    write_published(folder, model, model.state_dict())
    extractor = WhisperFeatureExtractor(feature_size=whisper_tiny.MEL_BINS)
    processor = AudioFlamingo3Processor(
        extractor, tokenizer, chat_template=CHAT_TEMPLATE, max_audio_len=LONGEST_AUDIO_S
    )
    processor.save_pretrained(folder)
    (folder / MARK).write_text(json.dumps({"family": "tiny"}))


def _join(lm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> AudioFlamingo3ForConditionalGeneration:
    sound_id = tokenizer.convert_tokens_to_ids(SOUND)
    model = AudioFlamingo3ForConditionalGeneration(_config(lm.config, sound_id))
    model.model.audio_tower.load_state_dict(whisper_tiny.encoder_state())
    state = lm.model.state_dict()
    embeddings = state["embed_tokens.weight"]
    new = embeddings.mean(0, keepdim=True).expand(sound_id + 1 - len(embeddings), -1)
    state["embed_tokens.weight"] = embeddings = torch.cat([embeddings, new])
    loaded = model.model.language_model.load_state_dict(state, strict=False)
    if loaded.unexpected_keys or not all(name.endswith("_proj.bias") for name in loaded.missing_keys):
        raise RuntimeError(f"SmolLM2 does not fit a Qwen2: {loaded}")
    with torch.no_grad():
        for name in loaded.missing_keys:
            model.model.language_model.get_parameter(name).zero_()
        model.lm_head.weight.copy_(embeddings)
    _initialise_projector(model, scale=float(embeddings.std()))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=END_TOKEN_ID, pad_token_id=END_TOKEN_ID)
    return model.eval()


def _config(lm: Any, sound_id: int) -> AudioFlamingo3Config:
    audio = {
        "num_mel_bins": whisper_tiny.MEL_BINS,
        "hidden_size": whisper_tiny.HIDDEN,
        "num_hidden_layers": whisper_tiny.LAYERS,
        "num_attention_heads": whisper_tiny.HEADS,
        "intermediate_size": 4 * whisper_tiny.HIDDEN,
        "max_source_positions": whisper_tiny.POSITIONS,
    }
    same = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
    ]
    text = {name: getattr(lm, name) for name in same} | {
        "model_type": "qwen2",
        "vocab_size": sound_id + 1,
        "bos_token_id": 1,
        "eos_token_id": END_TOKEN_ID,
        "pad_token_id": END_TOKEN_ID,
        "tie_word_embeddings": False,
    }
    return AudioFlamingo3Config(
        audio_token_id=sound_id, tie_word_embeddings=False, audio_config=audio, text_config=text
    )


def _initialise_projector(model: AudioFlamingo3ForConditionalGeneration, scale: float) -> None:
    """So that its outputs begin at the scale of the token embeddings (0.6 is a GELU's output scale)."""
    projector = model.model.multi_modal_projector
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for layer, gain in ((projector.linear_1, 1.0), (projector.linear_2, scale / 0.6)):
            layer.weight.normal_(0, gain * layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
