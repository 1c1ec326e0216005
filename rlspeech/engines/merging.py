"""The weights of a student as they are published: adapters added to the matrices they adapt, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from rlspeech.protocols import Student

Gathered = Callable[[Sequence[Tensor]], AbstractContextManager[Any]]  # inside, the parameters are whole on every rank
ADAPTER = "default"  # PEFT's name of an adapter that was given none


def whole(parameters: Sequence[Tensor]) -> AbstractContextManager[Any]:
    """For a model that no other process holds parts of."""
    return nullcontext()


def merged_weights(
    student: Student, *, gathered: Gathered = whole, learned_only: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Published names and values; with `learned_only`, the adapted matrices and the other parameters that learn.

    A sum is taken in float32 and has the dtype of its base. A parameter that no adapter touches is given itself; where
    it had to be gathered, a copy. Of tied weights the first name is given. With `gathered` that is a collective, all
    ranks run through this together.
    """
    adapted, adapters = _adapted(student.model)
    given: set[int] = set()
    for name, value in student.model.state_dict(keep_vars=True).items():
        if name in adapters or id(value) in given:
            continue
        given.add(id(value))
        layer = adapted.get(name)
        if learned_only and layer is None and not value.requires_grad:
            continue
        published = student.published_name(name.replace(".base_layer.", "."))
        with gathered([value] if layer is None else list(layer.parameters())):
            found = value.detach() if layer is None else _sum(layer)
            if layer is None and gathered is not whole:
                found = found.clone()
        yield published, found


def _adapted(model: nn.Module) -> tuple[dict[str, nn.Module], set[str]]:
    """PEFT's layers by the name of the matrix that each adapts, and the names of the adapters' own parameters."""
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    own = {
        f"{name}.{inner}"
        for name, module in layers.items()
        for inner in module.state_dict(keep_vars=True)
        if not inner.startswith("base_layer.")
    }
    return {f"{name}.base_layer.weight": module for name, module in layers.items()}, own


def _sum(layer: Any) -> Tensor:
    base = layer.base_layer.weight.detach()
    return (base.float() + layer.get_delta_weight(ADAPTER).detach().float()).to(base.dtype)
