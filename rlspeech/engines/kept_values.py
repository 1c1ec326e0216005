"""What a learner had learned when it was asked to keep it: the reference policy of a KL term.

A model with its adapters switched off is not that policy where the projector learns too, or where the adapter is the
model's own (Phi-4-multimodal hears by it). So the values of all that learns are kept, by every rank in its host's
memory, and put in the place of the present ones while the reference is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Writable = Callable[[nn.Parameter], AbstractContextManager[Any]]  # inside, a parameter is whole here and may be written


def kept(parameters: Mapping[str, nn.Parameter], whole: Writable) -> dict[str, Tensor]:
    """Copies on the host. All ranks run through this together."""
    found = {}
    for name, value in parameters.items():
        with whole(value):
            found[name] = value.detach().to("cpu", copy=True)
    return found


@contextmanager
def in_place_of(
    parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor] | None, whole: Writable
) -> Iterator[None]:
    """The parameters have these values while the block runs, and bit for bit their own again after it.

    Raises ValueError where None were kept.
    """
    if values is None:
        raise ValueError("no reference was kept: keep_reference() comes before logprobs(reference=True)")
    present = kept(parameters, whole)
    try:
        _put(parameters, values, whole)
        yield
    finally:
        _put(parameters, present, whole)


def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor], whole: Writable) -> None:
    with torch.no_grad():
        for name, value in parameters.items():
            with whole(value):
                value.copy_(values[name])
