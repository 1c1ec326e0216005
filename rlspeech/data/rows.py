"""One row of a manifest: one recording, what is said in it, and the instructions about it. Checked strictly."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlspeech.errors import UserError, did_you_mean
from rlspeech.types import Audio, Sample, Turn, Word

TRANSCRIBE = "Transcribe the speech."  # where a data set has transcripts and no instructions
OF_TASK = ("kind", "key")  # tags that belong to one instruction, not to the recording
OTHER = "other"  # the kind of an instruction that names none

Need = Literal["audio", "transcript", "reference", "words"]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Speaker(Part):
    speaker: str
    text: str
    voice: str = ""
    rate_wpm: int = 175
    pitch: int = 50
    pause_s: float = Field(0.0, ge=0)


class TimedWord(Part):
    text: str
    start_s: float = Field(ge=0)
    end_s: float = Field(ge=0)


class Instruction(Part):
    kind: str = Field(OTHER, min_length=1)
    instruction: str
    answer: str | None = None
    key: str | None = None  # words that any right answer holds
    teacher: str | None = None  # overrides that of the row


class Row(Part):
    """A recording. Instructions are a list, or one `instruction` with its `answer` (or `reference`) on the row."""

    id: str = Field(min_length=1)
    audio: str | None = None  # relative to the manifest
    more_audio: list[str] = []  # heard after it, in this order
    start_s: float = 0.0  # a stretch of the audio file
    end_s: float | None = None
    duration_s: float | None = None
    transcript: str | None = None
    speakers: list[Speaker] = []
    words: list[TimedWord] = []
    lang: str = "en"
    tags: dict[str, str] = {}
    biasing_words: list[str] = []  # words and phrases that the prompt says may be heard
    rare_words: list[str] = []  # those of what is said that biasing is measured on
    teacher: str | None = None  # which of several teachers scores replies about it
    instructions: list[Instruction] = []
    kind: str | None = None
    instruction: str | None = None
    answer: str | None = None
    reference: str | None = None


def parse(fields: Any) -> Row:
    """A checked row. Raises UserError with what is wrong and nothing of where."""
    if not isinstance(fields, Mapping):
        raise UserError(f"not a JSON object: {_short(fields)}")
    try:
        row = Row.model_validate(fields)
    except ValidationError as error:
        raise UserError(first_fault(error)) from error
    for index, word in enumerate(row.words):
        if word.end_s < word.start_s:
            raise UserError(f"words[{index}] ({word.text!r}) ends before it starts")
    return row


def samples_of(row: Row, folder: Path, needs: Collection[Need]) -> list[Sample]:
    """One sample for each instruction, ids `{row}/{kind}` (`{kind}-2` for the second of a kind).

    A row with one instruction may have the id of its sample already, as one that `as_trl` wrote has.
    Raises UserError, as `parse` does, where an instruction or something needed is missing.
    """
    if "transcript" in needs and not (row.transcript or "").strip():
        raise UserError("transcript missing: it is what the teacher reads")
    if "words" in needs and not row.words:
        raise UserError("words missing: their times are needed")
    kinds: dict[str, int] = {}
    samples = []
    for task in _instructions(row):
        if not task.instruction.strip():
            raise UserError(f"instruction empty (kind {task.kind!r})")
        if "reference" in needs and task.answer is None:
            raise UserError(f"answer missing (kind {task.kind!r})")
        kinds[task.kind] = count = kinds.get(task.kind, 0) + 1
        samples.append(
            Sample(
                id=_sample_id(row, task.kind, count),
                instruction=task.instruction,
                audio=None if row.audio is None else Audio(folder / row.audio, row.start_s, row.end_s),
                more_audio=tuple(Audio(folder / file) for file in row.more_audio),
                transcript=row.transcript,
                reference=task.answer,
                lang=row.lang,
                tags={**row.tags, "kind": task.kind, **({"key": task.key} if task.key else {})},
                biasing_words=tuple(row.biasing_words),
                rare_words=tuple(row.rare_words),
                turns=tuple(Turn(**turn.model_dump()) for turn in row.speakers),
                words=tuple(Word(**word.model_dump()) for word in row.words),
                teacher=task.teacher or row.teacher or "",
            )
        )
    return samples


def rows_of(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """Rows for `manifest.write`: consecutive samples of one recording (ids `{recording}/{kind}`) make one.

    `audio` is the path as the samples have it; what is empty is left out; times are rounded to 0.1 ms.
    """
    for recording, group in groupby(samples, key=recording_of):
        tasks = list(group)
        first = tasks[0]
        row: dict[str, Any] = {"id": recording}
        if first.audio is not None:
            row |= {"audio": first.audio.path, "start_s": first.audio.start_s, "end_s": first.audio.end_s}
            row |= {"more_audio": [one.path for one in first.more_audio]}
        row |= {"transcript": first.transcript, "lang": first.lang}
        row |= {
            "tags": {key: value for key, value in first.tags.items() if key not in OF_TASK},
            "biasing_words": list(first.biasing_words),
            "rare_words": list(first.rare_words),
            "speakers": [asdict(turn) for turn in first.turns],
            "words": [
                {"text": w.text, "start_s": round(w.start_s, 4), "end_s": round(w.end_s, 4)} for w in first.words
            ],
            "instructions": [
                {
                    "kind": task.tags.get("kind", OTHER),
                    "instruction": task.instruction,
                    "answer": task.reference,
                    **({"key": task.tags["key"]} if "key" in task.tags else {}),
                    **({"teacher": task.teacher} if task.teacher else {}),
                }
                for task in tasks
            ],
        }
        yield {
            key: value for key, value in row.items() if value not in (None, [], {}) and (key, value) != ("start_s", 0)
        }


def recording_of(sample: Sample) -> str:
    """The id of the row that a sample is of."""
    return sample.id.rpartition("/")[0] or sample.id


def _sample_id(row: Row, kind: str, count: int) -> str:
    if not row.instructions and re.fullmatch(rf".+/{re.escape(kind)}(-\d+)?", row.id):
        return row.id
    return f"{row.id}/{kind}" + (f"-{count}" if count > 1 else "")


def _instructions(row: Row) -> list[Instruction]:
    if row.answer is not None and row.reference is not None:
        raise UserError("both 'answer' and 'reference'; keep one")
    answer = row.reference if row.answer is None else row.answer
    if not row.instructions:
        if row.instruction is None:
            raise UserError("instruction missing")
        return [Instruction(kind=row.kind or row.tags.get("kind", OTHER), instruction=row.instruction, answer=answer)]
    single = {"instruction": row.instruction, "answer": answer, "kind": row.kind}
    if both := [key for key, value in single.items() if value is not None]:
        raise UserError(f"both 'instructions' and {both[0]!r} on the row; keep one")
    return row.instructions


def first_fault(error: ValidationError) -> str:
    """An unknown key first, as it is often why another is missing."""
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    *parents, last = fault["loc"]
    where = _dotted(fault["loc"])
    if fault["type"] == "extra_forbidden":
        known = {"speakers": Speaker, "words": TimedWord, "instructions": Instruction}.get(str((*parents, "")[0]), Row)
        return f"unknown key {where!r}{did_you_mean(str(last), known.model_fields)}"
    if fault["type"] == "missing":
        return f"{where!r} missing"
    message = fault["msg"].removeprefix("Input ")
    return f"{where!r} {message[0].lower()}{message[1:]}, got {_short(fault['input'])}"


def _dotted(location: tuple[int | str, ...]) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location]
    return "".join(parts).removeprefix(".")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
