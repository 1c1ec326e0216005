"""Stage 1, sft: the encoder stays frozen; projector and adapter learn to answer instructions about audio."""

from rlspeech.config import SftConfig
from rlspeech.engines.build import build_learner
from rlspeech.engines.loading import student_place
from rlspeech.losses.cross_entropy import Loss
from rlspeech.run_dir import RunDir
from rlspeech.stages.biasing_lists import Lists
from rlspeech.stages.chain import starting_point
from rlspeech.stages.hearing import hear, read_data
from rlspeech.stages.models import lora_settings, use_threads
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.references import References
from rlspeech.stages.training import finish, learn, open_run


def run(config: SftConfig, *, resume: bool = False) -> None:
    """The loss is the cross-entropy of the answer's tokens; nothing is learned from the prompt's."""
    check_can_run(config)
    data = read_data(config, ("audio", "reference"))
    lists = Lists.of(config.lists, data, batch=config.optim.batch, seed=config.seed)
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _tune(config, folder, lists, starting_point(config))


def _tune(config: SftConfig, folder: RunDir, lists: Lists, start: str) -> None:
    use_threads(config.threads, config.seed)
    student = student_place(config, start).load()
    student.prepare("sft", lora_settings(config.lora))
    learner = build_learner(config, student)
    lists.begin(student)
    held_out = {name: hear(student, found) for name, found in lists.tests().items()}
    steps = References(config, learner, lists, held_out)
    metrics = learn(folder, config, learner, Loss(), steps.prepare, name="sft")
    finish(folder, config, learner, metrics, stage="sft", start=start)
