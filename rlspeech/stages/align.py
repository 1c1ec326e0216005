"""Stage 0, align: the language model is frozen; the projector learns to place speech where it can be read."""

from collections.abc import Sequence

from rlspeech.config import AlignConfig
from rlspeech.data.rows import Need
from rlspeech.engines.build import build_learner
from rlspeech.engines.frame_alignment import place_frames
from rlspeech.engines.loading import student_place
from rlspeech.losses.cross_entropy import Loss
from rlspeech.protocols import Metrics, Student
from rlspeech.run_dir import RunDir
from rlspeech.stages.biasing_lists import Lists
from rlspeech.stages.chain import starting_point
from rlspeech.stages.hearing import Data, Heard, hear, read_data
from rlspeech.stages.models import use_threads
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.progress import progress
from rlspeech.stages.references import References
from rlspeech.stages.training import finish, learn, open_run


def run(config: AlignConfig, *, resume: bool = False) -> None:
    """Audio frames first (where `frames.steps` is not 0), then the language model's loss on the references."""
    check_can_run(config)
    words: tuple[Need, ...] = ("words",) if config.frames.steps else ()
    data = read_data(config, ("audio", "reference", *words))
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _align(config, folder, data, starting_point(config))


def _align(config: AlignConfig, folder: RunDir, data: Data, start: str) -> None:
    use_threads(config.threads, config.seed)
    student = student_place(config, start).load()
    lists = Lists(data)
    lists.begin(student)
    student.prepare("align")
    if config.frames.steps and folder.latest_state() is None:
        _place(config, folder, student, lists.heard(student, range(len(data.train)), step=0))
    student.prepare("align", train_encoder=config.train_encoder)
    learner = build_learner(config, student)
    held_out = {name: hear(student, found) for name, found in data.tests.items()}
    steps = References(config, learner, lists, held_out)
    metrics = learn(folder, config, learner, Loss(), steps.prepare, name="align")
    finish(folder, config, learner, metrics, stage="align", start=start)


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
