"""The teacher behind a URL, asked of a real vLLM server on loopback."""

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from served import KEY, Server, free_port, network
from transformers import AutoTokenizer

from rlspeech.cli import main
from rlspeech.config import DistillConfig
from rlspeech.engines import vllm_client
from rlspeech.engines.build import build_teachers
from rlspeech.engines.teacher_http import HttpTeacher, scored_reply
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.errors import UserError
from rlspeech.types import Completion, Sample

READING = Reading('Transcript: "{transcript}"\n\n{instruction}')
SAMPLES = [
    Sample(f"s{number}", "Who will meet Peter?", transcript=f"{name} will meet Peter at {number}.")
    for number, name in enumerate(("Anna", "Boris", "Chloë", "Dmitri", "Eve", "Fatima"))
]
NOTHING = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("RLSPEECH_TEACHER_KEY", KEY)


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch) -> None:
    monkeypatch.setattr(vllm_client, "FIRST_WAIT_S", 0.05)


@pytest.fixture(scope="module")
def local(teacher_folder: Path) -> TransformersTeacher:
    return TransformersTeacher.load(teacher_folder, READING)


@pytest.fixture(scope="module")
def tokenizer(teacher_folder: Path):
    return AutoTokenizer.from_pretrained(teacher_folder)


@pytest.fixture
def connect(served_teacher: Server, tokenizer):
    def to(url: str = served_teacher.url, **settings) -> HttpTeacher:
        return HttpTeacher.connect(url, READING, **{"tokenizer": tokenizer, "top_k": 20, **settings})

    return to


@pytest.fixture
def replies(tokenizer) -> list[Completion]:
    """Likely and unlikely ones, of several lengths, one empty, each with the end of turn but the last."""
    texts = ("Anna.", "Boris will meet Peter at 1.", "zebra |} Ωmega", "", "Eve", "I do not know, sorry")
    ids = [(*tokenizer(text).input_ids, tokenizer.eos_token_id) for text in texts]
    ids[3], ids[5] = (), ids[5][:-1]
    return [Completion(tokens, (), "", "stop") for tokens in ids]


def line(connect, url: str | None = None, **settings) -> str:
    with pytest.raises(UserError) as caught:
        connect(**({"url": url} if url else {}), **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert KEY not in message
    return message


@pytest.mark.slow
def test_a_served_teacher_scores_as_the_same_model_in_process(connect, local, replies) -> None:
    ours, theirs = local.score(SAMPLES, replies), connect(requests=3).score(SAMPLES, replies)
    for mine, other, reply in zip(ours, theirs, replies, strict=True):
        assert other.spans == mine.spans == tuple((n, n + 1) for n in range(len(reply.token_ids)))
        assert other.logprobs.shape == (len(reply.token_ids),)
        assert other.topk_ids.shape == other.topk_logprobs.shape == (len(reply.token_ids), 20)
        assert (other.logprobs.dtype, other.topk_ids.dtype) == (torch.float32, torch.int64)
        assert torch.allclose(other.logprobs, mine.logprobs, atol=1e-3)
        best = (mine.hidden @ local.head().T).log_softmax(-1).topk(20)
        assert torch.equal(other.topk_ids, best.indices)
        assert torch.allclose(other.topk_logprobs, best.values, atol=1e-3)
    outside = torch.cat([s.logprobs < s.topk_logprobs[:, -1] for s in theirs])
    assert outside.any()  # some tokens as written are not among the top 20


@pytest.mark.slow
def test_a_served_teacher_replies_as_the_same_model_in_process(connect, local) -> None:
    assert connect().reply(SAMPLES[:3], max_tokens=8) == local.reply(SAMPLES[:3], max_tokens=8)


@pytest.mark.slow
def test_a_chat_is_rendered_once_by_the_server(connect, served_teacher, local, replies) -> None:
    with network(served_teacher.url) as watched:
        teacher = connect(watched.url)
        for _ in range(2):
            before = len(watched.headers)
            teacher.score([SAMPLES[0]] * 3, [replies[0]] * 3)
            asked = len(watched.headers) - before
    assert asked == 3  # the second time, none to /tokenize
    assert teacher._rendered([READING.messages(SAMPLES[0])])[0] == local._prompt(SAMPLES[0])


@pytest.mark.slow
def test_the_servers_template_is_handed_options_and_its_thought_is_ended(
    served_teacher, switched_folder, local
) -> None:
    thinking = replace(READING, template_options={"thinking": True})
    there = HttpTeacher.connect(served_teacher.url, thinking, tokenizer=local.tokenizer, top_k=20)
    here = TransformersTeacher(local.model, AutoTokenizer.from_pretrained(switched_folder), thinking)
    prompts = there._rendered([thinking.messages(sample) for sample in SAMPLES])
    assert prompts == [here._prompt(sample) for sample in SAMPLES]
    assert here.tokenizer.decode(prompts[0]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert there.reply(SAMPLES[:2], max_tokens=8) == here.reply(SAMPLES[:2], max_tokens=8)


@pytest.mark.slow
def test_a_system_text_that_the_servers_template_refuses_is_one_line(served_teacher, tokenizer) -> None:
    with pytest.raises(UserError, match=r"does not take this chat \(.*No system role.*\); a system text can stand in"):
        HttpTeacher.connect(served_teacher.url, replace(READING, system="Refuse."), tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "#tiny-llm", "/v1#tiny-llm"])
def test_the_address_may_have_v1_and_a_model(connect, served_teacher, tail) -> None:
    assert connect(served_teacher.url + tail).model == "tiny-llm"


@pytest.mark.slow
def test_a_student_with_tokens_of_its_own_shares_the_tokenizer(connect, tiny_folder) -> None:
    assert connect(tokenizer=AutoTokenizer.from_pretrained(tiny_folder))


@pytest.mark.slow
def test_another_tokenizer_is_refused(connect, tokenizer) -> None:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġof"] = vocabulary["Ġof"], vocabulary["Ġthe"]
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(state))
    assert other("the of the").input_ids != tokenizer("the of the").input_ids
    assert "another tokenizer than the student" in line(connect, tokenizer=other)


@pytest.mark.slow
def test_each_refusal_is_one_line_that_says_what_to_do(connect, served_teacher, monkeypatch) -> None:
    assert line(connect, top_k=101).endswith(
        "which is greater than max allowed: 100 (parameter=prompt_logprobs, value=101)); "
        "start it with --max-logprobs 101 or more, or lower reading.top_k"
    )
    assert line(connect, f"{served_teacher.url}#llama").endswith("no model 'llama'; it serves tiny-llm")
    assert "no list of models at /v1/models (status 404)" in line(connect, f"{served_teacher.url}/v2")
    monkeypatch.setenv("RLSPEECH_TEACHER_KEY", "wrong")
    refused = line(connect)
    assert refused.endswith("refuses the key in the environment variable RLSPEECH_TEACHER_KEY (status 401)")
    monkeypatch.delenv("RLSPEECH_TEACHER_KEY")
    assert line(connect).endswith("wants a key: set the environment variable RLSPEECH_TEACHER_KEY (status 401)")
    monkeypatch.setenv("OTHER_KEY", KEY)
    assert connect(api_key_env="OTHER_KEY")


@pytest.mark.slow
def test_a_model_that_is_no_longer_served_is_named_with_those_that_are(connect) -> None:
    teacher = connect()
    teacher.served = {**teacher.served, "gone": 1024}
    teacher.model = "gone"
    with pytest.raises(UserError, match=r"The model `gone` does not exist.*; it serves tiny-llm, gone"):
        teacher.reply(SAMPLES[:1], max_tokens=2)


@pytest.mark.slow
def test_a_sample_that_is_too_long_is_named(connect, replies) -> None:
    teacher = connect()
    long = Sample("meeting-7", "Who?", transcript="Anna and Peter. " * 300)
    with pytest.raises(UserError, match=r"^meeting-7: too long for teacher http\S+ \(\d+ tokens where it reads 1024\)"):
        teacher.score([SAMPLES[0], long], replies[:2])
    teacher.served = {"tiny-llm": None}  # as behind a proxy that does not tell
    with pytest.raises(UserError, match=r"^meeting-7: too long for teacher .*maximum context length"):
        teacher.score([SAMPLES[0], long], replies[:2])
    with pytest.raises(UserError, match=r"^meeting-7: too long for teacher"):
        teacher.reply([long], max_tokens=2)


@pytest.mark.slow
def test_a_network_that_fails_now_and_then_changes_nothing(connect, served_teacher, replies, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    whole = connect().score(SAMPLES, replies)
    with network(served_teacher.url) as bad:
        teacher = connect(bad.url, retries=6)
        bad.troubles += ["drop", 503, (429, {"Retry-After": "1"}, "slow down"), 502, "drop", 500]
        start = time.monotonic()
        broken = teacher.score(SAMPLES, replies)
        assert time.monotonic() - start > 1.0  # as Retry-After asked
    assert bad.troubles == []
    for one, other in zip(whole, broken, strict=True):
        assert torch.allclose(one.logprobs, other.logprobs, atol=1e-4)
        assert torch.equal(one.topk_ids, other.topk_ids)
    tries = [record.getMessage() for record in caplog.records if record.name == vllm_client.__name__]
    assert len(tries) == 6
    assert any("status 429: slow down; try 2 of 7 in 1.0 s" in text for text in tries)


@pytest.mark.slow
def test_the_key_is_in_no_log_repr_or_command_line(connect, served_teacher, replies, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    teacher = connect()
    teacher.score(SAMPLES[:2], replies[:2])
    assert KEY not in caplog.text
    assert KEY not in f"{teacher!r} {teacher.client!r} {vars(teacher)}"
    assert KEY not in served_teacher.log.read_text()
    family = served_teacher.family()
    assert len(family) >= 3  # ours, vLLM's server, its engine
    assert all(KEY not in Path(f"/proc/{pid}/cmdline").read_text() for pid in family)


@pytest.mark.slow
def test_a_server_with_another_tokenizer_than_the_student_is_asked_in_its_own(
    served_teacher, local, split_teacher, spoken
) -> None:
    split = AutoTokenizer.from_pretrained(split_teacher)
    student = SimpleNamespace(tokenizer=split, end_token_id=split.eos_token_id)
    given = {"student": "tiny", "run_dir": "x", "optim": {"steps": 1}, "data": {"train": "x"}}
    reading = {"tokenizer": "tiny-llm", "prompt": READING.prompt, "top_k": 20}
    config = DistillConfig(**given, teacher=served_teacher.url, reading=reading)
    teacher = build_teachers(config, student, make=None)
    ids = (*split("Chloë will meet Peter at 2.").input_ids, split.eos_token_id)
    [scored] = teacher.score(SAMPLES[2:3], [Completion(ids, (), "", "stop")])
    theirs = (*local.tokenizer("Chloë will meet Peter at 2.").input_ids, local.tokenizer.eos_token_id)
    [exact] = local.score(SAMPLES[2:3], [Completion(theirs, (), "", "stop")])
    assert torch.isclose(scored.logprobs.sum(), exact.logprobs.sum(), atol=1e-3)
    assert scored.spans[-1] == (len(ids) - 1, len(ids))


@pytest.mark.slow
def test_distill_learns_from_a_teacher_by_url(served_teacher, small_student, spoken, tmp_path) -> None:
    flags = [f"--data.train={spoken}/train.jsonl", "--data.tests", "{}", f"--student={small_student}", "--quiet"]
    flags += ["--optim.steps=2", "--optim.batch=2", "--sampling.max-tokens=4", f"--run-dir={tmp_path}/run"]
    assert main(["distill", "tiny/distill", *flags, f"--teacher={served_teacher.url}", "--reading.top-k=32"]) == 0
    steps = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["kl/train_nats"] > 0 for step in steps[1:]] == [True, True]
    written = [file for file in (tmp_path / "run").rglob("*") if file.suffix in (".json", ".jsonl", ".toml", ".md")]
    assert written
    assert all(KEY not in file.read_text() for file in written)


def test_a_server_that_is_not_there_or_keeps_failing_is_given_up_in_one_line(tokenizer, caplog) -> None:
    def connect(url: str, **settings) -> HttpTeacher:
        return HttpTeacher.connect(url, READING, **{"tokenizer": tokenizer, "retries": 2, **settings})

    nowhere = f"http://127.0.0.1:{free_port()}"
    refused = line(connect, nowhere)
    assert refused.startswith(f"teacher {nowhere}: no connection (")
    assert refused.endswith("after 3 tries; is the server running?")
    with network(NOTHING, 503, 503, (503, {}, '{"error": {"message": "the engine is dead"}}')) as bad:
        assert "status 503: the engine is dead, after 3 tries" in line(connect, bad.url)
        assert len(bad.headers) == 3
    with network(NOTHING, "hang", "hang") as bad:
        assert "no answer within 0.3 s, after 2 tries" in line(connect, bad.url, timeout_s=0.3, retries=1)
    waits = [record.args[-1] for record in caplog.records if record.name == vllm_client.__name__]
    assert all(0.025 <= wait <= 0.1 for wait in waits)  # doubles, with jitter


def test_no_other_mistake_is_tried_again(tokenizer) -> None:
    def connect(url: str) -> HttpTeacher:
        return HttpTeacher.connect(url, READING, tokenizer=tokenizer)

    def every(answer: object) -> list:
        """/tokenize is asked several times at once, in no order."""
        return [answer] * 16

    models = (200, {}, '{"data": [{"id": "m"}]}')
    for troubles, expected in [
        ([400], "no list of models at /v1/models (status 400)"),
        ([(200, {}, "<html>hello")], "answers /v1/models with no JSON; is it a vLLM server?"),
        ([(200, {}, '{"data": []}')], "serves no model"),
        ([(200, {}, "[]")], "answers /v1/models in another form than vLLM's (TypeError"),
        (
            [(403, {}, f"bad key {KEY}")],
            "refuses the key in the environment variable RLSPEECH_TEACHER_KEY (status 403)",
        ),
        ([models, *every((404, {}, '{"detail": "Not Found"}'))], "has no /tokenize (Not Found); a vLLM server has it"),
        ([models, *every((200, {}, "{}"))], "answers /tokenize in another form than vLLM's (KeyError: 'tokens')"),
        ([models, *every((418, {}, f"no\n\ntea for {KEY}"))], "status 418: no tea for ..."),
    ]:
        with network(NOTHING, *troubles) as bad:
            assert expected in line(connect, bad.url)
            assert bad.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_the_key_does_not_follow_a_redirect(tokenizer) -> None:
    with network(NOTHING) as elsewhere, network(NOTHING, (307, {"Location": f"{elsewhere.url}/v1/models"}, "")) as bad:
        with pytest.raises(UserError, match=r"redirects to http.*which is not followed; give the last address"):
            HttpTeacher.connect(bad.url, READING, tokenizer=tokenizer)
        assert elsewhere.headers == []


def test_an_answer_without_prompt_logprobs_is_not_from_vllm(tokenizer) -> None:
    teacher = HttpTeacher(vllm_client.Client(NOTHING, 1.0, 0, 1, "NONE"), READING, "m", {"m": None}, 20, tokenizer=None)
    with pytest.raises(UserError, match=r"answers without prompt_logprobs; is it a vLLM server\?"):
        teacher._read_scores([5], {"choices": [{"text": "x"}]})
    told = [None, {"5": {"logprob": -0.5, "rank": 1}}]
    with pytest.raises(UserError, match=r"tells fewer than 20 tokens at a position; lower reading\.top_k"):
        teacher._read_scores([5], {"choices": [{"prompt_logprobs": told}]})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://someone:secret@host:8000", "a URL with @ or ?; give the key in the environment variable"),
        ("http://host:8000/v1?key=secret", "a URL with @ or ?; give the key in the environment variable"),
        ("ftp://host", "teacher ftp://host: no address of a server, such as http://127.0.0.1:8000"),
        ("http://", "teacher http://: no address of a server, such as http://127.0.0.1:8000"),
        ("http://host:99999999", "teacher http://host:99999999: "),
    ],
)
def test_a_wrong_address_is_one_line_without_what_may_be_a_key(tokenizer, url, expected) -> None:
    with pytest.raises(UserError) as caught:
        HttpTeacher.connect(url, READING, tokenizer=tokenizer)
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["two\nlines", "two words", "schlüssel"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(tokenizer, monkeypatch, key) -> None:
    monkeypatch.setenv("RLSPEECH_TEACHER_KEY", key)
    with pytest.raises(UserError, match=r"^RLSPEECH_TEACHER_KEY: the key in this environment variable") as caught:
        HttpTeacher.connect(NOTHING, READING, tokenizer=tokenizer)
    assert key not in str(caught.value)


def test_the_newline_at_the_end_of_a_key_out_of_a_file_is_no_part_of_it(tokenizer, monkeypatch) -> None:
    monkeypatch.setenv("RLSPEECH_TEACHER_KEY", f"{KEY}\n")
    with network(NOTHING, 401) as watched:
        with pytest.raises(UserError):
            HttpTeacher.connect(watched.url, READING, tokenizer=tokenizer)
        assert watched.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_a_reply_is_read_from_the_end_best_first_and_its_own_tokens_apart() -> None:
    """Two of three tokens are the reply. Token 9 is not among the top 2 of its place, token 4 is the second there."""
    told = [
        None,
        {"9": {"logprob": -5.0, "rank": 70}, "3": {"logprob": -1.0, "rank": 1}, "8": {"logprob": -2.0, "rank": 2}},
        {"4": {"logprob": -1.5, "rank": 2}, "6": {"logprob": -0.5, "rank": 1}},
    ]
    scored = scored_reply(told, [9, 4], 2)
    assert scored is not None
    assert scored.logprobs.tolist() == [-5.0, -1.5]
    assert scored.topk_ids.tolist() == [[3, 8], [6, 4]]
    assert scored.topk_logprobs.tolist() == [[-1.0, -2.0], [-0.5, -1.5]]
    assert scored.spans == ((0, 1), (1, 2))
