"""Conversations as TRL's data sets and transformers' chat templates have them: what is asked, what is heard, the reply.

A message's content is a text, or a list of parts: `{"type": "text", "text": ...}`, and `{"type": "audio"}` with a file
under `audio`, `path` or `url`, or without one where the row names its audio. A sample is one instruction and its
answer: a conversation that says more than that is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlspeech.errors import UserError

FILE = ("audio", "path", "url", "audio_url")  # where an audio part may name its file


@dataclass(frozen=True)
class Message:
    role: str
    text: str
    files: tuple[str | None, ...] = ()  # of its audio parts, in their order; None where a part names none


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def read_messages(value: Any, column: str, *, role: str) -> list[Message]:
    """Of a column. A plain text is one message of the role. Raises UserError, as all here, without the place."""
    if isinstance(value, str):
        return [Message(role, value)]
    if not isinstance(value, list) or not value:
        raise UserError(f"{column!r} must be a text or a list of messages")
    return [_message(one, f"{column}[{index}]") for index, one in enumerate(value)]


def exchange(messages: Sequence[Message], column: str) -> tuple[Message, Message | None]:
    """The user's message, and the reply where there is one."""
    roles = [one.role for one in messages]
    if roles not in (["user"], ["user", "assistant"]):
        only = "a sample is one instruction and its answer"
        if other := [role for role in roles if role not in ("user", "assistant")]:
            mend = "put its text into the user's message, or take it out"
            raise UserError(f"{column!r} has a message of role {other[0]!r}; {only}: {mend}")
        if "user" not in roles:
            raise UserError(f"{column!r} has no message of a user")
        told = ", ".join(roles)
        raise UserError(f"{column!r} has several turns ({told}); {only}: make a row of each that stands alone")
    asked, reply = messages[0], messages[1] if len(messages) > 1 else None
    if not asked.text.strip():
        raise UserError(f"{column!r}: the user's message has no text")
    if reply is not None and reply.files:
        raise UserError(f"{column!r} has audio in the reply; a reply is text")
    return asked, reply


def heard(column: Any, more: Sequence[Any], asked: Message) -> list[Any]:
    """Files of a row, in their order: of its `audio`, a path or a list of them, and `more_audio`; else of the parts."""
    files = column if isinstance(column, list) else [column] if column else []
    if not all(isinstance(file, str) for file in files):
        raise UserError("'audio' must be the path of a file, relative to the one that names it, or a list of paths")
    named = [*files, *more]
    if not named:
        if None in asked.files:
            raise UserError("an audio part names no file, and the row has no 'audio'")
        return list(asked.files)
    if asked.files and len(asked.files) != len(named):
        raise UserError(f"'audio' names {len(named)} of the {len(asked.files)} audio parts of the conversation")
    for file, part in zip(named, asked.files, strict=False):
        if part not in (None, file):
            raise UserError(f"'audio' names {file!r} and the conversation {part!r}; keep one")
    return named


def _message(value: Any, where: str) -> Message:
    role, content = (value.get("role"), value.get("content")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(role, str):
        raise UserError(f"{where!r} must be a message with role and content")
    if isinstance(content, str):
        return Message(role, content)
    if not isinstance(content, list):
        raise UserError(f"{where!r} has no content; it must be a text or a list of parts")
    texts: list[str] = []
    files: list[str | None] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "audio":
            files.append(_file(part, f"{where}.content[{index}]"))
        else:
            raise UserError(f"'{where}.content[{index}]' must be a part of type text, with its text, or audio")
    return Message(role, "".join(texts), tuple(files))


def _file(part: Mapping[str, Any], where: str) -> str | None:
    named = [part[key] for key in FILE if part.get(key) is not None]
    if len(named) > 1 or not all(isinstance(one, str) for one in named):
        raise UserError(f"{where!r} must name one file, under 'audio'")
    return named[0] if named else None
