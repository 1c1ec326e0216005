"""Steps that learn from given answers: the references of a batch of recordings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlspeech.config import Stage
from rlspeech.data.mixing import batch_of_step
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.losses.cross_entropy import Loss
from rlspeech.protocols import Learned, Learner
from rlspeech.stages.biasing_lists import Lists
from rlspeech.stages.hearing import Heard, audio_metrics, flat
from rlspeech.stages.training import Prepared
from rlspeech.types import TokenBatch


@dataclass(frozen=True)
class References:
    """`prepare(step)` gives the micro-batches of a step: every instruction about the audios that it draws."""

    config: Stage
    learner: Learner
    lists: Lists
    held_out: Mapping[str, Sequence[Heard]]  # by the name of the set

    def prepare(self, step: int) -> Prepared:
        optim = self.config.optim
        size = len(self.lists.train)
        chosen = batch_of_step(step, size=size, batch=optim.batch, seed=self.config.seed)
        rows = self.lists.heard(self.learner.student, chosen, step=step)
        replies = sum(len(row.samples) for row in rows)
        metrics = {"data/replies": float(replies), "data/epochs": (step + 1) * optim.batch / size}
        metrics |= audio_metrics(rows)

        def look(learned: Learned) -> Mapping[str, float]:
            due = (step + 1) % self.config.held_out.every_steps == 0 or step + 1 == optim.steps
            return self._held_out_loss() if due else {}

        return Prepared(self._batches(rows), metrics, look)

    def _held_out_loss(self) -> dict[str, float]:
        """Cross-entropy of the held-out references, per token in nats."""
        return {
            f"held_out/{name}_nats": self.learner.evaluate(self._batches(rows), Loss()).metrics["train/loss"]
            for name, rows in self.held_out.items()
        }

    def _batches(self, rows: Sequence[Heard]) -> list[TokenBatch]:
        student, optim = self.learner.student, self.config.optim
        rollouts = reference_rollouts(student, *flat(rows))
        limits = {"micro_batch": optim.micro_batch, "micro_batch_tokens": optim.micro_batch_tokens}
        return make_batches(student, rollouts, **limits)
