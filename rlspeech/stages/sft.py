"""Stage 1, sft: the encoder stays frozen; projector and adapter learn to answer instructions about audio."""

from rlspeech.config import SftConfig
from rlspeech.engines.build import build_learner
from rlspeech.engines.loading import student_place
from rlspeech.losses.cross_entropy import Loss
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import starting_point
from rlspeech.stages.hearing import Data, hear, read_data
from rlspeech.stages.models import lora_settings, use_threads
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.references import References
from rlspeech.stages.training import finish, learn, open_run


def run(config: SftConfig, *, resume: bool = False) -> None:
    """The loss is the cross-entropy of the answer's tokens; nothing is learned from the prompt's."""
    check_can_run(config)
    data = read_data(config, ("audio", "reference"))
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _tune(config, folder, data, starting_point(config))


def _tune(config: SftConfig, folder: RunDir, data: Data, start: str) -> None:
    use_threads(config.threads, config.seed)
    student = student_place(config, start).load()
    student.prepare("sft", lora_settings(config.lora))
    learner = build_learner(config, student)
    held_out = {name: hear(student, found) for name, found in data.tests.items()}
    steps = References(config, learner, hear(student, data.train), held_out)
    metrics = learn(folder, config, learner, Loss(), steps.prepare, name="sft")
    finish(folder, config, learner, metrics, stage="sft", start=start)
