"""A student's reply as a teacher with another tokenizer reads it: the same bytes, cut into the teacher's own tokens.

The readable part of a reply is its longest beginning that both sides have byte for byte, up to the last boundary that
both have. Nothing is normalised, and nothing that the student wrote is taken for a special token of the teacher.

Shape letters: N student's tokens, M teacher's tokens, V teacher's vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from rlspeech.engines.token_bytes import TokenBytes, mistral, token_bytes
from rlspeech.engines.token_classes import classes
from rlspeech.errors import UserError
from rlspeech.maths.align import Ints, Spans, align

Reason = Literal["", "invalid_utf8", "special_token", "not_reversible", "after_end"]

ANSWER = "Tuesday"  # an assistant's turn in any language's template


class Reread(NamedTuple):
    """What the teacher is to score. Student's tokens from `readable` on have no score, for `reason`.

    - invalid_utf8: bytes that are no text, which may be a character that was cut at the length limit
    - special_token: a token of the student that stands for no text and is not its end of turn
    - not_reversible: the teacher's tokenizer gives other bytes back (it normalises or trims)
    - after_end: tokens after the student's end of turn
    """

    teacher_ids: list[int]  # [M] with the teacher's end of turn where the student wrote its own
    spans: Spans  # left: the student's readable tokens; right: teacher_ids. Ends of turn are a span of their own
    readable: int  # student's tokens from the first one on
    reason: Reason  # empty: all are readable
    ended: bool  # the last span is that of the ends of turn


@dataclass(frozen=True)
class Rereader:
    """Of one pair of tokenizers, in which neither end of turn stands for any text."""

    student: TokenBytes
    teacher: TokenBytes
    student_end_id: int
    teacher_end_id: int

    @classmethod
    def of(cls, student_tokenizer: Any, student_end_id: int, teacher_tokenizer: Any) -> Rereader:
        """Raises UserError where a token's bytes cannot be told, or the teacher has no end of turn."""
        end_id = end_of_turn(teacher_tokenizer)
        student, teacher = token_bytes(student_tokenizer), token_bytes(teacher_tokenizer)
        return cls(student.without(student_end_id), teacher.without(end_id), student_end_id, end_id)

    def read(self, replies: Sequence[Sequence[int]]) -> list[Reread]:
        """Replies are token ids of the student, with its end of turn where one was written."""
        written = [self._written(reply) for reply in replies]
        encoded = self.teacher.encode([each.text for each in written])
        sides = [self._sides(each, ids) for each, ids in zip(written, encoded, strict=True)]
        spans = align([each.left for each in sides], [each.right for each in sides])
        return [
            Reread(each.teacher_ids, found, len(each.left), each.reason, each.ended)
            for each, found in zip(sides, spans, strict=True)
        ]

    def _written(self, reply: Sequence[int]) -> _Written:
        """The text of a reply, up to the first token that is none."""
        ids = np.asarray(reply, dtype=np.int64)
        known = np.where(ids < 0, len(self.student.table), np.minimum(ids, len(self.student.table)))
        stops = np.flatnonzero(self.student.silent[known])
        stop = int(stops[0]) if len(stops) else len(ids)
        ended = stop < len(ids) and int(ids[stop]) == self.student_end_id
        rest: Reason = "" if stop + ended == len(ids) else "after_end" if ended else "special_token"
        left, data = _without(self.student.prefix, self.student.lengths[ids[:stop]], self.student.join(reply[:stop]))
        try:
            return _Written(left, data, data.decode(), ended, rest)
        except UnicodeDecodeError as error:
            return _Written(left, data, data[: error.start].decode(), False, "invalid_utf8")

    def _sides(self, written: _Written, teacher_ids: list[int]) -> _Sides:
        """The lengths of both sides' tokens as far as both have the same bytes."""
        text = written.text.encode()
        right, agree = self._agreeing(text, teacher_ids)
        left, ended, reason = written.left, written.ended, written.reason
        if not agree == len(text) == int(right.sum()):
            ended, reason = False, "not_reversible"
        if not agree == len(written.data) == int(right.sum()) or not (agree or ended):
            kept = _last_common(left, right, agree)
            left, right, teacher_ids = left[: kept[0]], right[: kept[1]], teacher_ids[: kept[1]]
            reason = reason or ("not_reversible" if len(written.left) else "")
        if ended:  # one more byte on both sides: a boundary before it and one behind it
            left, right, teacher_ids = np.append(left, 1), np.append(right, 1), [*teacher_ids, self.teacher_end_id]
        return _Sides(left, right, teacher_ids, ended, reason)

    def _agreeing(self, text: bytes, teacher_ids: list[int]) -> tuple[Ints, int]:
        """Bytes of the teacher's tokens [M], and how many of the text's they spell.

        A tokenizer may put its leading space before a text only where the text has none.
        """
        lengths, data = self.teacher.lengths[teacher_ids], self.teacher.join(teacher_ids)
        bare, rest = _without(self.teacher.prefix, lengths, data)
        agree = _common_beginning(rest, text)
        if agree < len(text) and len(rest) < len(data) and (whole := _common_beginning(data, text)) > agree:
            return lengths, whole
        return bare, agree

    @cached_property
    def vocabulary(self) -> Ints:
        """The student's token of the same bytes for each of the teacher's [V], or -1; the ends of turn are a pair.

        No student's token stands twice. Of tokens with equal bytes it is the one that the tokenizer itself writes.
        """
        return self._map(at_start=False)

    @cached_property
    def vocabulary_at_start(self) -> Ints:
        """The same for the first token of a reply, where a leading space that a tokenizer puts there is nobody's."""
        return self._map(at_start=True) if self.student.prefix or self.teacher.prefix else self.vocabulary

    @cached_property
    def classes(self) -> tuple[Ints, Ints]:
        """As token_classes.classes, the ends of turn being a class: the student's [U], and the teacher's [V] or -1."""
        owners = (_owners(side, at_start=False) for side in (self.student, self.teacher))
        ours, theirs = classes(self.student, self.teacher, *owners)
        theirs[self.teacher_end_id] = self.student_end_id
        return ours, theirs

    def _map(self, *, at_start: bool) -> Ints:
        ours, theirs = _owners(self.student, at_start=at_start), _owners(self.teacher, at_start=at_start)
        found = np.full(len(self.teacher.table), -1, dtype=np.int64)
        for piece, index in theirs.items():
            found[index] = ours.get(piece, -1)
        found[self.teacher_end_id] = self.student_end_id
        return found


class _Written(NamedTuple):
    left: Ints  # [N] bytes of each of the student's tokens before the first that is no text
    data: bytes
    text: str  # as much of it as is UTF-8
    ended: bool
    reason: Reason


class _Sides(NamedTuple):
    left: Ints
    right: Ints
    teacher_ids: list[int]
    ended: bool
    reason: Reason


def _without(prefix: bytes, lengths: Ints, data: bytes) -> tuple[Ints, bytes]:
    """What a tokenizer puts before any text is taken off the first tokens."""
    if not prefix or not data.startswith(prefix):
        return lengths, data
    ends = np.maximum(np.cumsum(lengths) - len(prefix), 0)
    return np.diff(ends, prepend=0), data[len(prefix) :]


def _common_beginning(one: bytes, other: bytes) -> int:
    if one == other:
        return len(one)
    length = min(len(one), len(other))
    differ = np.frombuffer(one, np.uint8, length) != np.frombuffer(other, np.uint8, length)
    return int(differ.argmax()) if differ.any() else length


def _last_common(left: Ints, right: Ints, limit: int) -> tuple[int, int]:
    """Tokens of both sides up to the first ones that end at their last common boundary of at most `limit` bytes."""
    ends = np.cumsum(left), np.cumsum(right)
    common = np.intersect1d(*ends)
    cut = common[(common > 0) & (common <= limit)]
    if not len(cut):
        return 0, 0
    return int(np.searchsorted(ends[0], cut[-1])) + 1, int(np.searchsorted(ends[1], cut[-1])) + 1


def _owners(side: TokenBytes, *, at_start: bool) -> dict[bytes, int]:
    """The token of each piece of bytes. Of several: what the tokenizer writes for them, else the first ordinary one."""
    prefix = side.prefix if at_start else b""
    found: dict[bytes, int] = {}
    several: dict[bytes, list[int]] = {}
    for index, piece in enumerate(side.table):
        piece = piece.removeprefix(prefix)
        if not piece:
            continue
        if piece in found:
            several.setdefault(piece, [found[piece]]).append(index)
        else:
            found[piece] = index
    texts = {piece: piece.decode(errors="ignore") for piece in several}
    for (piece, ids), encoded in zip(several.items(), side.encode(list(texts.values())), strict=True):
        written = [index for index in ids if encoded == [index]]
        found[piece] = (written or sorted(ids, key=lambda index: (index in side.fallback, index)))[0]
    return found


def end_of_turn(tokenizer: Any) -> int:
    """The token that follows an assistant's answer in the tokenizer's chat template, else its end of sequence.

    Raises UserError where there is neither.
    """
    inner = mistral(tokenizer)
    if inner is not None:  # its formats all end an answer so
        return inner.eos_id
    found = _after_answer(tokenizer) if getattr(tokenizer, "chat_template", None) else None
    if found is None:
        found = getattr(tokenizer, "eos_token_id", None)
    if found is None:
        raise UserError(
            f"{getattr(tokenizer, 'name_or_path', '') or type(tokenizer).__name__}: no token ends an assistant's turn: "
            "its chat template closes no answer and it has no eos_token; set one of them in tokenizer_config.json"
        )
    return int(found)


def _after_answer(tokenizer: Any) -> int | None:
    """The first special or added token after an answer, with nothing but spaces in between."""
    chat = [{"role": "user", "content": "Which day is it?"}, {"role": "assistant", "content": ANSWER}]
    try:
        ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    except TemplateError:  # a template may refuse what it likes
        return None
    known = token_bytes(tokenizer)
    control: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    data = known.join(ids)
    if ANSWER.encode() not in data:
        return None
    answered = data.rindex(ANSWER.encode()) + len(ANSWER)
    ends: NDArray[np.int64] = np.cumsum(known.lengths[ids])
    last = int(np.searchsorted(ends, answered))  # the token that completes the answer
    if data[answered : ends[last]].strip():
        return None
    for index in ids[last + 1 :]:
        if index in known.special or index in control:
            return index
        if known.table[index].strip():
            return None
    return None
