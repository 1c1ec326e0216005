"""One pass of an encoder, of which long audio takes many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

Out = TypeVar("Out")


def in_pass(run: Callable[..., Out], *given: Any) -> Out:
    """`run(*given)`. Where it is learned from, its activations are not kept: the backward pass computes them again.

    So memory is that of one pass, however many there are. Encoders run without dropout: the second time is the first.
    """
    if not torch.is_grad_enabled():
        return run(*given)
    return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
