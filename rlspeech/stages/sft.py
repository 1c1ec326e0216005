"""Stage 1, sft: the encoder stays frozen; projector and adapter learn to answer instructions about audio."""

from collections.abc import Sequence

from rlspeech.config import SftConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.losses.cross_entropy import Loss
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import starting_point
from rlspeech.stages.hearing import hear, read_samples
from rlspeech.stages.models import load_student, lora_settings, use_threads
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.references import reference_steps
from rlspeech.stages.training import finish, learn, open_run
from rlspeech.types import Sample


def run(config: SftConfig, *, resume: bool = False) -> None:
    """The loss is the cross-entropy of the answer's tokens; nothing is learned from the prompt's."""
    check_can_run(config)
    samples = read_samples(config.data.train, config.data, ("audio", "reference"), kinds=config.data.kinds)
    start = starting_point(config)
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _tune(config, folder, samples, start)


def _tune(config: SftConfig, folder: RunDir, samples: Sequence[Sample], start: str) -> None:
    use_threads(config.threads, config.seed)
    student = load_student(start, trust_remote_code=config.trust_remote_code)
    heard = hear(student, samples)
    student.prepare("sft", lora_settings(config.lora))
    learner = TorchLearner.of(student, config.optim)
    metrics = learn(folder, config, learner, Loss(), reference_steps(config, student, heard), name="sft")
    finish(folder, config, student, metrics, stage="sft")
