"""`rlspeech distill --teacher X --student X --self-test`: a model taught by itself has nothing to learn.

Student and teacher read the same prompt; the student samples replies, the teacher scores them, and the loss looks at
them as in a run. Every number must be about 0: what is not shows a wrong template, position, temperature or token.
With one tokenizer it is done twice, token by token and by the spans that serve two tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from rlspeech.catalog import fetch, is_url, resolve
from rlspeech.config import DistillConfig
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import build_local_teachers, reading_of
from rlspeech.engines.loading import student_place, trusted
from rlspeech.engines.measure import measure
from rlspeech.engines.retokenise import Rereader
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.teacher_cross import CrossTeacher
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.text_student import TextStudent
from rlspeech.errors import CheckFailed
from rlspeech.plugins import load_class
from rlspeech.protocols import Loss, Sampling, Student, Teacher
from rlspeech.stages.models import use_threads
from rlspeech.stages.peek import first_rows
from rlspeech.stages.rollout_records import alignment_metrics
from rlspeech.types import Prompt, Rollout, Sample

PROMPTS = 8
MAX_TOKENS = 32
GATE_NATS = 1e-3  # float32 kernels of two engines
TRANSCRIPT = "Ms. Okonkwo will meet Peter at half past nine on Tuesday, 14 March, and bring 2,350 euros."
INSTRUCTIONS = ("Summarise.", "Who meets Peter?", "When do they meet?", "What is brought?")


@dataclass(frozen=True)
class Row:
    """Means over the tokens of all replies, in nats."""

    way: str
    loss: float
    kl_nats: float
    one_to_one: float | None
    unread: float


def run(config: DistillConfig) -> None:
    """Prints the numbers. Raises CheckFailed where they are above GATE_NATS."""
    loss = load_class("losses", config.loss, "Loss", config.loss_options)
    use_threads(config.threads, config.seed)
    student = _student(config)
    teacher = build_local_teachers(config, student)
    rows = list(compare(student, teacher, reading_of(config.reading), loss, _samples(config)))
    _show(config, rows)
    worst = max(rows, key=lambda row: abs(row.kl_nats))
    if abs(worst.kl_nats) > GATE_NATS:
        raise CheckFailed(
            f"self-test: {worst.kl_nats:.2g} nats a token between {config.student} and {config.teacher} ({worst.way}), "
            f"where one model with itself has less than {GATE_NATS:g}; are they the same weights, prompts and template?"
        )


def compare(
    student: Student, teacher: Teacher, reading: Reading, loss: Loss, samples: Sequence[Sample]
) -> Iterator[Row]:
    """The loss on replies that the student samples to the teacher's own prompts."""
    rollouts = _rollouts(student, reading, samples)
    yield _row("by spans" if isinstance(teacher, CrossTeacher) else "token by token", student, teacher, loss, rollouts)
    if not isinstance(teacher, CrossTeacher):
        crossed = CrossTeacher(teacher, Rereader.of(student.tokenizer, student.end_token_id, student.tokenizer))
        yield _row("by spans", student, crossed, loss, _as_encoded(student, teacher, rollouts))


def _student(config: DistillConfig) -> Student:
    """A speech LLM, which is asked without audio, or a text model."""
    resolved = resolve(config.student)
    if resolved.family is not None:
        return student_place(config, config.student).load()
    return TextStudent.load(trusted(fetch(resolved), config.trust_remote_code))  # type: ignore[return-value]


def _samples(config: DistillConfig) -> list[Sample]:
    """Of the recipe's data where it is there."""
    told = [row["transcript"] for row in first_rows(config.data.train, PROMPTS) if row.get("transcript")]
    texts = told or [TRANSCRIPT] * PROMPTS
    return [Sample(f"self-test-{n}", INSTRUCTIONS[n % 4], transcript=text) for n, text in enumerate(texts)]


def _rollouts(student: Student, reading: Reading, samples: Sequence[Sample]) -> list[Rollout]:
    prompts = [Prompt(tuple(reading.prompt_ids(student.tokenizer, sample))) for sample in samples]
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=1.0, seed=1)
    return TransformersRollouts(student).generate(samples, prompts, sampling)


def _as_encoded(student: Student, teacher: Teacher, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same texts in the tokens that the tokenizer gives them.

    A model also samples other segmentations of a text. Their probability is not that of the one which a teacher reads,
    so between the two there is a divergence, and rightly so.
    """
    tokenizer = student.tokenizer
    texts = [tokenizer.decode(r.completion.token_ids, skip_special_tokens=True) for r in rollouts]
    replies = [
        replace(r.completion, token_ids=(*tokenizer(text, add_special_tokens=False).input_ids, student.end_token_id))
        for r, text in zip(rollouts, texts, strict=True)
    ]
    scored = teacher.score([r.sample for r in rollouts], replies)
    return [
        replace(rollout, completion=replace(reply, logprobs=tuple(one.logprobs.tolist())))
        for rollout, reply, one in zip(rollouts, replies, scored, strict=True)
    ]


def _row(way: str, student: Student, teacher: Teacher, loss: Loss, rollouts: Sequence[Rollout]) -> Row:
    scored = teacher.score([r.sample for r in rollouts], [r.completion for r in rollouts])
    batches = make_batches(student, rollouts, micro_batch=PROMPTS, scored=scored, teacher_head=teacher.head())
    found = measure(student, batches, loss).metrics
    aligned = alignment_metrics(scored, rollouts)
    kl_nats = found.get("kl/train_nats", found.get("kl/train_k1_nats", found["train/loss"]))
    share = aligned.get("align/one_to_one_share")
    return Row(way, found["train/loss"], kl_nats, share, aligned.get("align/unread_share", 0.0))


def _show(config: DistillConfig, rows: Sequence[Row]) -> None:
    where = "at its address" if is_url(config.teacher) else f"by {config.engines.teacher}"
    console = Console(highlight=False)
    console.print(f"Self-test: {config.student} writes and {config.teacher} scores ({where}), {config.loss}")
    table = Table("scored", "loss", "KL, nats a token", "one-to-one spans", "unread tokens", box=None)
    for row in rows:
        share = "" if row.one_to_one is None else f"{100 * row.one_to_one:.1f} %"
        table.add_row(row.way, f"{row.loss:.2g}", f"{row.kl_nats:.2g}", share, f"{100 * row.unread:.1f} %")
    console.print(table)
