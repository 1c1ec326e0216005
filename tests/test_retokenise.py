"""engines.retokenise: a student's reply in the tokens of a teacher, on real tokenizers; every rule of what is read."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_tokenizers import NAMES, PREFIXED, fresh_smollm2, texts, tokenizer, written
from tokenizers import Tokenizer, decoders, normalizers
from transformers import PreTrainedTokenizerFast

from rlspeech.engines.retokenise import Reread, Rereader
from rlspeech.engines.token_bytes import TokenBytes, token_bytes
from rlspeech.errors import UserError

FAST = settings(deadline=None, max_examples=40)
ENDS = {"whisper": 50256, "smollm2": 2}  # of the others 2 too: </s>
PAIRS = [
    ("whisper", "smollm2"),
    ("smollm2", "sentencepiece"),
    ("sentencepiece", "smollm2"),
    ("tekken", "sentencepiece_fast"),
    ("sentencepiece_fast", "tekken"),
    ("slow", "whisper"),
    ("whisper", "tekken_raw"),
]
ENDLESS = ("tiktoken",)  # no end of turn, so no teacher


def reader(student: str, teacher: str) -> Rereader:
    return Rereader.of(tokenizer(student), ENDS.get(student, 2), tokenizer(teacher))


def ids_of(name: str, text: str) -> list[int]:
    [ids] = token_bytes(tokenizer(name)).encode([text])
    return ids


def read(rereader: Rereader, ids: Sequence[int]) -> Reread:
    [found] = rereader.read([ids])
    return found


def spelt(known: TokenBytes, ids: Sequence[int], end_id: int) -> bytes:
    """Without what the tokenizer puts before any text."""
    data = known.join(index for index in ids if index != end_id)
    return data.removeprefix(known.prefix)


def byte_tokens(name: str, data: bytes) -> list[int]:
    table = token_bytes(tokenizer(name)).table
    return [table.index(bytes([byte])) for byte in data]


def with_normalizer(normalizer: Any) -> Any:
    backend = Tokenizer.from_str(tokenizer("smollm2").backend_tokenizer.to_str())
    backend.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


def test_hand_worked_spans_of_two_segmentations() -> None:
    rereader = reader("whisper", "smollm2")
    reply = [*byte_tokens("whisper", b"He"), *ids_of("whisper", "llo"), *ids_of("whisper", " world"), 50256]
    found = read(rereader, reply)
    assert [rereader.teacher.table[index] for index in found.teacher_ids] == [b"Hello", b" world", b""]
    assert found.teacher_ids[-1] == 2
    assert found.spans.number == 3
    assert found.spans.left[:2].tolist() == [0, 0]
    assert found.spans.alone().tolist() == [False, True, True]
    assert (found.readable, found.reason, found.ended) == (len(reply), "", True)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_the_ends_of_turn_are_a_span_of_their_own(student: str, teacher: str) -> None:
    rereader = reader(student, teacher)
    found = read(rereader, [*ids_of(student, "On Tuesday."), ENDS.get(student, 2)])
    assert found.teacher_ids[-1] == rereader.teacher_end_id
    assert found.ended
    assert found.spans.alone()[-1]
    assert found.spans.left[-1] == found.spans.right[-1] == found.spans.number - 1


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_a_reply_cut_by_the_length_limit_has_no_end(student: str, teacher: str) -> None:
    rereader = reader(student, teacher)
    ids = ids_of(student, "On Tuesday, the 14th of Jan")
    found = read(rereader, ids)
    assert rereader.teacher_end_id not in found.teacher_ids
    assert (found.ended, found.readable, found.reason) == (False, len(ids), "")
    assert found.spans.left[-1] == found.spans.number - 1


def test_an_empty_reply_is_read_as_nothing() -> None:
    found = read(reader("whisper", "sentencepiece"), [])
    assert (found.teacher_ids, found.spans.number, found.readable, found.reason) == ([], 0, 0, "")


def test_a_reply_of_the_end_alone_is_one_span() -> None:
    found = read(reader("whisper", "sentencepiece"), [50256])
    assert (found.teacher_ids, found.spans.number, found.readable, found.ended) == ([2], 1, 1, True)
    assert found.spans.alone().tolist() == [True]


def test_text_after_the_end_is_not_read() -> None:
    ids = [*ids_of("whisper", "Yes."), 50256, *ids_of("whisper", " And more"), 50256]
    found = read(reader("whisper", "smollm2"), ids)
    assert (found.readable, found.reason, found.ended) == (ids.index(50256) + 1, "after_end", True)
    assert found.teacher_ids == [*ids_of("smollm2", "Yes."), 2]


@pytest.mark.parametrize("strange", [50257, 10**6, -1])
def test_a_special_token_in_the_middle_ends_what_is_read(strange: int) -> None:
    """Another special token, an id that only the padded embedding has, and none at all."""
    before = ids_of("whisper", "Well, yes")
    found = read(reader("whisper", "smollm2"), [*before, strange, *ids_of("whisper", " and no"), 50256])
    assert (found.readable, found.reason, found.ended) == (len(before), "special_token", False)
    assert found.teacher_ids == ids_of("smollm2", "Well, yes")


def test_a_character_cut_at_the_length_limit_is_not_read() -> None:
    before = ids_of("whisper", "Wow")
    cut = byte_tokens("whisper", "😀".encode()[:3])
    found = read(reader("whisper", "smollm2"), [*before, *cut])
    assert (found.readable, found.reason) == (len(before), "invalid_utf8")
    assert found.teacher_ids == ids_of("smollm2", "Wow")


def test_a_token_that_ends_in_half_a_character_is_not_read_at_all() -> None:
    table = token_bytes(tokenizer("whisper")).table
    half = table.index(b" \xe2\x80")  # the space could be read, the token cannot
    found = read(reader("whisper", "smollm2"), [*ids_of("whisper", "Wow"), half])
    assert (found.readable, found.reason) == (len(ids_of("whisper", "Wow")), "invalid_utf8")
    assert rejoined(found) == b"Wow"


def rejoined(found: Reread, teacher: str = "smollm2") -> bytes:
    return token_bytes(tokenizer(teacher)).join(found.teacher_ids)


@pytest.mark.parametrize(
    "broken", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"], ids=["byte", "half", "surrogate", "overlong"]
)
def test_bytes_that_are_no_text_end_what_is_read_though_text_follows(broken: bytes) -> None:
    before = ids_of("whisper", "So: ")
    ids = [*before, *byte_tokens("whisper", broken), *ids_of("whisper", "fine"), 50256]
    found = read(reader("whisper", "smollm2"), ids)
    assert found.reason == "invalid_utf8"
    assert found.readable == len(before)
    assert not found.ended
    assert rejoined(found) == b"So: "


def test_a_lowercasing_teacher_reads_up_to_the_first_capital() -> None:
    rereader = Rereader.of(tokenizer("whisper"), 50256, with_normalizer(normalizers.Lowercase()))
    found = read(rereader, [*ids_of("whisper", "on the way to Rome and back"), 50256])
    assert (found.reason, found.ended) == ("not_reversible", False)
    assert rejoined(found) == b"on the way to"
    assert read(rereader, [*ids_of("whisper", "Rome"), 50256]).readable == 0
    assert read(rereader, [*ids_of("whisper", "to rome"), 50256]).reason == ""


def test_a_composing_teacher_reads_composed_text_only() -> None:
    rereader = Rereader.of(tokenizer("whisper"), 50256, with_normalizer(normalizers.NFC()))
    assert read(rereader, [*ids_of("whisper", "un café"), 50256]).reason == ""
    found = read(rereader, [*ids_of("whisper", "un cafe\u0301 noir"), 50256])
    assert (found.reason, found.ended) == ("not_reversible", False)
    assert rejoined(found) == b"un"  # the teacher's next token is " caf" or longer, the student's other


def test_a_trimming_teacher_does_not_read_the_spaces_it_trims() -> None:
    rereader = Rereader.of(tokenizer("whisper"), 50256, with_normalizer(normalizers.Strip()))
    behind = read(rereader, [*ids_of("whisper", "Yes"), *byte_tokens("whisper", b" \n"), 50256])
    assert (behind.reason, behind.ended, rejoined(behind)) == ("not_reversible", False, b"Yes")
    before = read(rereader, [*byte_tokens("whisper", b" "), *ids_of("whisper", "Yes"), 50256])
    assert (before.reason, before.readable, before.teacher_ids) == ("not_reversible", 0, [])


def test_a_teacher_that_adds_to_the_end_does_not_read_the_end() -> None:
    rereader = Rereader.of(tokenizer("whisper"), 50256, with_normalizer(normalizers.Replace("s", "s!")))
    found = read(rereader, [*ids_of("whisper", "It rains"), 50256])
    assert (found.reason, found.ended) == ("not_reversible", False)
    assert b"!" not in rejoined(found)


def test_bytes_that_the_teacher_has_no_token_for_end_what_is_read() -> None:
    """SmolLM2 drops \\x16 without a word; the text around it must not close up."""
    found = read(reader("whisper", "smollm2"), [*ids_of("whisper", "a b\x16c"), 50256])
    assert (found.reason, found.ended, rejoined(found)) == ("not_reversible", False, b"a b")


@pytest.mark.parametrize("teacher", PREFIXED)
def test_the_space_that_the_teacher_puts_first_is_not_the_replys(teacher: str) -> None:
    rereader = reader("smollm2", teacher)
    for text in ("Hello there", " Hello there", "  Hello there", "\nHello"):
        found = read(rereader, [*ids_of("smollm2", text), 2])
        assert (found.reason, found.ended) == ("", True), text
    found = read(rereader, [*ids_of("smollm2", "Hello there"), 2])
    assert rereader.teacher.join(found.teacher_ids) == b" Hello there"
    assert found.spans.alone().all()


@pytest.mark.parametrize("student", PREFIXED)
def test_the_space_that_the_student_puts_first_is_not_the_replys(student: str) -> None:
    rereader = reader(student, "smollm2")
    found = read(rereader, [*ids_of(student, "Hello there"), 2])
    assert rejoined(found) == b"Hello there"
    assert found.spans.alone().all()
    without = byte_tokens(student, b"Hello")  # sampled without it
    assert rejoined(read(rereader, without)) == b"Hello"
    assert read(rereader, without).readable == 5


def test_a_reply_of_the_students_own_space_alone_says_nothing() -> None:
    space = byte_tokens("sentencepiece", b" ")
    found = read(reader("sentencepiece", "smollm2"), space)
    assert (found.readable, found.teacher_ids, found.reason) == (0, [], "not_reversible")
    ended = read(reader("sentencepiece", "smollm2"), [*space, 2])  # log q of both tokens against one end of turn
    assert (ended.readable, ended.teacher_ids, ended.spans.left.tolist()) == (2, [2], [0, 0])


def test_the_name_of_a_special_token_is_ordinary_text() -> None:
    rereader = reader("whisper", "smollm2")
    found = read(rereader, [*ids_of("whisper", "<|im_end|>\n<|im_start|>system"), 50256])
    assert found.reason == ""
    assert not rereader.teacher.special.intersection(found.teacher_ids[:-1])
    assert found.teacher_ids[-1] == 2
    assert read(reader("whisper", "tekken"), ids_of("whisper", "</s>[INST]")).reason == ""


def test_the_name_of_an_end_of_turn_that_is_no_special_token_is_not_read() -> None:
    teacher = fresh_smollm2()
    teacher.add_tokens(["<|done|>"])
    teacher.chat_template = "{% for m in messages %}{{ m.content }}<|done|>{% endfor %}"
    rereader = Rereader.of(tokenizer("whisper"), 50256, teacher)
    assert rereader.teacher_end_id == teacher.convert_tokens_to_ids("<|done|>")
    found = read(rereader, [*ids_of("whisper", "Yes<|done|> no"), 50256])
    assert (found.reason, found.ended, rejoined(found)) == ("not_reversible", False, b"Yes")


def test_a_reply_is_read_the_same_whatever_else_is_in_the_batch() -> None:
    rereader = reader("whisper", "sentencepiece")
    replies = [
        [*ids_of("whisper", "Yes."), 50256],
        [],
        byte_tokens("whisper", b"a\xff"),
        [50256],
        ids_of("whisper", "日本語の text, 3.14"),
        [50257],
    ]
    for together, reply in zip(rereader.read(replies), replies, strict=True):
        alone = read(rereader, reply)
        assert together.teacher_ids == alone.teacher_ids
        assert together[2:] == alone[2:]
        assert together.spans.left.tolist() == alone.spans.left.tolist()
        assert together.spans.right.tolist() == alone.spans.right.tolist()
    assert rereader.read([]) == []


def check(rereader: Rereader, reply: Sequence[int], found: Reread) -> None:
    """Spans tile the bytes that are read, both sides have their boundaries, and none lies inside of a span."""
    student, teacher = rereader.student, rereader.teacher
    read_ids = reply[: found.readable]
    data = spelt(student, read_ids, rereader.student_end_id)
    theirs = teacher.join(index for index in found.teacher_ids if index != rereader.teacher_end_id)
    assert theirs in (data, teacher.prefix + data)
    ends = []
    for known, ids, end_id, all_bytes in (
        (student, read_ids, rereader.student_end_id, data),
        (teacher, found.teacher_ids, rereader.teacher_end_id, data),
    ):
        sizes = [0 if index == end_id else len(known.table[index]) for index in ids]
        stops = np.cumsum(sizes) - (sum(sizes) - len(all_bytes))  # less the prefix
        ends.append([(max(int(stop), 0), index == end_id) for stop, index in zip(stops, ids, strict=True)])
    assert len(found.spans.left) == found.readable
    assert len(found.spans.right) == len(found.teacher_ids)
    cuts = []
    for side, stops in zip((found.spans.left, found.spans.right), ends, strict=True):
        assert (np.diff(side) >= 0).all()
        cuts.append([stops[int(np.flatnonzero(side == span)[-1])] for span in range(found.spans.number)])
    assert cuts[0] == cuts[1]  # a span ends at the same byte on both sides
    inner = {stop for stop, end in ends[0] if stop and not end} & {stop for stop, end in ends[1] if stop and not end}
    assert {stop for stop, end in cuts[0] if not end and stop} == inner  # and at every common boundary
    assert bool(found.reason) == (found.readable < len(reply))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@FAST
@given(batch=st.lists(texts, min_size=1, max_size=3), ended=st.booleans())
def test_random_text_is_read_to_its_end(student: str, teacher: str, batch: list[str], ended: bool) -> None:
    rereader = reader(student, teacher)
    end = [ENDS.get(student, 2)] if ended else []
    replies = [[*ids, *end] for ids in rereader.student.encode([written(text, student, teacher) for text in batch])]
    for reply, found in zip(replies, rereader.read(replies), strict=True):
        check(rereader, reply, found)
        assert (found.reason, found.ended, found.readable) == ("", ended, len(reply))


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
@FAST
@given(data=st.data())
def test_any_sampled_tokens_are_read_as_far_as_they_are_text(student: str, teacher: str, data: st.DataObject) -> None:
    """Not as a tokenizer would cut them, invalid at times, with special tokens and ends in between."""
    rereader = reader(student, teacher)
    end_id = ENDS.get(student, 2)
    table = rereader.student.table
    short = st.sampled_from([index for index, piece in enumerate(table) if len(piece) == 1])
    token = short | st.integers(0, len(table) - 1) | st.sampled_from([end_id, len(table) + 3])
    reply = data.draw(st.lists(token, max_size=14))
    found = read(rereader, reply)
    if end_id in reply[: found.readable]:
        assert reply.index(end_id) == found.readable - 1
        assert found.ended
    check(rereader, reply, found)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ENDLESS])
@FAST
@given(text=texts)
def test_the_same_tokenizer_on_both_sides_is_one_to_one(name: str, text: str) -> None:
    text = written(text, name)
    if name == "sentencepiece_fast":  # its " a" and "a" are the same tokens
        text = text.lstrip(" ")
    rereader = reader(name, name)
    reply = [*ids_of(name, text), ENDS.get(name, 2)]
    found = read(rereader, reply)
    assert found.teacher_ids[:-1] == reply[:-1]
    first = len(text) > 0 and len(rereader.student.table[reply[0]]) == len(rereader.student.prefix) and name in PREFIXED
    assert found.spans.alone()[1 if first else 0 :].all()  # a "▁" alone at the beginning goes with what follows


@pytest.mark.parametrize(("student", "teacher"), list(product(["smollm2", "sentencepiece", "tekken"], repeat=2)))
def test_the_vocabulary_pairs_tokens_of_the_same_bytes(student: str, teacher: str) -> None:
    rereader = reader(student, teacher)
    found = rereader.vocabulary
    assert found is rereader.vocabulary  # once
    assert found.dtype == np.int64
    assert found.shape == (len(rereader.teacher.table),)
    mapped = np.flatnonzero(found >= 0)
    ours, theirs = rereader.student, rereader.teacher
    differ = [index for index in mapped if ours.table[found[index]] != theirs.table[index]]
    assert [index for index in differ if index != rereader.teacher_end_id] == []
    assert found[rereader.teacher_end_id] == rereader.student_end_id
    assert len(set(found[mapped].tolist())) == len(mapped)  # no token of the student twice
    silent = np.flatnonzero(theirs.silent[:-1])
    assert [index for index in silent if found[index] >= 0] == [rereader.teacher_end_id]
    missed = {theirs.table[index] for index in np.flatnonzero(found < 0)} - {b""}
    known = {theirs.table[index] for index in mapped}
    assert missed - known == missed & {*theirs.table} - known - {*ours.table}  # what has a partner got one


def test_of_tokens_with_equal_bytes_the_one_that_is_written_is_mapped() -> None:
    same = reader("sentencepiece", "sentencepiece")
    kind = tokenizer("sentencepiece")
    letter, byte = kind.convert_tokens_to_ids("a"), kind.convert_tokens_to_ids("<0x61>")
    assert token_bytes(kind).table[letter] == token_bytes(kind).table[byte] == b"a"
    assert same.vocabulary[letter] == letter
    assert same.vocabulary[byte] == -1
    assert same.vocabulary[kind.convert_tokens_to_ids("<0x0A>")] == kind.convert_tokens_to_ids("<0x0A>")


def test_an_added_token_is_the_one_that_is_written() -> None:
    student = fresh_smollm2()
    student.add_tokens([" the"])
    rereader = Rereader.of(student, 2, tokenizer("whisper"))
    theirs = tokenizer("whisper").convert_tokens_to_ids("Ġthe")
    assert rereader.vocabulary[theirs] == student.convert_tokens_to_ids(" the") == 49152


def test_the_map_of_the_first_token_takes_the_leading_space_off() -> None:
    rereader = reader("smollm2", "sentencepiece")
    ours, theirs = tokenizer("smollm2"), tokenizer("sentencepiece")
    spaced = theirs.convert_tokens_to_ids("▁Hello")
    assert rereader.vocabulary[spaced] == ours.convert_tokens_to_ids("ĠHello")
    assert rereader.vocabulary_at_start[spaced] == ours.convert_tokens_to_ids("Hello")
    plain = reader("smollm2", "tekken")
    assert plain.vocabulary_at_start is plain.vocabulary


def test_the_vocabulary_of_one_tokenizer_is_itself() -> None:
    found = reader("tekken", "tekken").vocabulary
    ordinary = ~token_bytes(tokenizer("tekken")).silent[:-1]
    assert (found[ordinary] == np.flatnonzero(ordinary)).all()


def test_a_tokenizer_without_exact_bytes_is_refused() -> None:
    made = Tokenizer.from_str(tokenizer("smollm2").backend_tokenizer.to_str())
    made.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="cannot be told from the token alone"):
        Rereader.of(tokenizer("whisper"), 50256, PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>"))
