"""The state of a learner on disk: one format, whatever the learner is, its ZeRO stage and its number of ranks.

Safetensors alone: nothing in the folder can run code when it is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlspeech.errors import UserError

FILE = "learner.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LearnerState:
    """What a learner needs to go on. Names are the model's own; values are whole and float32."""

    parameters: Mapping[str, Tensor]  # those that learn
    exp_avg: Mapping[str, Tensor]  # Adam's; of the parameters that were updated
    exp_avg_sq: Mapping[str, Tensor]
    updates: Mapping[str, int]  # how often each was updated
    random: Sequence[Mapping[str, Tensor]]  # of each rank: generator states by the kind of device
    steps_done: int  # also the policy's version and the position in the data: a step is one batch of it


def write(folder: Path, state: LearnerState) -> None:
    """Into an existing folder."""
    tensors = {"steps_done": torch.tensor(state.steps_done), "ranks": torch.tensor(len(state.random))}
    for part, values in (("parameter", state.parameters), ("exp_avg", state.exp_avg), ("exp_avg_sq", state.exp_avg_sq)):
        tensors |= {f"{part}.{name}": value.detach().contiguous() for name, value in values.items()}
    tensors |= {f"updates.{name}": torch.tensor(count) for name, count in state.updates.items()}
    for rank, found in enumerate(state.random):
        tensors |= {f"random.{rank}.{kind}": value for kind, value in found.items()}
    save_file(tensors, folder / FILE)


def read(folder: Path) -> LearnerState:
    """Raises UserError where the folder does not hold such a state."""
    tensors = load_file(folder / FILE)
    if "ranks" not in tensors:
        raise UserError(f"{folder / FILE}: written by another version of rlspeech; start the run anew")

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}

    return LearnerState(
        parameters=part("parameter"),
        exp_avg=part("exp_avg"),
        exp_avg_sq=part("exp_avg_sq"),
        updates={name: int(count) for name, count in part("updates").items()},
        random=[part(f"random.{rank}") for rank in range(int(tensors["ranks"]))],
        steps_done=int(tensors["steps_done"]),
    )


def random_state() -> dict[str, Tensor]:
    """Of this process's generators."""
    found = {"cpu": torch.get_rng_state()}
    return found | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else found


def set_random_state(state: LearnerState, *, rank: int) -> None:
    """A rank that the saved run did not have draws from a seed of its own, which hangs on nothing but rank and step."""
    if rank >= len(state.random):
        torch.manual_seed(state.steps_done * 1_000_003 + rank)
        return
    torch.set_rng_state(state.random[rank]["cpu"])
    if "cuda" in state.random[rank] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.random[rank]["cuda"])
