"""Files of a run as values, with `file:line: what` where one is damaged; and text written whole or not at all."""

import contextlib
import json
import os
import tomllib
from pathlib import Path
from typing import Any

from rlspeech.errors import UserError


def read_json(file: Path) -> Any | None:
    """The value, or None where there is no file. NaN and infinities, which are no JSON, become None."""
    if not file.is_file():
        return None
    try:
        return json.loads(_text(file), parse_constant=_nothing)
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: damaged JSON: {error.msg}; make the file anew") from error


def read_jsonl(file: Path) -> list[dict[str, Any]]:
    """The records; none where there is no file. A last line torn by a kill is left out."""
    if not file.is_file():
        return []
    *lines, _ = _text(file).split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line, parse_constant=_nothing)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{number}: damaged JSON: {error.msg}; delete the line") from error
        if not isinstance(record, dict):
            raise UserError(f"{file}:{number}: not a JSON object; delete the line")
        records.append(record)
    return records


def read_toml(file: Path) -> dict[str, Any] | None:
    """The settings, or None where there is no file."""
    if not file.is_file():
        return None
    try:
        return tomllib.loads(_text(file))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: damaged TOML: {error}") from error


def write_text(file: Path, text: str) -> None:
    """Writes beside and renames, so that a reader sees the old file or the new one; folders are made."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f"{file}: cannot be written: {error.strerror}; choose another --out") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}:{line}: not UTF-8 text; make the file anew") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


def _nothing(constant: str) -> None:
    return None
