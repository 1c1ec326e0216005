"""Generalised Jensen-Shannon divergence to the teacher over the full vocabulary."""

from dataclasses import dataclass

from torch import Tensor

from rlspeech.maths.distill import jsd
from rlspeech.maths.packing import required
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Loss:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, minimised (GKD, arXiv 2306.13649, eq. 1).

    q is the student, p the teacher, with the same tokenizer and the same temperature. Bounded by log 2; near the ends
    it is (as beta -> 0) beta times the forward and (as beta -> 1) 1 - beta times the reverse KL.
    """

    beta: float = 0.5  # in 0..1, ends excluded: they are the losses forward_kl and reverse_kl

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be above 0 and below 1, got {self.beta}")

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `kl_nats` KL(q || p), `extra_mass` the student's probability of ids the teacher does not have."""
        divergence = jsd(
            policy.hidden,
            policy.head,
            required(batch, "teacher_hidden"),
            required(batch, "teacher_head"),
            beta=self.beta,
            temperature=policy.temperature,
        )
        return divergence.nats, {"kl_nats": divergence.reverse_kl, "extra_mass": divergence.extra_mass}
