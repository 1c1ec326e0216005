"""Reverse KL to the teacher: mode-seeking."""

from dataclasses import dataclass

from torch import Tensor

from rlspeech.maths.distill import Tail, reverse_kl_from_logprobs
from rlspeech.maths.divergence import check_tail, divergence
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Loss:
    """KL(q || p) = sum_v q(v) [log q(v) - log p(v)] at every token, minimised (GKD, arXiv 2306.13649).

    q is the student, p the teacher. Over the full vocabulary where the teacher gives it, both
    at the stage's temperature; else over the teacher's top tokens as served, the temperature being the student's alone.
    """

    tail: Tail = "bucket"  # what a list of top tokens is compared with besides: one bucket for the rest, or nothing

    def __post_init__(self) -> None:
        check_tail(self.tail)

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `kl_nats` KL(q || p), `extra_mass` the student's probability outside the ids that are compared."""
        found = divergence(policy, batch, reverse_kl_from_logprobs, tail=self.tail)
        return found.nats, {"kl_nats": found.reverse_kl, "extra_mass": found.extra_mass}
