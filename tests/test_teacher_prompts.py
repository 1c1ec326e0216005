"""The teacher's prompt, by chat templates of published models' forms: the reply is never part of a thought."""

import json
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from real_tokenizers import fresh_smollm2
from real_tokenizers import tokenizer as real

from rlspeech.engines import thoughts
from rlspeech.engines.teacher_http import HttpTeacher
from rlspeech.engines.teacher_text import Example, Reading, same_tokenizer
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.engines.thoughts import answer_of, closing_of
from rlspeech.errors import UserError
from rlspeech.types import Answer, Sample

SAMPLE = Sample("s", "Who?", transcript="Anna says: write <think> here.")
ASKED = "Anna says: write <think> here. Who?"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "chatml": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    # the model begins its thought itself; an empty one is there where it is not to think
    "qwen3": CHATML + "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n"
    "    {%- if enable_thinking is defined and enable_thinking is false %}\n"
    "        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}",
    # the template begins the thought: Qwen3 Thinking and QwQ, DeepSeek-R1 and its distilled models
    "qwen3_thinking": CHATML + "{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{% endif %}",
    "r1": "{% for m in messages %}{{ '<\uff5cUser\uff5c>' if m.role == 'user' }}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<\uff5cAssistant\uff5c><think>\\n'}}{% endif %}",
    # Nemotron Nano 2: a word of the chat decides
    "nemotron": "{%- set ns = namespace(thinks=true) -%}{%- for m in messages -%}"
    "{%- if '/no_think' in m.content -%}{%- set ns.thinks = false -%}{%- endif -%}"
    "{{- '<SPECIAL_10>' + m.role + '\n' + m.content.replace('/no_think', '') + '\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<SPECIAL_11>Assistant\n' -}}"
    "{%- if ns.thinks -%}{{- '<think>\n\n' -}}{%- else -%}{{- '<think></think>' -}}{%- endif -%}{%- endif -%}",
    "gpt_oss": "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    "gemma": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "no_system": "{% for m in messages if m.role != 'system' %}[INST]{{ m.content }}[/INST]{% endfor %}",
}


def written_with(template: str):
    """SmolLM2's tokenizer under another model's template."""
    tokenizer = copy(real("smollm2"))
    tokenizer.chat_template = TEMPLATES[template]
    return tokenizer


@pytest.fixture(scope="module")
def special():
    """Magistral's marks are special tokens: a text for people goes without them."""
    tokenizer = fresh_smollm2()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    return tokenizer


def prompt(template: str, **settings) -> str:
    tokenizer = written_with(template)
    return tokenizer.decode(Reading("{transcript} {instruction}", **settings).prompt_ids(tokenizer, SAMPLE))


@pytest.mark.parametrize(
    ("template", "settings", "end"),
    [
        ("chatml", {}, f"{ASKED}<|im_end|>\n<|im_start|>assistant\n"),
        ("llama3", {}, f"{ASKED}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
        ("qwen3", {}, f"{ASKED}<|im_end|>\n<|im_start|>assistant\n"),
        (
            "qwen3",
            {"template_options": {"enable_thinking": False}},
            f"{ASKED}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
        ("qwen3_thinking", {}, f"{ASKED}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("r1", {}, f"<\uff5cUser\uff5c>{ASKED}<\uff5cAssistant\uff5c><think>\n\n</think>\n\n"),
        ("nemotron", {}, f"{ASKED}\n<SPECIAL_11>Assistant\n<think>\n\n</think>\n\n"),
        ("nemotron", {"system": "/no_think"}, f"{ASKED}\n<SPECIAL_11>Assistant\n<think></think>"),
        ("gpt_oss", {}, f"{ASKED}<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("no_system", {}, f"[INST]{ASKED}[/INST]"),
    ],
)
def test_a_reply_is_never_inside_a_thought(template: str, settings: dict, end: str) -> None:
    text = prompt(template, **settings)
    assert text.endswith(end)
    assert text.count("</think>") == end.count("</think>")  # what the transcript says begins no thought


@pytest.mark.parametrize(
    ("begun", "closing"),
    [
        ("<|assistant|>\n<think></think>", ""),  # GLM-4.5
        ("<\uff5cAssistant\uff5c></think>", ""),  # DeepSeek-V3.1
        ("<|assistant|><think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>", "<|END_THINKING|>"),
        ("<|turn>model\n<|channel>thought\n<channel|>", ""),
        ("<|turn>model\n<|channel>thought\n", "<channel|>"),
        ("<seed:bos>assistant\n<seed:think><seed:cot_budget_reflect>", "</seed:think>"),
        ("<think>a</think><think>\n", "\n</think>\n\n"),
    ],
)
def test_a_thought_is_closed_as_its_model_writes_it(begun: str, closing: str) -> None:
    assert closing_of(begun) == closing


def test_a_system_text_that_the_template_does_not_take_is_one_line() -> None:
    with pytest.raises(UserError, match=r"of the roles system, user \(System role not supported\); a system text can"):
        prompt("gemma", system="Be brief.")
    with pytest.raises(UserError, match=r"^reading.system: the teacher's chat template leaves it out; a system text"):
        prompt("no_system", system="Be brief.")


def test_an_option_that_the_template_does_not_have_is_one_line() -> None:
    with pytest.raises(UserError, match=r"'enable_thinkng' is no option .*; did you mean 'enable_thinking'\?$"):
        prompt("qwen3", template_options={"enable_thinkng": False})
    with pytest.raises(UserError, match=r"'add_generation_prompt' is no option of the teacher's chat template$"):
        prompt("qwen3", template_options={"add_generation_prompt": False})


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("Peter.<|im_end|>", "Peter."),
        ("<think>\nAnna? No: </ think>\n</think>\n\n Peter.<|im_end|>", "Peter."),
        ("\n<think></think>Peter </think> Anna.", "Peter </think> Anna."),
        ("Say <think> a </think> b", "Say <think> a </think> b"),
        ("<think>\nIt was Anna, or", ""),
        ("[THINK]Anna?[/THINK]Peter.<|im_end|>", "Peter."),
        ("", ""),
    ],
)
@pytest.mark.parametrize("marks", ["plain", "special"])
def test_an_answer_is_what_comes_after_the_thought(written: str, answer: str, marks: str, special) -> None:
    tokenizer = special if marks == "special" else real("smollm2")
    assert answer_of(tokenizer, tokenizer(written).input_ids) == answer


def test_a_thought_that_does_not_end_is_warned_of_once(caplog) -> None:
    thoughts._warn_of_silence.cache_clear()
    tokenizer = real("smollm2")
    for text in ("<think>\nIt was Anna, or", "<think>\nIt was", "<think>\n</think>"):
        assert answer_of(tokenizer, tokenizer(text).input_ids) == ""
    assert [record.getMessage()[:43] for record in caplog.records] == ["a thought of the teacher does not end withi"]


def test_a_teacher_that_thinks_aloud_answers_without_its_thought(teacher_folder: Path) -> None:
    names = ("Boris", "Chloe", "Dmitri", "Eve")
    examples = tuple(
        Example(f"{name} is here.", "Who?", f"<think>\nThe name is {name}.\n</think>\n\n{name}.") for name in names
    )
    teacher = TransformersTeacher.load(teacher_folder, Reading("{transcript} {instruction}", examples=examples))
    sample = Sample("s", "Who?", transcript="Peter is here.")
    ids = teacher.reading.prompt_ids(teacher.tokenizer, sample)
    assert teacher.tokenizer.decode(ids).count("<think>") == 4
    assert teacher.reply([sample], max_tokens=40) == [Answer("Peter.", ended=True)]
    (cut,) = teacher.reply([sample], max_tokens=1)
    assert not cut.ended


@dataclass
class Tokenizes:
    """A server's /tokenize, by a tokenizer of this process."""

    tokenizer: object
    asked: list[dict] = field(default_factory=list)
    root: str = "http://here"

    def ask(self, requests):
        self.asked += [request.body for request in requests]
        return [request.read({"tokens": self._ids(request.body)}) for request in requests]

    def _ids(self, body: dict) -> list[int]:
        options = {"add_generation_prompt": body["add_generation_prompt"], **body.get("chat_template_kwargs", {})}
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False, **options)
        return self.tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("template", ["chatml", "qwen3", "qwen3_thinking", "r1", "nemotron", "gpt_oss"])
@pytest.mark.parametrize("word", ["", "/no_think"])
def test_a_served_teacher_reads_what_it_would_read_in_process(template: str, word: str) -> None:
    tokenizer = written_with(template)
    options = {"enable_thinking": False} if template == "qwen3" else {}
    reading = Reading("{transcript} {instruction}", template_options=options)
    teacher = HttpTeacher(Tokenizes(tokenizer), reading, "m", {"m": None}, 4, tokenizer)
    teacher.begun = teacher._thought(reading.messages(SAMPLE))
    sample = Sample("s", f"Who? {word}", transcript=SAMPLE.transcript)
    (ids,) = teacher._rendered([reading.messages(sample)])
    assert tokenizer.decode(ids) == tokenizer.decode(reading.prompt_ids(tokenizer, sample))
    assert list(ids) == reading.prompt_ids(tokenizer, sample)


def test_one_vocabulary_with_other_merges_is_another_tokenizer(teacher_folder: Path, tiny_folder: Path) -> None:
    from transformers import AutoTokenizer

    from rlspeech.catalog import fetch, resolve

    split_folder = fetch(resolve("tiny-llm-split"))
    student, teacher, split = (
        AutoTokenizer.from_pretrained(place) for place in (tiny_folder, teacher_folder, split_folder)
    )
    assert same_tokenizer(student, teacher)
    assert not same_tokenizer(student, split)
    assert not same_tokenizer(teacher, split)
    assert split.get_vocab() == teacher.get_vocab()
    text = "Okonkwo brought marmalade, umbrellas and saxophones. Grüße, 東京!"
    assert len(split(text).input_ids) > len(teacher(text).input_ids)
    assert split.decode(split(text).input_ids) == text
    weights = [(place / "model.safetensors").stat() for place in (teacher_folder, split_folder)]
    assert weights[0].st_ino == weights[1].st_ino  # one file under two names


def test_tokenizers_that_are_described_otherwise_but_cut_alike_are_the_same() -> None:
    student, teacher = fresh_smollm2(), fresh_smollm2()
    state = json.loads(teacher.backend_tokenizer.to_str())
    state["model"]["dropout"] = 0.0
    teacher._tokenizer = type(teacher.backend_tokenizer).from_str(json.dumps(state))
    assert same_tokenizer(student, teacher)
