"""Granite Speech's conformer over audio of any length, a part at a time, with the result that it has as a whole.

Its attention stays within blocks of 4 s, but its convolutions reach a few frames over their edges, in every layer: what
is heard goes from block to block. So a layer is run over all parts of the audio before the next one is. Then only
frames are held as long as the audio is, and nothing of what lies within a layer.

F frames (20 ms), H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlspeech.students._passes import in_pass


def encode(tower: Any, features: Tensor, *, blocks_at_once: int) -> Tensor:
    """Encoder output [F, H] of one audio's features [F, 2 * mels]; the tower is transformers' or vLLM's."""
    width = blocks_at_once * tower.config.context_size
    hidden = _by_parts(tower.input_linear, features, width)
    for number, layer in enumerate(tower.layers, 1):
        hidden = _by_parts(lambda part, layer=layer: _attended(tower, layer, part), hidden, width)
        hidden = _convolved(layer, hidden, width)
        if number == tower.num_layers // 2:
            hidden = _by_parts(lambda part: part + _guess(tower, part), hidden, width)
    return hidden


def _by_parts(run: Callable[[Tensor], Tensor], hidden: Tensor, width: int) -> Tensor:
    return torch.cat([in_pass(run, part) for part in hidden.split(width)])


def _attended(tower: Any, layer: Any, part: Tensor) -> Tensor:
    """The first half of a layer over whole blocks; the audio's last one may be shorter."""
    part = 0.5 * layer.ff1(part) + part
    return layer.attn(part[None], attention_dists=tower.attention_dists)[0] + part


def _convolved(layer: Any, hidden: Tensor, width: int) -> Tensor:
    """The other half, each part with the frames beside it that its convolution reaches."""
    before, behind = layer.conv.depth_conv.padding
    parts = []
    for start in range(0, len(hidden), width):
        near, skip = hidden[max(0, start - before) : start + width + behind], min(start, before)
        parts.append(in_pass(_finished, layer, near, slice(skip, skip + len(hidden[start : start + width]))))
    return torch.cat(parts)


def _finished(layer: Any, near: Tensor, part: slice) -> Tensor:
    hidden = layer.conv(near[None])[0, part] + near[part]
    return layer.post_norm(0.5 * layer.ff2(hidden) + hidden)


def _guess(tower: Any, part: Tensor) -> Tensor:
    """What half of the layers make of the letters."""
    return _linear(tower.out_mid, _linear(tower.out, part).softmax(dim=-1))


def _linear(layer: Any, part: Tensor) -> Tensor:
    """vLLM's give their bias beside."""
    out = layer(part)
    return out if isinstance(out, Tensor) else out[0]
