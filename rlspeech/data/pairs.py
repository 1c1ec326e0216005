"""Pairs of a preferred and a rejected reply, as JSONL or parquet in TRL's columns: prompt, chosen, rejected.

Beside those a row has what makes it a pair about audio: `audio` (relative to the file), `transcript`, and why the one
is preferred. The columns of text are conversations, as in TRL's conversational preference format with an explicit
prompt; read are also plain texts, and pairs without `prompt` whose two conversations begin with it. The prompt is one
message of a user: a pair has no place for more.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from rlspeech.data import audio
from rlspeech.data.conversations import Message, exchange, heard, message, read_messages
from rlspeech.data.manifest import relative
from rlspeech.data.rows import Part, first_fault
from rlspeech.errors import UserError
from rlspeech.types import Audio, Sample

PARQUET = ".parquet"
MISSING = "missing: a pair has prompt, chosen, rejected and audio"


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
            for one in (pair.sample.audio, *pair.sample.more_audio):
                audio.probe(one)
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
        "prompt": [message("user", sample.instruction)],
        "chosen": [message("assistant", pair.chosen)],
        "rejected": [message("assistant", pair.rejected)],
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
    asked, chosen, rejected = _texts(row)
    if chosen == rejected:
        raise UserError("chosen and rejected are the same text")
    try:
        known = Known.model_validate({name: value for name, value in row.items() if value is not None})
    except ValidationError as error:
        raise UserError(first_fault(error)) from error
    files = heard(row.get("audio"), known.more_audio, asked)
    if not files:
        raise UserError(f"'audio' {MISSING}")
    first, *others = (folder / file for file in files)
    sample = Sample(
        id=f"pair-{number}" if known.id is None else str(known.id),
        instruction=asked.text,
        audio=Audio(first, known.start_s, known.end_s),
        more_audio=tuple(Audio(file) for file in others),
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


def _texts(row: Mapping[str, Any]) -> tuple[Message, str, str]:
    """The prompt and both replies, the prompt once: in its column, or as the beginning of both conversations."""
    for name in ("chosen", "rejected"):
        if not row.get(name):
            raise UserError(f"{name!r} {MISSING}")
    prompt = read_messages(row["prompt"], "prompt", role="user") if row.get("prompt") else []
    chosen, rejected = (read_messages(row[name], name, role="assistant") for name in ("chosen", "rejected"))
    begin = chosen[:-1]
    if begin != rejected[:-1]:
        raise UserError("chosen and rejected begin with different messages; a pair is about one prompt")
    if begin and prompt == begin:  # some data sets have it twice
        prompt = []
    elif prompt and begin:
        raise UserError("'prompt' is not what chosen and rejected begin with; keep one of them")
    elif not prompt and not begin:
        raise UserError("'chosen' has no message of a user, and there is no 'prompt'")
    replies = []
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        asked, reply = exchange([*prompt, *messages], "prompt" if len(prompt) > 1 else name)
        if reply is None or not reply.text:
            raise UserError(f"{name!r} has no reply")
        replies.append(reply.text)
    return asked, replies[0], replies[1]
