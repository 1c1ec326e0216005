"""Generalised Jensen-Shannon divergence to the teacher."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from rlspeech.maths.distill import Tail, jsd_from_logprobs
from rlspeech.maths.divergence import check_tail, divergence
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Loss:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, minimised (GKD, arXiv 2306.13649, eq. 1).

    q is the student, p the teacher. Bounded by log 2; near the ends it is (as beta -> 0) beta
    times the forward and (as beta -> 1) 1 - beta times the reverse KL. Over the full vocabulary where the teacher gives
    it, both at the stage's temperature; else over the teacher's top tokens as served, the temperature being the
    student's alone.
    """

    beta: float = 0.5  # in 0..1, ends excluded: they are the losses forward_kl and reverse_kl
    tail: Tail = "bucket"  # what a list of top tokens is compared with besides: one bucket for the rest, or nothing

    def __post_init__(self) -> None:
        check_tail(self.tail)
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be above 0 and below 1, got {self.beta}")

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `kl_nats` KL(q || p), `extra_mass` the student's probability outside the ids that are compared."""
        found = divergence(policy, batch, partial(jsd_from_logprobs, beta=self.beta), tail=self.tail)
        return found.nats, {"kl_nats": found.reverse_kl, "extra_mass": found.extra_mass}
