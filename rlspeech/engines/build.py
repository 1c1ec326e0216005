"""The engines of a recipe: the stage gets what protocols.py promises and cannot tell where it runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspeech.catalog import is_url
from rlspeech.config import DistillConfig, OnPolicyStage, OptimConfig, RlbrConfig, Stage, TeacherConfig
from rlspeech.config_dpo import PairsConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.loading import StudentPlace, student_place, teacher_folder, tokenizer_place
from rlspeech.engines.measure import Objective
from rlspeech.engines.retokenise import Rereader
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.teacher_cross import CrossTeacher
from rlspeech.engines.teacher_routes import MAIN, RoutedTeacher
from rlspeech.engines.teacher_text import Reading, read_examples, same_tokenizer
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.errors import UserError
from rlspeech.plugins import shipped
from rlspeech.protocols import Learner, RolloutEngine, Student, Teacher
from rlspeech.recipe import verb_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Engines:
    student: Student  # renders prompts and names tokens; with its weights where it learns in this process
    rollouts: RolloutEngine
    learner: Learner
    teacher: Teacher | None = None
    interrupt: Callable[[], None] = lambda: None  # whoever waits for an engine gives up soon


@contextmanager
def build(config: OnPolicyStage, start: str, *, lora: Mapping[str, Any] | None) -> Iterator[Engines]:
    """All engines of a stage that begins with the checkpoint `start`; nothing of them is left after the block.

    Raises UserError where something asked for is not there.
    """
    place = student_place(config, start)
    prepare = {"stage": verb_of(type(config)), "lora": lora, "train_projector": config.train_projector}
    if config.cluster is not None:
        from rlspeech.engines.cluster_build import build_on_cluster

        with build_on_cluster(config, config.cluster, place, prepare) as engines:
            yield engines
        return
    student = place.load()
    student.prepare(**prepare)
    rollouts = _vllm_rollouts(config, place, student) if config.engines.rollouts == "vllm" else build_rollouts(student)
    learner = TorchLearner.of(student, schedule(config), Objective.of(config))
    teacher = build_teachers(config, student, _in_process) if isinstance(config, DistillConfig) else None
    yield Engines(student, rollouts, learner, teacher)


def schedule(config: OnPolicyStage) -> OptimConfig:
    """As the learner counts: where it learns several times from the replies of a step, each time is a step."""
    updates = config.updates if isinstance(config, RlbrConfig) else 1
    optim = config.optim
    return optim.model_copy(update={"steps": optim.steps * updates, "warmup_steps": optim.warmup_steps * updates})


@dataclass(frozen=True)
class Writers:
    """A student that writes and does not learn, and the teacher that reads its replies where there is one."""

    student: Student
    rollouts: RolloutEngine
    teacher: Teacher | None


@contextmanager
def build_writers(config: PairsConfig, start: str) -> Iterator[Writers]:
    """All engines of `pairs`, whose student is the checkpoint `start`; nothing of them is left after the block."""
    place = student_place(config, start)
    if config.cluster is not None:
        from rlspeech.engines.cluster_build import build_writers_on_cluster

        with build_writers_on_cluster(config, config.cluster, place) as writers:
            yield writers
        return
    student = place.load()
    rollouts = _vllm_rollouts(config, place, student) if config.engines.rollouts == "vllm" else build_rollouts(student)
    yield Writers(student, rollouts, build_reader(config, student, _in_process) if config.teacher else None)


def build_reader(config: PairsConfig, student: Student, make: MakeTeacher) -> Teacher:
    """The teacher that tells how likely a reply is, whatever distribution it was drawn from."""
    assert config.teacher is not None
    reading, trust = config.reading, config.trust_remote_code
    folder = None if is_url(config.teacher) else teacher_folder(config.teacher, trust_remote_code=trust)
    place = folder or (tokenizer_place(reading.tokenizer, trust) if reading.tokenizer else None)
    rereader = crossing(place, student, trust_remote_code=trust) if place else None
    if folder is None:
        tokenizer = _tokenizer(place, trust) if place else student.tokenizer
        return matched(_by_url(config.teacher, reading, tokenizer), rereader)
    return matched(make(config, folder, reading, reading.top_k if rereader else None), rereader)


def build_learner(config: Stage, student: Student) -> Learner:
    return TorchLearner.of(student, config.optim)


def build_rollouts(student: Student, *limits: int) -> RolloutEngine:
    """`limits`: replies, and tokens of their prompts, at once."""
    return TransformersRollouts(student, *limits)


def build_teacher(
    folder: Path, reading: TeacherConfig, student: Student, *, top_k: int | None = None, trust_remote_code: bool = False
) -> Teacher:
    """In this process by transformers. With another tokenizer than the student's it tells spans (see teacher_cross)."""
    rereader = crossing(folder, student, trust_remote_code=trust_remote_code)
    top_k = top_k or (reading.top_k if rereader else None)
    return matched(_by_transformers(folder, reading, top_k, trust_remote_code), rereader)


MakeTeacher = Callable[[DistillConfig | PairsConfig, Path, TeacherConfig, int | None], Teacher]


def build_local_teachers(config: DistillConfig, student: Student) -> Teacher:
    """In this process, or by URL; they tell their top tokens, whatever they could."""
    return build_teachers(config, student, _in_process, listed=True)


def build_teachers(config: DistillConfig, student: Student, make: MakeTeacher, *, listed: bool = False) -> Teacher:
    """The teacher of the recipe, or all of them with their routes. One by URL is asked there, wherever the rest runs.

    Teachers that stand beside others, or have another tokenizer than the student, tell their top tokens alone, as all
    do with `listed`: `make` is told how many.
    """
    named = {MAIN: (config.teacher, 1.0, config.reading)}
    named |= {name: (r.model, r.weight, r.reading or config.reading) for name, r in config.teachers.items()}
    trust = config.trust_remote_code
    made: dict[str, Teacher] = {}
    for name, (model, _, reading) in named.items():
        folder = None if is_url(model) else teacher_folder(model, trust_remote_code=trust)
        place = folder or (tokenizer_place(reading.tokenizer, trust) if reading.tokenizer else None)
        rereader = crossing(place, student, trust_remote_code=trust) if place else None
        if rereader is not None:
            _check_sampling(config, model)
        if folder is None:
            tokenizer = _tokenizer(place, trust) if place else student.tokenizer
            made[name] = matched(_by_url(model, reading, tokenizer), rereader)
        else:
            top_k = config.reading.top_k if listed or rereader or len(named) > 1 else None
            made[name] = matched(make(config, folder, reading, top_k), rereader)
    if len(made) == 1:
        return made[MAIN]
    return RoutedTeacher(made, {name: weight for name, (_, weight, _) in named.items()})


def crossing(place: Path | str, student: Student, *, trust_remote_code: bool = False) -> Rereader | None:
    """What brings the student's tokens and a teacher's together where the two tokenizers differ."""
    theirs = _tokenizer(place, trust_remote_code)
    if same_tokenizer(student.tokenizer, theirs):
        return None
    log.info("teacher %s: another tokenizer than the student's; scores come in spans of their common bytes", place)
    return Rereader.of(student.tokenizer, student.end_token_id, theirs)


def matched(teacher: Teacher, rereader: Rereader | None) -> Teacher:
    return teacher if rereader is None else CrossTeacher(teacher, rereader)


def _check_sampling(config: DistillConfig, teacher: str) -> None:
    """Spans are compared by the log-probs of what was sampled."""
    sampling = config.sampling
    if (sampling.temperature, sampling.top_p) != (1, 1):
        raise UserError(
            f"teacher {teacher}: has another tokenizer than the student, so sampling wants temperature 1 and top_p 1, "
            f"got {sampling.temperature:g} and {sampling.top_p:g}"
        )


def reading_of(reading: TeacherConfig) -> Reading:
    examples = read_examples(_found(reading.examples))
    return Reading(reading.prompt, reading.prompts, reading.system, examples, reading.template_options)


def _tokenizer(place: Path | str, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)


def _in_process(
    config: DistillConfig | PairsConfig, folder: Path, reading: TeacherConfig, top_k: int | None
) -> Teacher:
    if config.engines.teacher == "transformers":
        return _by_transformers(folder, reading, top_k, config.trust_remote_code)
    from rlspeech.engines import teacher_vllm, vllm_engine

    llm = vllm_engine.start(folder, config.vllm, vllm_engine.Layout(teacher=True))
    return teacher_vllm.VllmTeacher(llm, reading_of(reading), reading.top_k)


def _by_transformers(folder: Path, reading: TeacherConfig, top_k: int | None, trust_remote_code: bool) -> Teacher:
    options = {"batch": reading.batch, "top_k": top_k, "trust_remote_code": trust_remote_code}
    return TransformersTeacher.load(folder, reading_of(reading), **options)


def _by_url(url: str, reading: TeacherConfig, tokenizer: Any) -> Teacher:
    from rlspeech.engines.teacher_http import HttpTeacher

    asked = {"timeout_s": reading.timeout_s, "retries": reading.retries, "requests": reading.requests}
    return HttpTeacher.connect(
        url,
        reading_of(reading),
        tokenizer=tokenizer,
        top_k=reading.top_k,
        api_key_env=reading.api_key_env,
        **asked,
    )


def _vllm_rollouts(config: OnPolicyStage | PairsConfig, place: StudentPlace, student: Student) -> RolloutEngine:
    from rlspeech.engines import rollout_vllm, vllm_engine

    llm = vllm_engine.start(place.folder, config.vllm, vllm_engine.Layout())
    return rollout_vllm.VllmRollouts(llm, student, config.vllm)


def _found(path: Path | None) -> Path | None:
    """The file itself, or the one that ships under recipes/ with the same name."""
    if path is None or path.is_file() or path.is_absolute() or path.parts[0] != "recipes":
        return path
    return shipped("recipes").joinpath(*path.parts[1:])
