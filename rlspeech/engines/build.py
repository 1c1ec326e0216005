"""The engines of a recipe: the stage gets what protocols.py promises and cannot tell where it runs."""

from dataclasses import dataclass
from pathlib import Path

from rlspeech.config import DistillConfig, Stage, TeacherConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.teacher_text import Reading, read_examples, same_tokenizer
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.errors import UserError
from rlspeech.plugins import shipped
from rlspeech.protocols import Learner, RolloutEngine, Student, Teacher


@dataclass(frozen=True)
class Engines:
    rollouts: RolloutEngine
    teacher: Teacher
    learner: Learner


def build(config: DistillConfig, student: Student, teacher_folder: Path) -> Engines:
    """In this process, by transformers. The student has been prepared: what it leaves to learn is learned."""
    teacher = build_teacher(teacher_folder, config.reading, student, trust_remote_code=config.trust_remote_code)
    return Engines(build_rollouts(student), teacher, build_learner(config, student))


def build_learner(config: Stage, student: Student) -> Learner:
    return TorchLearner.of(student, config.optim)


def build_rollouts(student: Student, batch: int = 32) -> RolloutEngine:
    return TransformersRollouts(student, batch)


def build_teacher(
    folder: Path, reading: TeacherConfig, student: Student, *, trust_remote_code: bool = False
) -> Teacher:
    """Raises UserError where the teacher does not share the student's tokenizer."""
    how = Reading(reading.prompt, reading.prompts, reading.system, read_examples(_found(reading.examples)))
    teacher = TransformersTeacher.load(folder, how, batch=reading.batch, trust_remote_code=trust_remote_code)
    if not same_tokenizer(student.tokenizer, teacher.tokenizer):
        raise UserError(f"teacher {folder}: has another tokenizer than the student; their tokens cannot be compared")
    return teacher


def _found(path: Path | None) -> Path | None:
    """The file itself, or the one that ships under recipes/ with the same name."""
    if path is None or path.is_file() or path.is_absolute() or path.parts[0] != "recipes":
        return path
    return shipped("recipes").joinpath(*path.parts[1:])
