"""One rank of a DeepSpeed learner, in a process of its own: ZeRO 0 to 3, offloading, bfloat16 or float32.

The caller sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT first. All ranks call the same methods in the
same order: most of them are collectives. N reply tokens, V vocabulary, D hidden size.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlspeech.config import OptimConfig
from rlspeech.config_engines import DeepspeedConfig
from rlspeech.engines import learner_state
from rlspeech.engines.deepspeed_state import Shards
from rlspeech.engines.kept_values import in_place_of, kept
from rlspeech.engines.learner_state import MOMENTS, LearnerState
from rlspeech.engines.learner_torch import check_norm, learnable, parameter_groups, set_rates
from rlspeech.engines.measure import PLAIN, Look, Objective, Sums, check_weight, hidden_of, look, on, weight_of
from rlspeech.engines.merging import merged_weights, whole
from rlspeech.engines.reply_logprobs import TOLD, Told, bare, by_rollout
from rlspeech.protocols import Learned, Loss, Student
from rlspeech.types import Policy, TokenBatch

SMALL = 100_000  # elements: under ZeRO 3, a parameter of up to this size stays whole on every rank


@dataclass(frozen=True)
class Pass:
    """What one forward pass is about, besides its batch."""

    loss: Loss
    temperature: float
    objective: Objective


class Scorer(nn.Module):
    """The loss of hidden states. Under ZeRO 3 the output projection is gathered while it runs, forward and backward.

    DeepSpeed follows tensors alone, so the sum to be minimised is returned and the rest is left in `seen`.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.head = student.head
        self.seen: Look | None = None

    def forward(self, hidden_ND: Tensor, batch: TokenBatch, how: Pass) -> Tensor:
        policy = Policy(hidden_ND, self.head(), how.temperature)
        seen = look(policy, batch, how.loss, how.objective)
        self.seen = replace(seen, objective=seen.objective.detach())
        return seen.objective


class Whole(nn.Module):
    """A micro-batch to its summed loss, in one forward pass, as DeepSpeed wants it."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.model = student.model
        self.hidden = lambda batch: hidden_of(student, batch)
        self.scorer = Scorer(student)

    def forward(self, batch: TokenBatch, how: Pass) -> Tensor:
        return self.scorer(self.hidden(batch), batch, how)


def _largest(count: int) -> int:
    """Over all ranks."""
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    found = torch.tensor(count, device=device)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)


@dataclass
class DeepspeedRank:
    student: Student
    optim: OptimConfig
    engine: Any
    zero: int
    objective: Objective
    on_progress: Callable[[], None]  # called after every micro-batch
    steps_done: int = 0
    reference: dict[str, Tensor] | None = None  # see `keep_reference`

    @classmethod
    def start(
        cls,
        student: Student,
        optim: OptimConfig,
        settings: DeepspeedConfig,
        *,
        meeting: str | None = None,
        objective: Objective = PLAIN,
        on_progress: Callable[[], None] = lambda: None,
        small: int = SMALL,
    ) -> DeepspeedRank:
        """A rank that learns what `student.prepare` has left to learn; its values are the same on all ranks.

        `meeting`: where the ranks find one another, as torch.distributed's init_method; default: MASTER_ADDR and
        MASTER_PORT.
        """
        deepspeed = _joined(meeting)
        half = next(student.model.parameters()).dtype == torch.bfloat16
        # DeepSpeed's bfloat16 without ZeRO shards its float32 states as ZeRO 1 does, by older code: the two are one.
        zero = max(1, settings.zero) if half else settings.zero
        if settings.activation_checkpointing:
            student.decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # Ranks meet wherever parameters are gathered or gradients are summed: none may skip tower and projector there.
        student.always_encode = zero == 3 or _audio_learns(student)
        if zero == 3:
            student.most_passes = _largest
        module = Whole(student)
        given = engine_settings(optim, settings, zero=zero, half=half, small=small)
        engine, *_ = deepspeed.initialize(model=module, optimizer=_adam(student, optim, settings), config=given)
        if zero in (1, 2):
            engine.optimizer.check_grad_overflow = True  # in float32 too, a gradient that is no number moves nothing
        if zero == 3:
            deepspeed.zero.register_external_parameter(module.scorer, student.head())
        return cls(student, optim, engine, zero, objective, on_progress)

    def step(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        """One step on the weighted mean of the loss over the reply tokens of all ranks.

        The ranks have equally many micro-batches. Raises FloatingPointError on all of them where the gradient is
        infinite or no number; nothing is learned then.
        """
        total = self._over_ranks(weight_of(batches))
        check_weight(total)
        self.engine.train()
        how = Pass(loss, temperature, self.objective)
        sums = Sums()
        scale = torch.distributed.get_world_size() / total  # DeepSpeed divides the sum of gradients by the ranks
        for number, batch in enumerate(batches, 1):
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            placed = on(batch, self.engine.device)
            self.engine.backward(self.engine(placed, how) * scale)
            sums.add(self._seen())
            self.on_progress()
        share = set_rates(self.engine.optimizer, self.steps_done, self.optim)
        norm = self._update()
        self.steps_done += 1
        more = {"train/grad_norm": norm, "train/lr": self.optim.lr * share, "train/tokens": total}
        return _joined_sums(sums).learned(more)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[TokenBatch], loss: Loss, *, temperature: float = 1.0) -> Learned:
        """The same means without learning."""
        check_weight(self._over_ranks(weight_of(batches)))
        self.engine.eval()
        sums = Sums()
        for batch in batches:
            placed = on(batch, self.engine.device)
            self.engine(placed, Pass(loss, temperature, PLAIN))
            sums.add(self._seen())
            self.on_progress()
        return _joined_sums(sums).learned()

    def keep_reference(self) -> None:
        self.reference = kept(learnable(self.student.model), self._writable)

    @torch.no_grad()
    def logprobs(
        self, batches: Sequence[TokenBatch], *, temperature: float = 1.0, reference: bool = False
    ) -> dict[int, list[float]]:
        """Of the replies of all ranks."""
        self.engine.eval()
        found: dict[int, list[float]] = {}
        with self._as_kept() if reference else nullcontext():
            for batch in batches:
                self.engine(on(bare(batch), self.engine.device), Pass(Told(), temperature, PLAIN))
                found |= by_rollout(batch, self._seen().metrics[TOLD])
                self.on_progress()
        return {rollout: values for one in _from_all(found) for rollout, values in one.items()}

    def weights(self, *, learned_only: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Published names and merged values: see `merged_weights`."""
        return merged_weights(self.student, gathered=self._gathered, learned_only=learned_only)

    def publish(self, folder: Path, bucket_bytes: int) -> Iterator[Path]:
        """The weights as safetensors files of about `bucket_bytes`, each written by rank 0 when it is asked for."""
        bucket: dict[str, Tensor] = {}
        size = number = 0
        for name, value in self.weights():
            bucket |= {name: value} if is_first() else {}
            size += value.nbytes
            if size >= bucket_bytes:
                yield _written(folder / f"{number}.safetensors", bucket)
                bucket, size, number = {}, 0, number + 1
        if size:
            yield _written(folder / f"{number}.safetensors", bucket)

    def export(self, folder: Path) -> None:
        """The model as `Student.save` writes it, by rank 0 into an existing folder."""
        kept = {name: value.cpu() for name, value in self.weights(learned_only=False) if is_first()}
        with self._gathered(self._adapter()):
            if is_first():
                self.student.save(folder, kept)

    def export_adapter(self, folder: Path) -> None:
        """The adapter as `Student.save_adapter` writes it, and what learns besides in a file of its own, by rank 0."""
        others = {name: value for name, value in learnable(self.student.model).items() if ".lora_" not in name}
        with self._gathered([*self._adapter(), *others.values()]):
            if is_first():
                self.student.save_adapter(folder)
                named = {self.student.published_name(name): value.detach() for name, value in others.items()}
                if named:
                    _written(folder / "others.safetensors", named)

    def save(self, folder: Path) -> None:
        """What any learner restores from, by rank 0."""
        shards, first = Shards(self.engine.optimizer, self.zero), is_first()
        updates = shards.updates()
        parts: dict[str, dict[str, Tensor]] = {"value": {}, **{moment: {} for moment in MOMENTS if updates}}
        for name, parameter in learnable(self.student.model).items():
            for part, held in parts.items():
                found = shards.value(parameter) if part == "value" else shards.moment(parameter, part)
                held |= {name: found.cpu()} if first else {}
        random = _from_all(learner_state.random_state())
        if first:
            counts = dict.fromkeys(parts["value"], updates) if updates else {}
            moments = [parts.get(moment, {}) for moment in MOMENTS]
            state = LearnerState(parts["value"], *moments, updates=counts, random=random, steps_done=self.steps_done)
            learner_state.write(folder, state)

    def restore(self, folder: Path) -> None:
        """The state of a learner of any kind and any number of ranks; every rank reads it."""
        state = learner_state.read(folder)
        shards = Shards(self.engine.optimizer, self.zero)
        shards.begin(max(state.updates.values(), default=0))
        for name, parameter in learnable(self.student.model).items():
            shards.put(parameter, state.parameters[name].to(self.engine.device))
            for moment, values in zip(MOMENTS, (state.exp_avg, state.exp_avg_sq), strict=True):
                if name in values:
                    shards.put_moment(parameter, moment, values[name].to(self.engine.device))
        learner_state.set_random_state(state, rank=torch.distributed.get_rank())
        self.steps_done = state.steps_done

    def _update(self) -> float:
        """Clips, updates, and returns the gradient's norm before it was clipped."""
        if self.zero:
            self.engine.step()
            norm = torch.inf if self.engine.optimizer.overflow else float(self.engine.get_global_grad_norm())
            check_norm(norm, self.steps_done)
            return norm
        learning = list(learnable(self.student.model).values())
        norm = float(nn.utils.clip_grad_norm_(learning, self.optim.max_grad_norm))
        if not isfinite(norm):
            self.engine.zero_grad()
        check_norm(norm, self.steps_done)
        self.engine.step()
        return norm

    def _seen(self) -> Look:
        return self.engine.module.scorer.seen

    def _over_ranks(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.engine.device)
        torch.distributed.all_reduce(total)
        return float(total)

    def _gathered(self, parameters: Sequence[Tensor]) -> AbstractContextManager[Any]:
        if self.zero < 3:
            return whole(parameters)
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(parameters))

    def _writable(self, parameter: nn.Parameter) -> AbstractContextManager[Any]:
        """Under ZeRO 3 what rank 0 writes is what all have."""
        if self.zero < 3:
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)

    def _as_kept(self) -> AbstractContextManager[None]:
        return in_place_of(learnable(self.student.model), self.reference, self._writable)

    def _adapter(self) -> list[Tensor]:
        return [value for name, value in self.student.model.named_parameters() if ".lora_" in name]


def engine_settings(
    optim: OptimConfig, settings: DeepspeedConfig, *, zero: int, half: bool, small: int
) -> dict[str, Any]:
    """DeepSpeed's configuration. Accumulation, rates and the count of tokens are ours, without ZeRO clipping too."""
    sharding: dict[str, Any] = {"stage": zero, "stage3_param_persistence_threshold": small}
    if settings.offload_optimizer and zero:
        sharding["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if settings.offload_parameters and zero == 3:
        sharding["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm if zero else 0.0,
        "bf16": {"enabled": half},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": sharding,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _adam(student: Student, optim: OptimConfig, settings: DeepspeedConfig) -> torch.optim.Optimizer:
    """DeepSpeed's own on the host of a GPU (it builds it for minutes, once); where all is on a CPU, torch's does."""
    groups = parameter_groups(student, optim)
    if settings.offload_optimizer and torch.cuda.is_available():
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, weight_decay=optim.weight_decay, adamw_mode=True)
    return torch.optim.AdamW(groups, weight_decay=optim.weight_decay)


def _audio_learns(student: Student) -> bool:
    """Whether anything learns besides the language model and its output projection."""
    language = {id(value) for value in student.decoder.parameters()} | {id(student.head())}
    return any(id(value) not in language for value in learnable(student.model).values())


def _joined(meeting: str | None) -> Any:
    """DeepSpeed, with the process group of all ranks: it is to be there before a configuration is read."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # On a CPU, DeepSpeed compiles a collective for shared memory at its start, for 90 s and with a C++ compiler. gloo
    # does without. Remove this when DeepSpeed has a switch for it.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    deepspeed.init_distributed(
        init_method=meeting, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]), verbose=False
    )
    return deepspeed


def is_first() -> bool:
    return torch.distributed.get_rank() == 0


def _from_all(value: Any) -> list[Any]:
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found


def _joined_sums(sums: Sums) -> Sums:
    joined = Sums()
    for one in _from_all(sums):
        joined.join(one)
    return joined


def _written(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    if is_first():
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path
