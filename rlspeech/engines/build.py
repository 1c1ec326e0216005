"""The engines of a recipe: the stage gets what protocols.py promises and cannot tell where it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspeech.catalog import is_url
from rlspeech.config import DistillConfig, Stage, TeacherConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.loading import StudentPlace, teacher_folder
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.teacher_routes import MAIN, RoutedTeacher
from rlspeech.engines.teacher_text import Reading, read_examples, same_tokenizer
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.errors import UserError
from rlspeech.plugins import shipped
from rlspeech.protocols import Learner, RolloutEngine, Student, Teacher


@dataclass(frozen=True)
class Engines:
    student: Student  # renders prompts and names tokens; with its weights where it learns in this process
    rollouts: RolloutEngine
    teacher: Teacher
    learner: Learner
    interrupt: Callable[[], None] = lambda: None  # whoever waits for an engine gives up soon


@contextmanager
def build(config: DistillConfig, start: str, *, lora: Mapping[str, Any] | None) -> Iterator[Engines]:
    """All engines of a distillation that begins with the checkpoint `start`; nothing of them is left after the block.

    Raises UserError where a teacher does not share the student's tokenizer, or something asked for is not there.
    """
    place = StudentPlace.of(start, trust_remote_code=config.trust_remote_code)
    prepare = {"stage": "distill", "lora": lora, "train_projector": config.train_projector}
    if config.cluster is not None:
        from rlspeech.engines.cluster_build import build_on_cluster

        with build_on_cluster(config, config.cluster, place, prepare) as engines:
            yield engines
        return
    student = place.load()
    student.prepare(**prepare)
    rollouts = _vllm_rollouts(config, place, student) if config.engines.rollouts == "vllm" else build_rollouts(student)
    learner = TorchLearner.of(student, config.optim, config.importance)
    yield Engines(student, rollouts, build_teachers(config, student, _in_process), learner)


def build_learner(config: Stage, student: Student) -> Learner:
    return TorchLearner.of(student, config.optim)


def build_rollouts(student: Student, batch: int = 32) -> RolloutEngine:
    return TransformersRollouts(student, batch)


def build_teacher(
    folder: Path, reading: TeacherConfig, student: Student, *, top_k: int | None = None, trust_remote_code: bool = False
) -> Teacher:
    """In this process by transformers. Raises UserError where it does not share the student's tokenizer."""
    how = reading_of(reading)
    teacher = TransformersTeacher.load(
        folder, how, batch=reading.batch, top_k=top_k, trust_remote_code=trust_remote_code
    )
    _check_tokenizer(folder, student, teacher.tokenizer)
    return teacher


MakeTeacher = Callable[[DistillConfig, Student, Path, TeacherConfig, int | None], Teacher]


def build_teachers(config: DistillConfig, student: Student, make: MakeTeacher) -> Teacher:
    """The teacher of the recipe, or all of them with their routes. One by URL is asked there, wherever the rest runs.

    Teachers that stand beside others tell their top tokens alone, so that all batches are alike.
    """
    named = {MAIN: (config.teacher, 1.0, config.reading)}
    named |= {name: (r.model, r.weight, r.reading or config.reading) for name, r in config.teachers.items()}
    made: dict[str, Teacher] = {}
    for name, (model, _, reading) in named.items():
        top_k = config.reading.top_k if len(named) > 1 else None
        if is_url(model):
            made[name] = _by_url(model, reading, student)
        else:
            folder = teacher_folder(model, trust_remote_code=config.trust_remote_code)
            made[name] = make(config, student, folder, reading, top_k)
    if len(made) == 1:
        return made[MAIN]
    return RoutedTeacher(made, {name: weight for name, (_, weight, _) in named.items()})


def reading_of(reading: TeacherConfig) -> Reading:
    return Reading(reading.prompt, reading.prompts, reading.system, read_examples(_found(reading.examples)))


def check_tokenizer(folder: Path, student: Student) -> None:
    """Raises UserError where the text model in the folder has another tokenizer than the student."""
    from transformers import AutoTokenizer

    _check_tokenizer(folder, student, AutoTokenizer.from_pretrained(folder))


def _check_tokenizer(folder: Path, student: Student, tokenizer: Any) -> None:
    if not same_tokenizer(student.tokenizer, tokenizer):
        raise UserError(f"teacher {folder}: has another tokenizer than the student; their tokens cannot be compared")


def _in_process(
    config: DistillConfig, student: Student, folder: Path, reading: TeacherConfig, top_k: int | None
) -> Teacher:
    if config.engines.teacher == "transformers":
        return build_teacher(folder, reading, student, top_k=top_k, trust_remote_code=config.trust_remote_code)
    from rlspeech.engines import teacher_vllm, vllm_engine

    check_tokenizer(folder, student)
    llm = vllm_engine.start(folder, config.vllm, vllm_engine.Layout(teacher=True))
    return teacher_vllm.VllmTeacher(llm, reading_of(reading), reading.top_k)


def _by_url(url: str, reading: TeacherConfig, student: Student) -> Teacher:
    from rlspeech.engines.teacher_http import HttpTeacher

    asked = {"timeout_s": reading.timeout_s, "retries": reading.retries, "requests": reading.requests}
    return HttpTeacher.connect(
        url,
        reading_of(reading),
        tokenizer=student.tokenizer,
        top_k=reading.top_k,
        api_key_env=reading.api_key_env,
        **asked,
    )


def _vllm_rollouts(config: DistillConfig, place: StudentPlace, student: Student) -> RolloutEngine:
    from rlspeech.engines import rollout_vllm, vllm_engine

    llm = vllm_engine.start(place.folder, config.vllm, vllm_engine.Layout())
    return rollout_vllm.VllmRollouts(llm, student, config.vllm)


def _found(path: Path | None) -> Path | None:
    """The file itself, or the one that ships under recipes/ with the same name."""
    if path is None or path.is_file() or path.is_absolute() or path.parts[0] != "recipes":
        return path
    return shipped("recipes").joinpath(*path.parts[1:])
