"""Steps that learn from given answers: the references of a batch of recordings."""

from collections.abc import Callable, Sequence

from rlspeech.config import Stage
from rlspeech.data.mixing import batch_of_step
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.protocols import Student
from rlspeech.stages.hearing import Heard, flat
from rlspeech.stages.training import Prepared


def reference_steps(config: Stage, student: Student, heard: Sequence[Heard]) -> Callable[[int], Prepared]:
    """A function of the step to its micro-batches: every instruction about the audios that the step draws."""

    def prepare(step: int) -> Prepared:
        chosen = batch_of_step(step, size=len(heard), batch=config.optim.batch, seed=config.seed)
        rollouts = reference_rollouts(student, *flat([heard[index] for index in chosen]))
        batches = make_batches(student, rollouts, micro_batch=config.optim.micro_batch)
        epochs = (step + 1) * config.optim.batch / len(heard)
        return Prepared(batches, {"data/replies": float(len(rollouts)), "data/epochs": epochs})

    return prepare
