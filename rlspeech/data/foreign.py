"""Rows of other people's data sets (NeMo manifests, Hugging Face columns, TRL's formats) as rows of ours.

TRL's: `messages`; `prompt` with `completion`; `prompt` alone. Conversations or plain texts, with `audio` beside them.
"""

from collections.abc import Mapping
from typing import Any

from rlspeech.data.conversations import exchange, heard, message, read_messages
from rlspeech.data.rows import TRANSCRIBE, Row, rows_of
from rlspeech.errors import UserError
from rlspeech.types import Sample

NAMES = {
    "audio_filepath": "audio",
    "duration": "duration_s",
    "text": "transcript",
    "transcription": "transcript",
    "sentence": "transcript",
    "language": "lang",
}
TRL = ("messages", "prompt", "completion", "chosen", "rejected")
CHANGES_PROMPT = ("tools", "images", "image", "chat_template_kwargs")  # columns with which TRL asks something else
RESERVED = {*TRL, *NAMES, *CHANGES_PROMPT, *Row.model_fields, "offset", "label"}  # what no tag may be called on a row


def is_foreign(fields: Mapping[str, Any]) -> bool:
    """Of NeMo or TRL, by the keys."""
    return "audio_filepath" in fields or is_trl(fields)


def is_trl(fields: Mapping[str, Any]) -> bool:
    return any(key in fields for key in TRL)


def as_row(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields under our names, `name` as the id where there is none, and `offset` with `duration` as a stretch.

    Keys that no row has become tags where they are plain values. Without an instruction the row asks for its
    transcript. Raises UserError, without the place, for a row in TRL's columns that says more than a sample can.
    """
    if is_trl(fields):
        fields = _of_trl(fields)
    row: dict[str, Any] = {}
    foreign: dict[str, str] = {}
    for key, value in fields.items():
        ours = NAMES.get(key, key)
        if value is None or key == "offset":
            continue
        if ours in Row.model_fields and ours not in row:
            row[ours] = value
        elif isinstance(value, str | int | float):
            foreign[key] = str(value)
    row["id"] = str(row.get("id", name))
    if foreign and isinstance(row.setdefault("tags", {}), Mapping):
        row["tags"] = foreign | row["tags"]
    if fields.get("offset") is not None:
        row |= _stretch(fields["offset"], fields.get("duration"))
    if "instruction" not in row and "instructions" not in row:
        row |= {"kind": "transcribe", "instruction": TRANSCRIBE, "answer": row.get("transcript")}
    return row


def as_trl(sample: Sample) -> dict[str, Any]:
    """The sample as `manifest.write` takes it, in TRL's conversational prompt-completion format.

    Without a reference it is TRL's prompt-only format. Tags are columns, as TRL's reward functions have them. `as_row`
    makes the same sample of it.
    """
    (row,) = rows_of([sample])
    known = {key: value for key, value in row.items() if key not in ("id", "tags", "instructions")}
    asked = {"prompt": [message("user", sample.instruction)]}
    if sample.reference is not None:
        asked |= {"completion": [message("assistant", sample.reference)]}
    of_sample = {"kind": sample.tags.get("kind"), "teacher": sample.teacher}
    tags = {key: value for key, value in sample.tags.items() if key != "kind"}
    columns = {key: value for key, value in tags.items() if key not in RESERVED}
    others = {"tags": {key: value for key, value in tags.items() if key in RESERVED}}
    return {
        "id": sample.id,
        **asked,
        **known,
        **{key: value for key, value in (of_sample | others).items() if value},
        **columns,
    }


def _of_trl(fields: Mapping[str, Any]) -> dict[str, Any]:
    """With instruction, answer and files in our columns, and the others as they are."""
    given = {key: value for key, value in fields.items() if value is not None}
    for key in ("chosen", "rejected"):
        if key in given:
            raise UserError(f"{key!r}: a pair of replies, which `rlspeech dpo --pairs` reads; this is a manifest")
    if changes := [key for key in CHANGES_PROMPT if given.get(key)]:
        raise UserError(f"{changes[0]!r} changes what is asked, and a sample has no place for it; take it out")
    if given.get("label") is False:
        raise UserError("label false: the completion is not one to learn; take the row out")
    column, *other = [key for key in ("messages", "prompt") if key in given] or [""]
    if not column:
        raise UserError("'prompt' missing beside 'completion'")
    if both := [*other, *(key for key in ("instruction", "instructions") if key in given)]:
        raise UserError(f"both {column!r} and {both[0]!r}; keep one")
    messages = read_messages(given.pop(column), column, role="user")
    if "completion" in given:
        messages += read_messages(given.pop("completion"), "completion", role="assistant")
    asked, reply = exchange(messages, column)
    if reply is not None and (both := [key for key in ("answer", "reference") if key in given]):
        raise UserError(f"both a reply in the conversation and {both[0]!r}; keep one")
    more = given.get("more_audio", [])
    if not isinstance(more, list):
        raise UserError("'more_audio' must be a list of paths")
    first, *others = heard(given.pop("audio_filepath", None) or given.get("audio"), more, asked) or [None]
    answer = {} if reply is None else {"answer": reply.text}
    return given | {"instruction": asked.text, "audio": first, "more_audio": others} | answer


def _stretch(offset: Any, duration: Any) -> dict[str, Any]:
    both = all(isinstance(value, int | float) for value in (offset, duration))
    return {"start_s": offset, "end_s": offset + duration if both else duration}
