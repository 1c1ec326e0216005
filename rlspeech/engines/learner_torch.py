"""The learner in one process: AdamW on whatever of the student learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech.config import OptimConfig
from rlspeech.engines import learner_state
from rlspeech.engines.kept_values import in_place_of, kept
from rlspeech.engines.learner_state import LearnerState
from rlspeech.engines.measure import PLAIN, Objective, Sums, check_weight, look, measure, on, policy_of, weight_of
from rlspeech.engines.merging import merged_weights
from rlspeech.engines.reply_logprobs import bare, by_rollout
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.protocols import Learned, Loss, Student
from rlspeech.types import TokenBatch


def rate_share(step: int, optim: OptimConfig) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up, then the decay of the schedule."""
    warm = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    done = min(1.0, max(0, step - optim.warmup_steps) / max(1, optim.steps - optim.warmup_steps))
    floor = optim.final_lr_share
    decay = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + cos(pi * done))}[optim.schedule]
    return warm * (floor + (1 - floor) * decay)


def learnable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def parameter_groups(student: Student, optim: OptimConfig) -> list[dict[str, Any]]:
    """What learns, the projector apart, each group with its peak rate."""
    named = learnable(student.model).items()
    projector = [value for name, value in named if student.is_projector(name)]
    others = [value for name, value in named if not student.is_projector(name)]
    peaks = ((projector, optim.projector_lr or optim.lr), (others, optim.lr))
    return [{"params": values, "lr": peak, "peak": peak} for values, peak in peaks if values]


def set_rates(optimizer: Any, step: int, optim: OptimConfig) -> float:
    """Each group's rate at a step; the share of the peaks."""
    share = rate_share(step, optim)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return share


def check_norm(norm: float, step: int) -> None:
    """Raises FloatingPointError where a gradient is infinite or no number, before anything is learned from it."""
    if not isfinite(norm):
        raise FloatingPointError(f"step {step + 1}: the gradient's norm is {norm}; nothing was learned")


@dataclass
class TorchLearner:
    student: Student
    optim: OptimConfig
    optimizer: torch.optim.Optimizer
    objective: Objective = PLAIN
    steps_done: int = 0
    ranks: int = 1
    reference: dict[str, Tensor] | None = None  # see `keep_reference`

    @classmethod
    def of(cls, student: Student, optim: OptimConfig, objective: Objective = PLAIN) -> TorchLearner:
        """An optimizer over the parameters that `student.prepare` has left to learn."""
        optimizer = torch.optim.AdamW(parameter_groups(student, optim), weight_decay=optim.weight_decay)
        return cls(student, optim, optimizer, objective)

    def step(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        """One step on the weighted mean of the loss over all reply tokens of all micro-batches."""
        total = weight_of(batches)
        check_weight(total)
        self.student.model.train()
        sums = Sums()
        for batch in batches:
            placed = on(batch, self.student.head().device)
            seen = look(policy_of(self.student, placed, temperature), placed, loss, self.objective)
            if seen.objective.requires_grad:  # text alone has no gradient where only what hears learns
                (seen.objective / total).backward()
            sums.add(seen)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.optim.max_grad_norm))
        check_norm(norm, self.steps_done)
        share = set_rates(self.optimizer, self.steps_done, self.optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return sums.learned({"train/grad_norm": norm, "train/lr": self.optim.lr * share, "train/tokens": total})

    def evaluate(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        return measure(self.student, batches, loss, temperature=temperature)

    def keep_reference(self) -> None:
        self.reference = kept(learnable(self.student.model), nullcontext)

    @torch.no_grad()
    def logprobs(
        self, batches: Sequence[TokenBatch], *, temperature: float = 1.0, reference: bool = False
    ) -> dict[int, list[float]]:
        self.student.model.eval()
        found: dict[int, list[float]] = {}
        with self._as_kept() if reference else nullcontext():
            for batch in batches:
                placed = on(bare(batch), self.student.head().device)
                policy = policy_of(self.student, placed, temperature)
                values_N = token_logprobs(policy.hidden, policy.head, placed.targets, temperature=temperature)
                found |= by_rollout(batch, values_N)
        return found

    def _as_kept(self) -> AbstractContextManager[None]:
        return in_place_of(learnable(self.student.model), self.reference, nullcontext)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_weights(self.student, learned_only=True)

    def export(self, folder: Path) -> None:
        self.student.save(folder, dict(merged_weights(self.student)))

    def save(self, folder: Path) -> None:
        named = learnable(self.student.model)
        moments = {name: self.optimizer.state[value] for name, value in named.items() if self.optimizer.state[value]}
        state = LearnerState(
            parameters={name: value.detach().float() for name, value in named.items()},
            exp_avg={name: found["exp_avg"] for name, found in moments.items()},
            exp_avg_sq={name: found["exp_avg_sq"] for name, found in moments.items()},
            updates={name: int(found["step"]) for name, found in moments.items()},
            random=[learner_state.random_state()],
            steps_done=self.steps_done,
        )
        learner_state.write(folder, state)

    def restore(self, folder: Path) -> None:
        """The state of a learner of any kind and any number of ranks."""
        state = learner_state.read(folder)
        with torch.no_grad():
            for name, value in learnable(self.student.model).items():
                value.copy_(state.parameters[name])
                self.optimizer.state.pop(value, None)
                if name in state.updates:
                    self.optimizer.state[value] = {
                        "step": torch.tensor(float(state.updates[name])),
                        "exp_avg": state.exp_avg[name].to(value),
                        "exp_avg_sq": state.exp_avg_sq[name].to(value),
                    }
        learner_state.set_random_state(state, rank=0)
        self.steps_done = state.steps_done

    def restart(self) -> None:
        """A learner in the process of its stage is lost with it: there is nothing to begin anew."""
        raise RuntimeError("a learner in this process cannot be lost and started again")
