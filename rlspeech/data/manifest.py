"""Manifests: JSONL of our rows, NeMo's or TRL's, or a Hugging Face dataset folder, read into samples; and written.

A row is a recording (rows.py has its keys); every instruction of it becomes a sample. Audio paths are relative to the
manifest.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspeech.data import audio, hf
from rlspeech.data.foreign import as_row, is_foreign
from rlspeech.data.rows import Need, Row, parse, samples_of
from rlspeech.errors import UserError, did_you_mean
from rlspeech.types import Audio, Sample


@dataclass(frozen=True)
class Loaded:
    samples: tuple[Sample, ...]
    skipped: tuple[str, ...]  # what was wrong with each row that was left out: "file:line: what"


def read(path: Path, *, needs: Iterable[Need] = ("audio",), skip_bad: bool = False) -> Loaded:
    """Samples of a manifest or data set folder, in its order.

    `needs`: what every row must have, of audio (there and whole, by audio.probe), transcript, reference, words.
    Raises UserError `file:line: what` for the first bad row; with `skip_bad` bad rows are left out and listed, and
    only a manifest without one good row is an error.
    """
    wanted = frozenset(needs)
    samples: list[Sample] = []
    skipped: list[str] = []
    seen: dict[str, str] = {}  # where each id was
    for where, raw in hf.rows(path) if path.is_dir() else _lines(path):
        try:
            row = parse(_fields(raw, where))
            if row.id in seen:
                raise UserError(f"duplicate id {row.id!r}; first at {seen[row.id]}")
            found = samples_of(row, path.parent, wanted)
            if "audio" in wanted:
                _probe(row, path.parent)
        except UserError as error:
            if not skip_bad:
                raise UserError(f"{where}: {error}") from error
            skipped.append(f"{where}: {error}")
        else:
            seen[row.id] = where
            samples += found
    if not samples:
        raise UserError(f"{path}: no recordings" + (f" but bad ones: {skipped[0]}" if skipped else ""))
    return Loaded(tuple(samples), tuple(skipped))


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows, ours or TRL's, as JSONL, beside and renamed. `audio` is a path as this process sees it; the manifest
    gets it relative to itself, with forward slashes. Raises UserError where a row is not one that `read` takes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for row in rows:
                fields = {**row, "audio": relative(row["audio"], path.parent)} if row.get("audio") else {**row}
                if fields.get("more_audio"):
                    fields["more_audio"] = [relative(one, path.parent) for one in fields["more_audio"]]
                parse(as_row(fields, "") if is_foreign(fields) else fields)
                file.write(json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def relative(target: Path | str, folder: Path) -> str:
    """
    >>> relative("data/audio/a.wav", Path("data"))
    'audio/a.wav'
    """
    return Path(os.path.relpath(target, folder)).as_posix()


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """("file:line", line) for every line that is not blank."""
    if not path.is_file():
        near = sorted(file.name for file in path.parent.glob("*.jsonl")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such manifest{did_you_mean(path.name, near)}")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", line


def _fields(raw: bytes | Mapping[str, Any], where: str) -> Any:
    """Of a line, or of a row of a data set; under our names where they are others'."""
    if not isinstance(raw, bytes):
        return as_row(raw, f"row-{where[:-1].rpartition('[')[2]}")
    fields = _decoded(raw)
    if isinstance(fields, Mapping) and is_foreign(fields):
        return as_row(fields, f"line-{where.rpartition(':')[2]}")
    return fields


def _decoded(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: byte {line[error.start]:#04x} at {error.start}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"not JSON: {error.msg[0].lower()}{error.msg[1:]} at character {error.colno}") from error


def _probe(row: Row, folder: Path) -> None:
    if row.audio is None:
        raise UserError("audio missing: the row names none")
    audio.probe(Audio(folder / row.audio, row.start_s, row.end_s))
    for file in row.more_audio:
        audio.probe(Audio(folder / file))
