"""The bytes that each token of a tokenizer stands for: "Ġthe" and "▁the" are the same four."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rlspeech.errors import UserError

Encode = Callable[[Sequence[str]], list[list[int]]]

SPACE = "▁"  # SentencePiece's mark for a space
BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")  # SentencePiece's tokens of one byte
PROBE = "a"  # what comes before it in its encoding, a tokenizer puts before any text


@dataclass(frozen=True)
class TokenBytes:
    """Of a tokenizer with V tokens. `encode` reads plain text: nothing in it is taken for a special token."""

    table: list[bytes]  # [V] by id; empty where the token stands for no bytes
    special: frozenset[int]  # ids that stand for no bytes; so does every id that is not in the table
    prefix: bytes  # what the tokenizer puts before any text: a space (SentencePiece's dummy prefix) or nothing
    fallback: frozenset[int]  # ids of single bytes that are written only where no other token fits
    encode: Encode

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each token [V + 1]; the last entry stands for all ids that are not in the table."""
        return np.fromiter((*map(len, self.table), 0), dtype=np.int64)

    @cached_property
    def silent(self) -> NDArray[np.bool_]:
        """Which ids stand for no bytes [V + 1]; the last entry stands for all ids that are not in the table."""
        found = np.zeros(len(self.table) + 1, dtype=bool)
        found[[*self.special, -1]] = True
        return found

    def without(self, index: int) -> TokenBytes:
        """The same, where that id stands for no bytes."""
        if index in self.special or not 0 <= index < len(self.table):
            return self
        table = [*self.table[:index], b"", *self.table[index + 1 :]]
        return replace(self, table=table, special=self.special | {index})

    def join(self, ids: Iterable[int]) -> bytes:
        """The bytes of tokens of the table, with those of the prefix."""
        return b"".join(map(self.table.__getitem__, ids))


def token_bytes(tokenizer: Any) -> TokenBytes:
    """Read once for each tokenizer object, and again where tokens were added to it.

    Exact for transformers' tokenizers that are byte-level or SentencePiece (fast, slow, mistral-common), for those of
    the tokenizers library and of mistral-common itself, for tiktoken and what is made of it. An added token has the
    bytes of its text, unless it is special. Raises UserError where the bytes of a token depend on its neighbours.
    """
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    try:
        known = _READ.get(tokenizer)
    except TypeError:  # of the tokenizers library: cannot be referred to weakly
        return _read(tokenizer)
    if known is None or known[0] != size:
        known = _READ[tokenizer] = (size, _read(tokenizer))
    return known[1]


# With its number of tokens. A tokenizer that `encode` itself needs is kept as long as the process lives.
_READ: WeakKeyDictionary[Any, tuple[int | None, TokenBytes]] = WeakKeyDictionary()


def _read(tokenizer: Any) -> TokenBytes:
    inner = mistral(tokenizer)
    if inner is not None:
        return _of_mistral(inner)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if type(backend).__module__.startswith("tokenizers"):
        return _of_fast(backend, getattr(tokenizer, "all_special_ids", ()))
    for encoding in (tokenizer, getattr(tokenizer, "tokenizer", None), getattr(tokenizer, "model", None)):
        if hasattr(encoding, "decode_single_token_bytes"):
            return _of_tiktoken(encoding, getattr(tokenizer, "all_special_ids", ()))
    if hasattr(tokenizer, "sp_model"):
        return _of_slow(tokenizer)
    raise _inexact(type(tokenizer).__name__)


def mistral(tokenizer: Any) -> Any:
    """The tokenizer of mistral-common inside of its own or transformers' wrapper; None where it is none."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    inner = getattr(getattr(inner, "instruct_tokenizer", inner), "tokenizer", inner)
    return inner if type(inner).__module__.startswith("mistral_common.") else None


def _of_mistral(inner: Any) -> TokenBytes:
    special = {*inner.special_ids, inner.unk_id}
    ids = [index for index in range(inner.n_words) if index not in special]
    if hasattr(inner, "id_to_byte_piece"):  # Tekken
        pieces = {index: inner.id_to_byte_piece(index) for index in ids}
        fallback: Iterable[int] = ()
    else:
        names = {index: inner.id_to_piece(index) for index in ids}
        pieces = {index: _of_sentencepiece(name) for index, name in names.items()}
        fallback = _fallback(names)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [inner.encode(text, bos=False, eos=False) for text in texts]

    return _finished(pieces, inner.n_words, fallback, encode)


def _of_tiktoken(encoding: Any, special_ids: Iterable[int]) -> TokenBytes:
    special = {*special_ids, *map(encoding.encode_single_token, encoding.special_tokens_set)}
    pieces = {}
    for index in range(encoding.n_vocab):
        try:
            pieces[index] = encoding.decode_single_token_bytes(index)
        except KeyError:  # a hole between the ordinary and the special tokens
            continue
    pieces = {index: piece for index, piece in pieces.items() if index not in special}
    return _finished(pieces, encoding.n_vocab, (), lambda texts: encoding.encode_ordinary_batch(list(texts)))


def _of_fast(backend: Any, special_ids: Iterable[int]) -> TokenBytes:
    own = type(backend).from_str(backend.to_str())  # our settings are not to be those of others who use it
    own.no_padding()
    own.no_truncation()
    own.encode_special_tokens = True
    added = own.get_added_tokens_decoder()
    vocabulary = own.get_vocab(with_added_tokens=False)
    spell = _decoder(json.loads(own.decoder.__getstate__())) if own.decoder is not None else None
    if spell is None:
        raise _inexact(f"a tokenizer with the decoder {own.decoder}")
    special = {*special_ids, *(index for index, token in added.items() if token.special)}
    special.add(vocabulary.get(getattr(own.model, "unk_token", None), -1))
    names = {index: name for name, index in vocabulary.items() if index not in special}
    pieces = {index: spell(name) for index, name in names.items()}
    pieces |= {i: t.content.encode() for i, t in added.items() if i not in special and i not in names}
    fallback = () if spell is _of_byte_level else _fallback(names)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in own.encode_batch_fast(list(texts), add_special_tokens=False)]

    return _finished(pieces, 1 + max([*vocabulary.values(), *added]), fallback, encode)


def _of_slow(tokenizer: Any) -> TokenBytes:
    """transformers' own classes around a SentencePiece model: ids are theirs, kinds of pieces the model's."""
    model = tokenizer.sp_model
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    names = dict(enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))))
    names = {i: name for i, name in names.items() if i not in special and not _unsaid(model, name, i in added)}
    pieces = {index: name.encode() if index in added else _of_sentencepiece(name) for index, name in names.items()}

    def encode(texts: Sequence[str]) -> list[list[int]]:
        plain = {"add_special_tokens": False, "split_special_tokens": True}
        return tokenizer(list(texts), **plain).input_ids if texts else []

    return _finished(pieces, len(tokenizer), _fallback(names), encode)


def _unsaid(model: Any, name: str, added: bool) -> bool:
    index = model.piece_to_id(name)
    return not added and (model.IsControl(index) or model.IsUnknown(index) or model.IsUnused(index))


def _finished(pieces: Mapping[int, bytes], size: int, fallback: Iterable[int], encode: Encode) -> TokenBytes:
    table = [pieces.get(index, b"") for index in range(size)]
    special = frozenset(index for index in range(size) if index not in pieces)
    [ids] = encode([PROBE])
    spelt = b"".join(table[index] for index in ids)
    prefix = spelt.removesuffix(PROBE.encode()) if spelt.endswith(PROBE.encode()) else b""
    return TokenBytes(table, special, prefix, frozenset(fallback), encode)


def _decoder(told: Mapping[str, Any]) -> Callable[[str], bytes] | None:
    """How a decoder of the tokenizers library spells one token; None where that depends on its neighbours.

    It takes the spaces that a tokenizer puts before any text (Strip) off the whole: that is the prefix.
    """
    steps = list(_steps(told))
    kinds = {step["type"] for step in steps}
    if kinds == {"ByteLevel"}:
        return _of_byte_level
    spaces = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    for step in steps:
        if step["type"] == "Replace":
            spaces.append(step["pattern"].get("String", "") if step["content"] == " " else "")
    stripped = [(step["start"], step["stop"], step["content"]) for step in steps if step["type"] == "Strip"]
    known = kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
    return _of_sentencepiece if known and spaces == [SPACE] and stripped in ([], [(1, 0, " ")]) else None


def _steps(told: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if told["type"] != "Sequence":
        yield told
        return
    for step in told["decoders"]:
        yield from _steps(step)


def _of_sentencepiece(name: str) -> bytes:
    byte = BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(SPACE, " ").encode()


def _fallback(names: Mapping[int, str]) -> list[int]:
    return [index for index, name in names.items() if BYTE.fullmatch(name)]


def _alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a letter: itself where it is printable, else one from 256 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(256 + place): byte for place, byte in enumerate(others)}


ALPHABET = _alphabet()


def _of_byte_level(name: str) -> bytes:
    try:
        return bytes([ALPHABET[letter] for letter in name])
    except KeyError:  # it was put into the vocabulary as plain text, and is read so by the decoder too
        return name.encode()


def _inexact(what: str) -> UserError:
    return UserError(
        f"{what}: the bytes of a token cannot be told from the token alone; "
        "give a model whose tokenizer is byte-level, SentencePiece or tiktoken"
    )
