"""Rows of other people's data sets (NeMo manifests, Hugging Face columns) as rows of ours."""

from collections.abc import Mapping
from typing import Any

from rlspeech.data.rows import TRANSCRIBE, Row

NAMES = {
    "audio_filepath": "audio",
    "duration": "duration_s",
    "text": "transcript",
    "transcription": "transcript",
    "sentence": "transcript",
    "language": "lang",
}


def as_row(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields under our names, `name` as the id where there is none, and `offset` with `duration` as a stretch.

    Keys that no row has become tags where they are plain values. Without an instruction the row asks for its
    transcript.
    """
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


def _stretch(offset: Any, duration: Any) -> dict[str, Any]:
    both = all(isinstance(value, int | float) for value in (offset, duration))
    return {"start_s": offset, "end_s": offset + duration if both else duration}
