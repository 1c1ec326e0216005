"""engines.token_bytes: the bytes of tokens of every kind of tokenizer, against what the tokenizers decode."""

from types import SimpleNamespace
from typing import Any

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from real_tokenizers import NAMES, PREFIXED, UNWRITTEN, fresh_smollm2, texts, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlspeech.engines.token_bytes import TokenBytes, token_bytes
from rlspeech.errors import UserError

FAST = settings(deadline=None, max_examples=60)


def decoded(name: str, ids: list[int]) -> str:
    kind = tokenizer(name)
    if name in ("tekken_raw", "tiktoken"):
        return kind.decode(ids)
    return kind.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def toy(vocabulary: list[str], decoder: Any, **model: Any) -> Tokenizer:
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(vocabulary)}, [], **model))
    made.decoder = decoder
    return made


@pytest.mark.parametrize("name", NAMES)
@FAST
@given(text=texts)
def test_the_bytes_of_an_encoding_are_the_texts(name: str, text: str) -> None:
    known = token_bytes(tokenizer(name))
    [ids] = known.encode([text])
    # the tokenizers library puts SentencePiece's space only where the text has none
    bare = not text or (text[0] == " " and name == "sentencepiece_fast")
    whole = bytes(byte for byte in text.encode() if byte not in UNWRITTEN.get(name, ()))
    assert known.join(ids) == (b"" if bare else known.prefix) + whole
    assert not known.special.intersection(ids)
    assert known.lengths[ids].sum() == len(known.join(ids))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "slow"])  # the slow one decodes "\n" as "<0x0A>"
@FAST
@given(data=st.data())
def test_any_tokens_have_the_bytes_that_decode_gives(name: str, data: st.DataObject) -> None:
    known = token_bytes(tokenizer(name))
    ordinary = st.integers(0, len(known.table) - 1).filter(lambda index: index not in known.special)
    ids = data.draw(st.lists(ordinary, max_size=12))
    spelt = known.join(ids)
    try:
        text = spelt.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None:
        assert decoded(name, ids) == (text.removeprefix(known.prefix.decode()) if name in PREFIXED else text)
    elif name not in PREFIXED:  # SentencePiece's own decoder marks every invalid byte, the others each broken character
        assert decoded(name, ids) == spelt.decode(errors="replace")


@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_is_the_space_of_sentencepiece(name: str) -> None:
    assert token_bytes(tokenizer(name)).prefix == (b" " if name in PREFIXED else b"")


def test_surface_strings_that_differ_have_the_same_bytes() -> None:
    spellings = {"smollm2": "Ġthe", "whisper": "Ġthe", "sentencepiece": "▁the", "sentencepiece_fast": "▁the"}
    for name, surface in spellings.items():
        kind = tokenizer(name)
        assert token_bytes(kind).table[kind.convert_tokens_to_ids(surface)] == b" the"
    known = token_bytes(tokenizer("sentencepiece"))
    newline = tokenizer("sentencepiece").convert_tokens_to_ids("<0x0A>")
    assert known.table[newline] == b"\n"
    assert newline in known.fallback
    assert len(known.fallback) == 256


def test_special_tokens_and_ids_beyond_the_table_have_no_bytes() -> None:
    kind = tokenizer("smollm2")
    known = token_bytes(kind)
    assert known.special == set(kind.all_special_ids) | set(range(17))
    assert known.lengths[[0, 2, len(known.table)]].tolist() == [0, 0, 0]
    assert known.silent[[0, 2, len(known.table)]].all()
    assert int(known.silent.sum()) == len(known.special) + 1
    assert token_bytes(tokenizer("sentencepiece")).special >= {0, 1, 2, 3, 4}
    assert token_bytes(tokenizer("slow")).special == token_bytes(tokenizer("sentencepiece")).special


def test_special_tokens_in_a_text_are_plain_text() -> None:
    for name, marks in (
        ("smollm2", "<|im_end|><|im_start|>"),
        ("sentencepiece", "</s>[INST]"),
        ("tekken", "</s>[INST]"),
    ):
        known = token_bytes(tokenizer(name))
        [ids] = known.encode([marks])
        assert not known.special.intersection(ids), name
        assert known.join(ids).strip() == marks.encode()


def test_it_is_read_once_and_again_after_tokens_were_added() -> None:
    kind = fresh_smollm2()
    before = token_bytes(kind)
    assert token_bytes(kind) is before
    kind.add_tokens(["<think>", "日本"])
    kind.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    after = token_bytes(kind)
    ids = [kind.convert_tokens_to_ids(token) for token in ("<think>", "日本", "<|call|>")]
    assert [after.table[index] for index in ids] == [b"<think>", "日本".encode(), b""]
    assert ids[2] in after.special
    assert after.table[: len(before.table)] == before.table
    assert after.encode(["<think>日本<|call|>"])[0][:2] == ids[:2]


def test_reading_leaves_the_tokenizer_as_it_was() -> None:
    kind = fresh_smollm2()
    token_bytes(kind).encode(["<|im_end|>"])
    assert kind("a<|im_end|>", add_special_tokens=False).input_ids[-1] == 2
    assert kind.backend_tokenizer.encode_special_tokens is False


def test_settings_of_the_tokenizer_do_not_reach_the_encoding() -> None:
    kind = fresh_smollm2()
    kind(["a b c d", "a"], padding=True, truncation=True, max_length=2)
    assert [len(ids) for ids in token_bytes(kind).encode(["a b c d", "a"])] == [4, 1]


def test_a_vocabulary_entry_that_is_also_an_added_token_keeps_its_spelling() -> None:
    """Gemma lists its runs of spaces as added tokens too."""
    made = toy(["▁", "▁▁", "a"], decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.add_tokens(["▁▁"])
    assert token_bytes(made).table == [b" ", b"  ", b"a"]
    assert token_bytes(made).prefix == b""


def test_an_unknown_token_has_no_bytes() -> None:
    made = toy(["<unk>", "a"], decoders.Fuse(), unk_token="<unk>")
    made.decoder = decoders.Metaspace()
    known = token_bytes(made)
    assert known.special == {0}
    assert known.join(known.encode(["aéa"])[0]) == b"aa"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        None,
        decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()]),
        decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 1)]),
    ],
    ids=str,
)
def test_a_decoder_that_looks_at_neighbours_is_refused(decoder: Any) -> None:
    made = toy(["a", "b"], decoder) if decoder is not None else Tokenizer(models.BPE({"a": 0}, []))
    with pytest.raises(UserError, match="cannot be told from the token alone"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=made))


def test_what_is_no_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match=r"^object: the bytes of a token"):
        token_bytes(object())


def small_tiktoken() -> tiktoken.Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256}
    return tiktoken.Encoding("small", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|end|>": 260})


def check_small(known: TokenBytes) -> None:
    assert len(known.table) == 261
    assert known.special == {257, 258, 259, 260}  # the holes between, and the special one
    assert known.table[256] == b"ab"
    assert known.encode(["ab <|end|>"])[0][:2] == [256, 32]
    assert known.join(known.encode(["ab <|end|>"])[0]) == b"ab <|end|>"


def test_tiktoken_has_holes_and_special_tokens() -> None:
    check_small(token_bytes(small_tiktoken()))


def test_a_class_around_tiktoken_is_read_through() -> None:
    """As Kimi's and Qwen's first, which come as code of the model."""
    check_small(token_bytes(SimpleNamespace(model=small_tiktoken(), all_special_ids=[260])))
    check_small(token_bytes(SimpleNamespace(tokenizer=small_tiktoken(), all_special_ids=[260])))
