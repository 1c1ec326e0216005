"""Tokens of two vocabularies in common classes, so that distributions over both can be compared.

Where the teacher says " V" and then "ictor", the student may say " Victor" at once: as tokens of equal bytes these are
different events, and a student that moves its mass to " V" has learned to spell. A class is a piece of bytes that both
tokenizers write as one token. A token belongs to the class that is reached by taking the first token of what the other
tokenizer makes of it, and of what its own makes of that, until nothing changes: " Victor" belongs to " V". Two
distributions summed over classes are those of one function of the text that follows, as far as the first token of a
text does not hang on what comes behind it; so the divergence between them is never above that of the texts.

V student's vocabulary, W teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rlspeech.engines.token_bytes import TokenBytes
from rlspeech.maths.align import Ints

NO_CLASS = -1


def classes(
    student: TokenBytes, teacher: TokenBytes, ours: Mapping[bytes, int], theirs: Mapping[bytes, int]
) -> tuple[Ints, Ints]:
    """The student's token that names the class of each of the student's tokens [V], and of the teacher's [W] or -1.

    `ours`, `theirs`: the token of each piece of bytes. A student's token without a class of both names its own. Bytes
    that are no text by themselves (a part of a character) are a class where both have them. A tokenizer that puts a
    space before any text tells nothing of pieces in the middle: there, a class is a piece that both have.
    """
    if student.prefix or teacher.prefix:
        reached = {piece: piece for piece in ours.keys() & theirs.keys()}
    else:
        reached = _reached(student, teacher, ours, theirs)
    of_ours = np.arange(len(student.table), dtype=np.int64)
    of_theirs = np.full(len(teacher.table), NO_CLASS, dtype=np.int64)
    for piece, index in ours.items():
        of_ours[index] = ours.get(reached.get(piece, piece), index)
    for piece, index in theirs.items():
        of_theirs[index] = ours.get(reached.get(piece, b""), NO_CLASS)
    return of_ours, of_theirs


def _reached(
    student: TokenBytes, teacher: TokenBytes, ours: Mapping[bytes, int], theirs: Mapping[bytes, int]
) -> dict[bytes, bytes]:
    """The class of each piece of either vocabulary that has one."""
    both = ours.keys() & theirs.keys()
    texts = {piece: text for piece in ours.keys() | theirs.keys() if (text := _text(piece)) is not None}
    by_student, by_teacher = _firsts(student, texts), _firsts(teacher, texts)
    if by_student == by_teacher:  # one tokenizer: a token is its own class, also one that is never written
        return {piece: piece for piece in both}
    reached = {piece: piece for piece in both if piece not in texts}
    for piece in texts:
        now, before = piece, None
        while now != before and now in by_student and now in by_teacher:
            before, now = now, by_student.get(by_teacher[now], now)
        if now in both:
            reached[piece] = now
    return reached


def _firsts(side: TokenBytes, texts: Mapping[bytes, str]) -> dict[bytes, bytes]:
    """The first token of what a tokenizer makes of each piece, where that is a beginning of it."""
    encoded = side.encode(list(texts.values()))
    firsts = ((piece, side.table[ids[0]]) for piece, ids in zip(texts, encoded, strict=True) if ids)
    return {piece: first for piece, first in firsts if first and piece.startswith(first)}


def _text(piece: bytes) -> str | None:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return None
