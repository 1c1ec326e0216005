"""Float32 values and Adam's moments of what a DeepSpeed rank learns: put together from all ranks, and taken apart.

All ranks call the same methods in the same order. DeepSpeed keeps one flat tensor for each group of parameters, a part
of it on each rank, and makes the moments at the first update: a learner that is restored before it makes them itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


@dataclass(frozen=True)
class Shards:
    optimizer: Any  # DeepSpeed's around the one that updates; under ZeRO 0 that one itself
    zero: int

    @property
    def _adam(self) -> torch.optim.Optimizer:
        return self.optimizer.optimizer if self.zero else self.optimizer

    def _flat(self) -> list[Tensor]:
        """What the optimizer that updates holds its state of."""
        if self.zero == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        if self.zero:
            return list(self.optimizer.single_partition_of_fp32_groups)
        return [value for group in self.optimizer.param_groups for value in group["params"]]

    def updates(self) -> int:
        """How often the parameters were updated."""
        return max((int(self._adam.state[part]["step"]) for part in self._flat() if self._adam.state[part]), default=0)

    def begin(self, updates: int) -> None:
        """Moments of zero after so many updates; none where there was no update. `put_moment` fills them."""
        for part in self._flat():
            self._adam.state.pop(part, None)
            if updates:
                is_torch = isinstance(self._adam, torch.optim.AdamW)
                self._adam.state[part] = {
                    "step": torch.tensor(float(updates)) if is_torch else updates,
                    "exp_avg": torch.zeros_like(part),
                    "exp_avg_sq": torch.zeros_like(part),
                }
        if self.zero in (1, 2):
            self.optimizer._hp_optimizer_states_linked = False
            if updates:
                self.optimizer._lazy_init_hp_params_optimizer_state()

    def value(self, parameter: nn.Parameter) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter) if self.zero else parameter.detach().float()

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, name) if self.zero else self._adam.state[parameter][name]

    def put(self, parameter: nn.Parameter, value: Tensor) -> None:
        """The float32 value, and the one that the model computes with."""
        if self.zero == 3:
            import deepspeed
            from deepspeed.utils import safe_set_local_fp32_param

            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.data.copy_(value)
            safe_set_local_fp32_param(parameter, _part(parameter, value))
            return
        if self.zero:
            from deepspeed.utils import safe_set_full_fp32_param

            safe_set_full_fp32_param(parameter, value)
        parameter.data.copy_(value)

    def put_moment(self, parameter: nn.Parameter, name: str, value: Tensor) -> None:
        if self.zero == 3:
            from deepspeed.utils import safe_set_local_optimizer_state

            safe_set_local_optimizer_state(parameter, _part(parameter, value), name)
        elif self.zero:
            from deepspeed.utils import safe_set_full_optimizer_state

            safe_set_full_optimizer_state(parameter, value, name)
        else:
            self._adam.state[parameter][name].copy_(value)


def _part(parameter: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole value; the last one's is padded: DeepSpeed 0.19's safe_set_full_* cannot do that."""
    size, rank = parameter.ds_tensor.ds_numel, torch.distributed.get_rank()
    flat = value.flatten()
    return pad(flat, (0, max(0, size * (rank + 1) - len(flat))))[size * rank : size * (rank + 1)]
