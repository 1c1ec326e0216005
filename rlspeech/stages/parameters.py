"""Which parameters of a student learn in which stage, and what they weigh: `rlspeech plan VERB --parameters`.

Counted on the meta device, by what each stage itself would prepare; no weights are read.

P parameters, L that learn, b bytes each.
"""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from rlspeech.catalog import resolve, source
from rlspeech.config import AlignConfig, LoraConfig
from rlspeech.engines.loading import student_place
from rlspeech.errors import UserError
from rlspeech.plugins import find_class
from rlspeech.stages.machine import GIB
from rlspeech.stages.plan_memory import LearningConfig

STAGES = ("align", "sft", "distill", "dpo", "rlbr")
PARTS = ("encoder", "projector", "embedding", "language model", "output projection", "adapter", "rest")
FORMS = ("weights", "gradients", "optimizer")  # in memory: P b, L b, and AdamW's two moments, 2 L b


@dataclass(frozen=True)
class Stage:
    """Parameters by part: all, and those that learn."""

    held: Counter[str]
    learns: Counter[str]
    bytes_each: int

    @property
    def memory_gib(self) -> dict[str, float]:
        """Of a learner in one process, without activations."""
        learned = self.learns.total()
        sizes = (self.held.total(), learned, 2 * learned)
        return {form: size * self.bytes_each / GIB for form, size in zip(FORMS, sizes, strict=True)}


def run(config: LearningConfig) -> None:
    show(count(config), Console(highlight=False))


def count(config: LearningConfig) -> dict[str, Stage]:
    """Of each stage, with the recipe's adapter. Raises UserError where nothing tells the student's sizes."""
    given: LoraConfig | None = getattr(config, "lora", LoraConfig())
    student = _student(config)
    lora = getattr(student, "own_lora", None) or (given and given.model_dump())
    lora = None if given is None else {"dropout": 0.0, **lora}
    encoder = config.train_encoder if isinstance(config, AlignConfig) else True
    return {stage: _stage(student, stage, lora, train_encoder=encoder) for stage in STAGES}


def _student(config: LearningConfig) -> Any:
    """Its shapes without weights."""
    resolved = resolve(config.student, kind="speech")
    if source(resolved) != "hub":
        return student_place(config, config.student).load(weights=False)
    family: Any = find_class("students", resolved.family, "Student") if resolved.family else None
    if not hasattr(family, "outline"):
        raise UserError(f"{config.student}: --parameters needs its config.json; download the model, or give its folder")
    return family.outline()


def _stage(student: Any, stage: str, lora: Any, *, train_encoder: bool) -> Stage:
    own = deepcopy(student)
    own.prepare(stage, None if stage == "align" else lora, train_encoder=train_encoder)
    held: Counter[str] = Counter()
    learns: Counter[str] = Counter()
    for name, value in own.model.named_parameters():
        part = part_of(own, name)
        held[part] += value.numel()
        learns[part] += value.numel() * value.requires_grad
    return Stage(held, learns, next(own.model.parameters()).element_size())


def part_of(student: Any, parameter: str) -> str:
    if ".lora_" in parameter:
        return "adapter"
    if student.is_projector(parameter):
        return "projector"
    if student.is_decoder(parameter):
        kinds = {"embed_tokens": "embedding", "lm_head": "output projection"}
        return next((kind for mark, kind in kinds.items() if mark in parameter), "language model")
    return "encoder" if parameter.startswith(f"{student.TOWER}.") else "rest"


def show(stages: dict[str, Stage], console: Console) -> None:
    console.print("\n[bold]Parameters, in millions[/], of which those that learn in each stage")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "all", *STAGES):
        table.add_column(column, justify="left" if not column else "right")
    for row in _rows(stages):
        table.add_row(*row)
    console.print(table)


def _rows(stages: dict[str, Stage]) -> Iterator[tuple[str, ...]]:
    most = {part: max(stage.held[part] for stage in stages.values()) for part in PARTS}
    for part in PARTS:
        if most[part]:
            yield (part, _millions(most[part]), *(_millions(stage.learns[part]) for stage in stages.values()))
    yield ("sum", _millions(sum(most.values())), *(_millions(s.learns.total()) for s in stages.values()))
    for form in FORMS:
        yield (f"{form}, GiB", "", *(f"{stage.memory_gib[form]:.2f}" for stage in stages.values()))


def _millions(parameters: int) -> str:
    """
    >>> _millions(0), _millions(461_373_440), _millions(12_345)
    ('-', '461.4', '0.012')
    """
    if not parameters:
        return "-"
    return f"{parameters / 1e6:,.1f}" if parameters >= 1e5 else f"{parameters / 1e6:.3f}"
