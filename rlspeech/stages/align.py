"""Stage 0, align: the language model is frozen; the projector learns to place speech where it can be read."""

from collections.abc import Sequence

from rlspeech.config import AlignConfig
from rlspeech.engines.frame_alignment import place_frames
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.losses.cross_entropy import Loss
from rlspeech.protocols import Metrics, Student
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import starting_point
from rlspeech.stages.hearing import Heard, hear, read_samples
from rlspeech.stages.models import load_student, use_threads
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.progress import progress
from rlspeech.stages.references import reference_steps
from rlspeech.stages.training import finish, learn, open_run
from rlspeech.types import Sample


def run(config: AlignConfig, *, resume: bool = False) -> None:
    """Audio frames first (where `frames.steps` is not 0), then the language model's loss on the references."""
    check_can_run(config)
    words = ("words",) if config.frames.steps else ()
    samples = read_samples(config.data.train, config.data, ("audio", "reference", *words), kinds=config.data.kinds)
    start = starting_point(config)
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _align(config, folder, samples, start)


def _align(config: AlignConfig, folder: RunDir, samples: Sequence[Sample], start: str) -> None:
    use_threads(config.threads, config.seed)
    student = load_student(start, trust_remote_code=config.trust_remote_code)
    heard = hear(student, samples)
    student.prepare("align")
    if config.frames.steps and folder.latest_state() is None:
        _place(config, folder, student, heard)
    student.prepare("align", train_encoder=config.train_encoder)
    learner = TorchLearner.of(student, config.optim)
    metrics = learn(folder, config, learner, Loss(), reference_steps(config, student, heard), name="align")
    finish(folder, config, student, metrics, stage="align")


def _place(config: AlignConfig, folder: RunDir, student: Student, heard: Sequence[Heard]) -> None:
    """This part is short: where it was cut off it begins again."""
    folder.write_text("frames.jsonl", "")
    with progress("align: frames", config.frames.steps) as tick:

        def record(step: int, metrics: Metrics) -> None:
            values = {"frames/loss": metrics["loss"], "frames/accuracy_share": metrics["frame_accuracy"]}
            folder.append("frames.jsonl", {"frames/step": step + 1, **values})
            tick(step + 1, values)

        samples = [recording.samples[0] for recording in heard]
        prompts = [recording.prompts[0] for recording in heard]
        place_frames(student, samples, prompts, config.frames, seed=config.seed, on_step=record)
