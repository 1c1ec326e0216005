"""Pairs of a preferred and a rejected reply, as JSONL or parquet in TRL's columns: prompt, chosen, rejected.

Beside those a row has what makes it a pair about audio: `audio` (relative to the file), `transcript`, and why the one
is preferred. The columns of text are conversations, as in TRL's conversational preference format with an explicit
prompt; read are also plain texts, and pairs without `prompt` whose two conversations begin with it.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from rlspeech.data import audio
from rlspeech.data.manifest import relative
from rlspeech.data.rows import Part, first_fault
from rlspeech.errors import UserError
from rlspeech.types import Audio, Sample

PARQUET = ".parquet"


@dataclass(frozen=True)
class Pair:
    """Two replies to one sample. A reply that is not `ended` was cut off: its end token is not learned."""

    sample: Sample
    chosen: str
    rejected: str
    chosen_ended: bool = True
    rejected_ended: bool = True
    chosen_origin: str = "student"  # or teacher, or reference: the data's own answer
    reason: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()  # what the detectors point at in the rejected reply
    margin: float = 0.0
    chosen_nats_per_byte: float | None = None  # log-likelihood that the teacher gives, which reads the transcript
    rejected_nats_per_byte: float | None = None


class Known(Part):
    """What a row may have beside its texts; others are not looked at."""

    model_config = ConfigDict(extra="ignore")

    id: str | int | None = None
    start_s: float = 0.0
    end_s: float | None = None
    more_audio: list[str] = Field([])
    transcript: str | None = None
    lang: str = "en"
    kind: str = ""
    chosen_ended: bool = True
    rejected_ended: bool = True
    chosen_origin: str = "student"
    reason: list[str] = Field([])
    evidence: list[str] = Field([])
    margin: float = 0.0
    chosen_nats_per_byte: float | None = None
    rejected_nats_per_byte: float | None = None


def write(path: Path, pairs: Sequence[Pair]) -> None:
    """Beside and renamed; .parquet by its name, else JSONL."""
    rows = [_row(pair, path.parent) for pair in pairs]
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == PARQUET:
            _datasets().from_list(rows).to_parquet(str(beside))
        else:
            beside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> list[Pair]:
    """Raises UserError `file:row: what` for the first row that is no pair, or whose audio is not there."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of pairs; `rlspeech pairs` makes one")
    found = []
    for where, row in _rows(path):
        try:
            pair = _pair(row, path.parent, where.rpartition(":")[2])
            assert pair.sample.audio is not None
            audio.probe(pair.sample.audio)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        found.append(pair)
    if not found:
        raise UserError(f"{path}: no pairs")
    return found


def _datasets() -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset


def _row(pair: Pair, folder: Path) -> dict[str, Any]:
    sample = pair.sample
    assert sample.audio is not None
    return {
        "id": sample.id,
        "prompt": [{"role": "user", "content": sample.instruction}],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "audio": relative(sample.audio.path, folder),
        "start_s": sample.audio.start_s,
        "end_s": sample.audio.end_s,
        "more_audio": [relative(one.path, folder) for one in sample.more_audio],
        "transcript": sample.transcript,
        "lang": sample.lang,
        "kind": sample.tags.get("kind", ""),
        "chosen_ended": pair.chosen_ended,
        "rejected_ended": pair.rejected_ended,
        "chosen_origin": pair.chosen_origin,
        "reason": list(pair.reason),
        "evidence": list(pair.evidence),
        "margin": round(pair.margin, 6),
        "chosen_nats_per_byte": pair.chosen_nats_per_byte,
        "rejected_nats_per_byte": pair.rejected_nats_per_byte,
    }


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == PARQUET:
        try:
            rows = _datasets().from_parquet(str(path), keep_in_memory=True)
        except Exception as error:
            raise UserError(f"{path}: not parquet ({type(error).__name__})") from error
        yield from ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
        return
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}:{number}: not JSON") from error


def _pair(row: Any, folder: Path, number: str) -> Pair:
    if not isinstance(row, Mapping):
        raise UserError("not a JSON object")
    for name in ("chosen", "rejected", "audio"):
        if not row.get(name):
            raise UserError(f"{name!r} missing: a pair has prompt, chosen, rejected and audio")
    if not isinstance(row["audio"], str):
        raise UserError("'audio' must be the path of a file, relative to that of the pairs")
    instruction = _text(row["prompt"], "prompt") if row.get("prompt") else _text(row["chosen"], "chosen", role="user")
    chosen, rejected = _text(row["chosen"], "chosen"), _text(row["rejected"], "rejected")
    if chosen == rejected:
        raise UserError("chosen and rejected are the same text")
    try:
        known = Known.model_validate({name: value for name, value in row.items() if value is not None})
    except ValidationError as error:
        raise UserError(first_fault(error)) from error
    sample = Sample(
        id=f"pair-{number}" if known.id is None else str(known.id),
        instruction=instruction,
        audio=Audio(folder / row["audio"], known.start_s, known.end_s),
        more_audio=tuple(Audio(folder / file) for file in known.more_audio),
        transcript=known.transcript,
        lang=known.lang,
        tags={"kind": known.kind} if known.kind else {},
    )
    return Pair(
        sample,
        chosen,
        rejected,
        chosen_ended=known.chosen_ended,
        rejected_ended=known.rejected_ended,
        chosen_origin=known.chosen_origin,
        reason=tuple(known.reason),
        evidence=tuple(known.evidence),
        margin=known.margin,
        chosen_nats_per_byte=known.chosen_nats_per_byte,
        rejected_nats_per_byte=known.rejected_nats_per_byte,
    )


def _text(value: Any, name: str, *, role: str | None = None) -> str:
    """Of a plain text, or of the last message of a conversation (of a role)."""
    if isinstance(value, str) and role is None:
        return value
    messages = value if isinstance(value, list) else []
    texts = [one.get("content") for one in messages if isinstance(one, Mapping) and role in (None, one.get("role"))]
    if not texts or not isinstance(texts[-1], str):
        told = "has no message of a user, and there is no 'prompt'" if role else "must be a text or a list of messages"
        raise UserError(f"{name!r} {told}")
    return texts[-1]
