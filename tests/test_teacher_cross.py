"""A teacher with another tokenizer, against plain forward passes of the same model."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlspeech.cli import main
from rlspeech.engines.batches import make_batches
from rlspeech.engines.retokenise import Rereader
from rlspeech.engines.teacher_cross import CrossTeacher, joined
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.stages.rollout_records import alignment_metrics
from rlspeech.students.tiny import Student
from rlspeech.types import Completion, Rollout, Sample

READING = Reading("{transcript} {instruction}")
TEXTS = ["Anna will meet Peter at half past nine.", "Überraschung! 東京 costs 1,250 😀 yen", "no"]
SAMPLES = [Sample(f"s{n}", "Who?", transcript=f"Number {n} is here.") for n in range(len(TEXTS))]
K = 20


@pytest.fixture(scope="module")
def student(small_student: Path) -> Student:
    return Student.load(small_student)


@pytest.fixture(scope="module")
def inner(split_teacher: Path) -> TransformersTeacher:
    return TransformersTeacher.load(split_teacher, READING, top_k=K)


@pytest.fixture(scope="module")
def crossed(student: Student, inner: TransformersTeacher) -> CrossTeacher:
    return CrossTeacher(inner, Rereader.of(student.tokenizer, student.end_token_id, inner.tokenizer))


def completion(student: Student, text: str, *, ended: bool = True) -> Completion:
    ids = student.tokenizer(text, add_special_tokens=False).input_ids
    return Completion((*ids, *[student.end_token_id] * ended), (), text, "stop" if ended else "length")


def logprobs(folder: Path, sample: Sample, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Plainly: log-probs of the ids behind the sample's prompt, and all log-probs where each was to come."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        READING.messages(sample), tokenize=True, add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        out = model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    behind = out[len(prompt) - 1 : -1]
    return behind.gather(-1, torch.tensor(ids)[:, None])[:, 0], behind


def test_spans_have_the_log_probs_of_the_teachers_own_tokens(student, inner, crossed, split_teacher) -> None:
    replies = [completion(student, text) for text in TEXTS]
    several = 0
    for sample, text, reply, scored in zip(SAMPLES, TEXTS, replies, crossed.score(SAMPLES, replies), strict=True):
        theirs = [*inner.tokenizer(text, add_special_tokens=False).input_ids, inner.tokenizer.eos_token_id]
        expected, _ = logprobs(split_teacher, sample, theirs)
        assert scored.unread == ""
        assert scored.spans[0][0] == 0
        assert scored.spans[-1] == (len(reply.token_ids) - 1, len(reply.token_ids))  # the end of the turn, alone
        torch.testing.assert_close(scored.logprobs.sum(), expected.sum(), atol=1e-4, rtol=0)
        torch.testing.assert_close(scored.logprobs[-1], expected[-1], atol=1e-4, rtol=0)
        several += len(theirs) - len(scored.spans)
    assert several > 5  # the two do not segment alike


def test_top_tokens_are_told_as_classes(student, inner, crossed, split_teacher) -> None:
    [reply] = [completion(student, TEXTS[0])]
    [scored] = crossed.score(SAMPLES[:1], [reply])
    theirs = [*inner.tokenizer(TEXTS[0], add_special_tokens=False).input_ids, inner.tokenizer.eos_token_id]
    _, all_logprobs = logprobs(split_teacher, SAMPLES[0], theirs)
    [read] = crossed.rereader.read([reply.token_ids])
    alone = scored.alone.tolist()
    assert 3 < sum(alone) < len(alone)
    for span, is_alone in enumerate(alone):
        values = scored.topk_logprobs[span]
        if not is_alone:
            assert values.isinf().all()
            continue
        best = all_logprobs[read.spans.right.tolist().index(span)].topk(K)
        expected: dict[int, float] = {}
        for index, value in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True):
            name = int(crossed.rereader.classes[1][index])
            expected[name] = expected.get(name, 0.0) + value * (name >= 0)
        expected.pop(-1, None)
        pairs = zip(scored.topk_ids[span].tolist(), values.exp().tolist(), strict=True)
        assert {name: p for name, p in pairs if p} == pytest.approx(expected, abs=1e-4)


def test_with_its_own_tokenizer_it_tells_what_the_plain_teacher_tells(student, small_teacher) -> None:
    plain = TransformersTeacher.load(small_teacher, READING, top_k=K)
    crossed = CrossTeacher(plain, Rereader.of(student.tokenizer, student.end_token_id, plain.tokenizer))
    replies = [completion(student, text) for text in TEXTS]
    for ours, theirs in zip(crossed.score(SAMPLES, replies), plain.score(SAMPLES, replies), strict=True):
        assert ours.spans == theirs.spans
        assert ours.alone.all()
        torch.testing.assert_close(ours.logprobs, theirs.logprobs, atol=1e-5, rtol=0)
        for row in range(len(ours.spans)):
            mine = dict(zip(ours.topk_ids[row].tolist(), ours.topk_logprobs[row].tolist(), strict=True))
            other = dict(zip(theirs.topk_ids[row].tolist(), theirs.topk_logprobs[row].tolist(), strict=True))
            assert mine == pytest.approx(other, abs=1e-5)


def test_what_cannot_be_read_weighs_nothing_is_counted_and_told_once(student, crossed, caplog) -> None:
    whole = completion(student, "Anna and Peter")
    special = student.tokenizer.convert_tokens_to_ids("<|im_start|>")
    broken = Completion((*whole.token_ids[:-1], special, *whole.token_ids), (), "", "stop")
    nothing = Completion((special, special), (), "", "length")
    replies = [whole, broken, nothing, broken]
    samples = [SAMPLES[0]] * 4
    with caplog.at_level(logging.WARNING, logger="rlspeech"):
        scored = crossed.score(samples, replies)
    assert [one.unread for one in scored] == ["", "special_token", "special_token", "special_token"]
    assert len([r for r in caplog.records if "special_token" in r.getMessage()]) == 1
    torch.testing.assert_close(scored[1].logprobs, scored[0].logprobs[:-1], atol=1e-4, rtol=0)
    prompts = [student.render(Sample("p", f"{n}"), None) for n in range(4)]
    rollouts = [Rollout(*three) for three in zip(samples, prompts, replies, strict=True)]
    [batch] = make_batches(student, rollouts, micro_batch=4, scored=scored)
    read = len(whole.token_ids) - 1
    for place, expected in enumerate([read + 1, read, 0, read]):
        mine = batch.rollout == place
        assert batch.weights[mine].sum() == expected
        assert (batch.span[mine] >= 0).sum() == expected
        assert batch.teacher_logprobs[mine].sum().item() == pytest.approx(scored[place].logprobs.sum().item(), abs=1e-4)
    found = alignment_metrics(scored, rollouts)
    unread = 2 * (read + 2) + 2  # of two broken ones and of the one that begins with a special token
    assert found["align/unread_share"] == pytest.approx(unread / sum(len(r.token_ids) for r in replies))
    assert found["align/special_token"] == 3
    assert found["align/matched_mass"] + found["align/tail_mass"] == pytest.approx(1)


def test_an_empty_reply_is_its_end_of_turn(student, crossed, split_teacher) -> None:
    empty, cut = Completion((student.end_token_id,), (), "", "stop"), Completion((), (), "", "length")
    ended, nothing = crossed.score(SAMPLES[:2], [empty, cut])
    expected, _ = logprobs(split_teacher, SAMPLES[0], [crossed.inner.tokenizer.eos_token_id])
    torch.testing.assert_close(ended.logprobs, expected, atol=1e-4, rtol=0)
    assert ended.spans == ((0, 1),)
    assert nothing.spans == ()


def test_a_padded_output_projection_has_tokens_that_match_nothing(crossed) -> None:
    size = len(crossed.rereader.teacher.table)
    assert crossed._matches(torch.tensor([[size, size + 5], [size - 1, size]]))[:, 1].tolist() == [-1, -1]


def test_entries_of_one_class_are_joined() -> None:
    ids = torch.tensor([[7, 3, 7, 7], [1, 2, 3, 4]])
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]]).log()
    joined_ids, joined_values = joined(ids, values)
    assert joined_ids.tolist() == [[3, 7, 7, 7], [1, 2, 3, 4]]
    torch.testing.assert_close(joined_values.exp(), torch.tensor([[0.2, 0.8, 0, 0], [0.1, 0.2, 0.3, 0.4]]))


def flags(student: Path, teacher: Path, spoken: Path, run_dir: Path) -> list[str]:
    tests = [f"--data.tests.{name}={spoken / name}.jsonl" for name in ("test_voice", "test_text")]
    given = [f"--student={student}", f"--teacher={teacher}", f"--data.train={spoken}/train.jsonl", *tests]
    return [*given, f"--run-dir={run_dir}", "--optim.batch=2", "--sampling.max-tokens=12", "--held-out.samples=1"]


@pytest.mark.parametrize("loss", ["reverse_kl", "k1"])
def test_distill_learns_from_a_teacher_with_another_tokenizer(
    loss, small_student, split_teacher, spoken, tmp_path
) -> None:
    given = flags(small_student, split_teacher, spoken, tmp_path / "run")
    assert main(["distill", "tiny/distill", *given, "--optim.steps=2", f"--loss={loss}", "--quiet"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        assert 0 < row["align/one_to_one_share"] < 1
        assert row["align/tokens_per_span"] >= 1
        assert 0 <= row["align/matched_mass"] <= 1
    assert all(math.isfinite(rows[-1][f"kl/test_{name}_nats_per_byte"]) for name in ("voice", "text"))


def test_sampling_of_another_temperature_is_refused_in_one_line(
    small_student, split_teacher, spoken, tmp_path, capsys
) -> None:
    given = flags(small_student, split_teacher, spoken, tmp_path / "run")
    assert main(["distill", "tiny/distill", *given, "--sampling.temperature=0.7"]) == 2
    assert "another tokenizer than the student, so sampling wants temperature 1 and top_p 1" in capsys.readouterr().err


def test_a_dry_run_names_both_tokenizers_and_measures_them(
    small_student, split_teacher, spoken, tmp_path, capsys
) -> None:
    given = flags(small_student, split_teacher, spoken, tmp_path / "run")
    assert main(["distill", "tiny/distill", *given, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "teacher: cross-tokenizer (" in told
    assert "reverse_kl on the top 64 tokens where a token stands alone on both sides, elsewhere the sampled k1" in told
    assert " spans are one-to-one, measured on " in told


def test_a_model_that_teaches_itself_has_nothing_to_learn(small_teacher, spoken, capsys) -> None:
    given = [f"--student={small_teacher}", f"--teacher={small_teacher}", f"--data.train={spoken}/train.jsonl"]
    assert main(["distill", *given, "--self-test"]) == 0
    told = capsys.readouterr().out
    assert "token by token" in told
    assert "by spans" in told
    assert "100.0 %" in told  # of the spans are one token on both sides


def test_a_model_that_another_teaches_does_not_pass_its_self_test(small_teacher, split_teacher, spoken, capsys) -> None:
    given = [f"--student={small_teacher}", f"--teacher={split_teacher}", f"--data.train={spoken}/train.jsonl"]
    assert main(["distill", *given, "--self-test"]) == 1
    assert "are they the same weights, prompts and template?" in capsys.readouterr().err
