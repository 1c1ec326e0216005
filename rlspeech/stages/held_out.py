"""The divergence from the teacher on held-out recordings, on replies that the student samples to them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import Engines
from rlspeech.losses.reverse_kl import Loss
from rlspeech.protocols import Learned, Sampling, Student, Teacher
from rlspeech.stages.hearing import Heard, flat
from rlspeech.types import Rollout, TokenBatch

Evaluate = Callable[[Sequence[TokenBatch], Loss], Learned]  # Learner.evaluate, or measure of a student
SEED = 20_250_919  # the same draws at every measurement


@dataclass(frozen=True)
class HeldOut:
    """Held-out recordings by the name of their set."""

    sets: Mapping[str, Sequence[Heard]]
    max_tokens: int
    micro_batch: int
    micro_batch_tokens: int | None

    def measure(self, engines: Engines, *, version: int) -> dict[str, float]:
        """KL(student || teacher) in nats at temperature 1, for each set: per token, and per byte of the replies.

        Over the full vocabulary; over the teacher's top tokens and one bucket of the rest where it tells no more; of a
        teacher with another tokenizer, where a span has several tokens, sampled. Per byte, figures of teachers with
        different tokenizers can be compared.
        """
        engines.rollouts.load_weights(engines.learner, version)
        found: dict[str, float] = {}
        for name, recordings in self.sets.items():
            found[f"kl/{name}_nats"], found[f"kl/{name}_nats_per_byte"] = self._kl_nats(engines, recordings)
        return found

    def _kl_nats(self, engines: Engines, recordings: Sequence[Heard]) -> tuple[float, float]:
        assert engines.teacher is not None
        sampling = Sampling(max_tokens=self.max_tokens, temperature=1.0, seed=SEED)
        rollouts = engines.rollouts.generate(*flat(recordings), sampling)
        learner = engines.learner
        measured = divergence(
            engines.teacher,
            learner.student,
            rollouts,
            learner.evaluate,
            micro_batch=self.micro_batch,
            micro_batch_tokens=self.micro_batch_tokens,
            ranks=learner.ranks,
        )
        nats = sum(sum(values) for values in measured.token_kl_nats.values())
        written = sum(len(rollout.completion.text.encode()) for rollout in rollouts)
        return measured.metrics["kl/train_nats"], nats / max(1, written)


def divergence(
    teacher: Teacher,
    student: Student,
    rollouts: Sequence[Rollout],
    evaluate: Evaluate,
    *,
    micro_batch: int,
    micro_batch_tokens: int | None = None,
    ranks: int = 1,
) -> Learned:
    """KL(student || teacher) at every token of given replies, at temperature 1."""
    scored = teacher.score([r.sample for r in rollouts], [r.completion for r in rollouts])
    batches = make_batches(
        student,
        rollouts,
        micro_batch=micro_batch,
        micro_batch_tokens=micro_batch_tokens,
        scored=scored,
        teacher_head=teacher.head(),
        ranks=ranks,
    )
    return evaluate(batches, Loss())
