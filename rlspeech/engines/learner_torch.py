"""The learner in one process: AdamW on whatever of the student learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlspeech.config import OptimConfig
from rlspeech.engines.measure import Sums, measure, policy_of
from rlspeech.engines.merging import merged_weights
from rlspeech.protocols import Learned, Loss, Student
from rlspeech.types import TokenBatch


def rate_share(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then the decay of the schedule."""
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    done = min(1.0, max(0, step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps))
    floor = optim.final_lr_share
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + cos(pi * done))}[optim.schedule]
    return warm * (floor + (1 - floor) * decay)


@dataclass
class TorchLearner:
    student: Student
    optim: OptimConfig
    optimizer: torch.optim.Optimizer
    steps_done: int = 0

    @classmethod
    def of(cls, student: Student, optim: OptimConfig) -> TorchLearner:
        """An optimizer over the parameters that `student.prepare` has left to learn."""
        named = list(learnable(student.model).items())
        projector = [value for name, value in named if student.is_projector(name)]
        others = [value for name, value in named if not student.is_projector(name)]
        peaks = ((projector, optim.projector_lr or optim.lr), (others, optim.lr))
        groups = [{"params": values, "lr": peak, "peak": peak} for values, peak in peaks if values]
        return cls(student, optim, torch.optim.AdamW(groups, weight_decay=optim.weight_decay))

    def step(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        """One step on the weighted mean of the loss over all reply tokens of all micro-batches."""
        self.student.model.train()
        sums = Sums(batches)
        for batch in batches:
            policy = policy_of(self.student, batch, temperature)
            loss_N, metrics_N = loss(policy, batch)
            sums.mean(loss_N, batch).backward()
            sums.add(policy, batch, {"loss": loss_N.detach(), **metrics_N})
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.optim.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"step {self.steps_done + 1}: the gradient's norm is {float(norm)}; nothing was learned"
            )
        share = rate_share(self.steps_done, self.optim)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        own = {"train/grad_norm": float(norm), "train/lr": self.optim.lr * share, "train/tokens": sums.total}
        return Learned(sums.metrics() | own, sums.token_kl_nats)

    def evaluate(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        return measure(self.student, batches, loss, temperature=temperature)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.student, learned_only=True)

    def export(self, folder: Path) -> None:
        self.student.save(folder, dict(merged_weights(self.student)))

    def save(self, folder: Path) -> None:
        """Safetensors and JSON-like numbers only: nothing in the folder can run code when it is read."""
        tensors = {f"parameter.{name}": value.detach() for name, value in learnable(self.student.model).items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["random"] = torch.get_rng_state()
        tensors["steps_done"] = torch.tensor(self.steps_done)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "learner.safetensors")

    def restore(self, folder: Path) -> None:
        tensors = load_file(folder / "learner.safetensors")
        with torch.no_grad():
            for name, value in learnable(self.student.model).items():
                value.copy_(tensors[f"parameter.{name}"])
        state = self.optimizer.state_dict()
        state["state"] = _optimizer_state(tensors)
        self.optimizer.load_state_dict(state)
        torch.set_rng_state(tensors["random"])
        self.steps_done = int(tensors["steps_done"])


def learnable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def _optimizer_state(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Any]]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    return state
