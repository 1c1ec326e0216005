"""Cross-entropy of the reply as written: the loss of align and sft."""

from dataclasses import dataclass

from torch import Tensor

from rlspeech.maths.logprobs import smoothed_cross_entropy
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Loss:
    """(1 - s) (-log q[y]) + s mean_v (-log q[v]), minimised; s is the label smoothing (arXiv 1512.00567, section 7)."""

    label_smoothing: float = 0.0  # in 0..1

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in 0..1, got {self.label_smoothing}")

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `nll_nats` -log q[y], `correct` 1 where the likeliest token is the target."""
        loss_N, nll_N, correct_N = smoothed_cross_entropy(
            policy.hidden,
            policy.head,
            batch.targets,
            label_smoothing=self.label_smoothing,
            temperature=policy.temperature,
            weights_N=batch.weights,
        )
        return loss_N, {"nll_nats": nll_N, "correct": correct_N}
