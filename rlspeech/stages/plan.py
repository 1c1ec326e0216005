"""What a learning stage is going to do and what it needs, worked out from names, sizes and files: nothing is loaded."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

from rlspeech.catalog import Resolved, ask_hub, is_url, missing, resolve, source
from rlspeech.config import DistillConfig, OnPolicyStage
from rlspeech.config_dpo import DpoConfig
from rlspeech.errors import UserError
from rlspeech.recipe import verb_of
from rlspeech.stages.machine import Machine, machine
from rlspeech.stages.peek import first_rows
from rlspeech.stages.plan_fits import absent, misfits, no_start
from rlspeech.stages.plan_memory import (
    LearningConfig,
    Lengths,
    Role,
    kv_gib,
    learner_gib,
    teacher_gib,
)
from rlspeech.stages.plan_placement import Fleet, in_process, place
from rlspeech.stages.plan_problems import (
    check_engines,
    check_loss,
    data_problems,
    memory_problems,
    model_problems,
    package_problems,
    teacher_names,
)
from rlspeech.stages.plan_show import Plan, show
from rlspeech.stages.plan_tokenizers import sampling_problems, scoring

AUDIO_S = 30.0  # where the manifest does not tell
LINES_READ = 256  # of the manifest, for the longest audio


def run(config: LearningConfig) -> None:
    """Prints the plan."""
    terminal = sys.stdout.isatty()
    show(make_plan(config, machine(), measure=True), Console(highlight=False, width=None if terminal else 160))


def check_can_run(config: LearningConfig) -> None:
    """Raises UserError in one line that says what stands against running the stage here. Loads nothing.

    Activations and caches that grow are estimates, so that only what is certain is refused: weights, gradients,
    optimizer, and what a vLLM engine takes when it starts.
    """
    plan = make_plan(config, machine())
    refused = [(model, why) for model in plan.not_in_cache if (why := ask_hub(model))]
    problems = [
        *plan.problems,
        *(f"{model.name} ({model.repo}) is not in the cache and {why}" for model, why in refused),
    ]
    if not problems:
        return
    if len(problems) == 1 and refused:
        problems = [missing(*refused[0])]
    more = f"; and {len(problems) - 2} more, listed by --dry-run" if len(problems) > 2 else ""
    raise UserError(f"{plan.verb} cannot run here: {'; '.join(problems[:2])}{more}")


def make_plan(config: LearningConfig, here: Machine, *, measure: bool = False) -> Plan:
    """`measure`: two tokenizers that are at hand are compared on text. Raises UserError where a name is nobody's."""
    student = resolve(config.student, kind="speech")
    models, served = {"student": student}, {}
    policy = config if isinstance(config, OnPolicyStage) else None
    distil = config if isinstance(config, DistillConfig) else None
    if policy:
        teachers = teacher_names(policy)
        served = {role: name for role, name in teachers.items() if is_url(name)}
        models |= {role: resolve(name, kind="text") for role, name in teachers.items() if role not in served}
        check_loss(policy.loss)
    data = dict(_data(config))
    lengths = Lengths.of(config, student.entry, longest_audio_s(config.data.train) or AUDIO_S)
    placement = place(policy, models, lengths, here) if policy and policy.cluster else None
    fleets = in_process(policy, models, lengths, here) if policy and not placement else {}
    roles = () if placement else tuple(_roles(config, models, lengths, fleets))
    starts = (
        f"the checkpoint of {config.after!r}, which runs first if missing" if config.after else "the student as it is"
    )
    return Plan(
        verb=verb_of(type(config)) or "",
        models=models,
        served=served,
        starts_from=starts if student.folder is None else f"{student.folder}",
        data=data,
        work=_work(config),
        scores=tuple(scoring(distil, models, measure=measure)) if distil else (),
        lengths=lengths,
        roles=roles,
        placement=placement,
        machine=here,
        not_in_cache=tuple({model.name: model for model in models.values() if source(model) == "hub"}.values()),
        problems=(
            *(check_engines(policy) if policy else ()),
            *(sampling_problems(distil, models) if distil else ()),
            *(misfits(placement, here) if placement else memory_problems(models, roles, here)),
            *(absent(placement, here) if placement else no_start(fleets.values(), here)),
            *model_problems(models),
            *data_problems(config, data),
            *package_problems(config, models, data),
        ),
    )


def longest_audio_s(manifest: Path) -> float | None:
    """The longest duration that the first rows of a manifest tell; None where they tell none."""
    told = [row.get("duration_s", row.get("duration")) for row in first_rows(manifest, LINES_READ)]
    found = [duration for duration in told if isinstance(duration, int | float)]
    return max(found, default=None)


def _roles(
    config: LearningConfig, models: Mapping[str, Resolved], lengths: Lengths, fleets: Mapping[str, Fleet]
) -> Iterator[Role]:
    """Of one process."""
    student = models["student"].entry
    yield Role("learner: student", learner_gib(config, student, lengths.student) if student else {})
    if not isinstance(config, OnPolicyStage):
        return
    for role, model in models.items():
        entry, name = model.entry, "rollouts: student" if role == "student" else role
        if entry is None:
            yield Role(name, {})
        elif role in fleets and (engine := fleets[role].engine):
            yield Role(name, engine.memory_gib, reserved=True)
        elif role == "student":
            sequences = config.optim.batch * config.sampling.n
            yield Role(name, {"KV cache": kv_gib(entry, sequences, lengths.student)})
        else:
            assert isinstance(config, DistillConfig), "only it has another role"
            yield Role(name, teacher_gib(entry, config.reading.batch, lengths.teacher))


def _work(config: LearningConfig) -> str:
    optim = config.optim
    audios = f"{optim.steps:,} steps of {optim.batch} audios"
    if not isinstance(config, OnPolicyStage):
        return f"{audios} = {optim.steps * optim.batch:,} audios heard"
    if isinstance(config, DpoConfig) and not config.online:
        return f"{optim.steps:,} steps of {optim.batch} pairs = {optim.steps * optim.batch:,} pairs"
    replies = optim.steps * optim.batch * config.sampling.n
    longest = config.sampling.max_tokens
    each = f" x {config.sampling.n} replies" if config.sampling.n > 1 else ""
    scored = f", at most {replies * longest:,} tokens scored" if isinstance(config, DistillConfig) else ""
    return f"{audios}{each} = {replies:,} replies of at most {longest} tokens{scored}"


def _data(config: LearningConfig) -> Iterator[tuple[str, tuple[Path, str]]]:
    files = {"train": config.data.train, **{f"tests.{name}": path for name, path in config.data.tests.items()}}
    for name, path in files.items():
        if path.exists():
            yield name, (path, "here")
        elif config.data.synth:
            yield name, (path, f"made by `rlspeech synth {config.data.synth}`")
        else:
            yield name, (path, "missing")
