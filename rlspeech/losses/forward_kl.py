"""Forward KL to the teacher over the full vocabulary: mass-covering."""

from dataclasses import dataclass

from torch import Tensor

from rlspeech.maths.distill import forward_kl
from rlspeech.maths.packing import required
from rlspeech.types import Policy, TokenBatch


@dataclass(frozen=True)
class Loss:
    """KL(p || q) = sum_v p(v) [log p(v) - log q(v)] at every token, minimised (GKD, arXiv 2306.13649).

    q is the student, p the teacher, with the same tokenizer and the same temperature.
    """

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics: `kl_nats` KL(q || p), `extra_mass` the student's probability of ids the teacher does not have."""
        divergence = forward_kl(
            policy.hidden,
            policy.head,
            required(batch, "teacher_hidden"),
            required(batch, "teacher_head"),
            temperature=policy.temperature,
        )
        return divergence.nats, {"kl_nats": divergence.reverse_kl, "extra_mass": divergence.extra_mass}
