"""The teacher's prompt, by chat templates of published models' forms: the reply is never part of a thought."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rlspeech.engines.teacher_text import Reading, closing_of, same_tokenizer
from rlspeech.errors import UserError
from rlspeech.types import Sample

SAMPLE = Sample("s", "Who?", transcript="Anna says: write <think> here.")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEMPLATES = {
    "plain": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Qwen3: a thought is begun by the model itself, and kept empty where thinking is switched off
    "qwen3": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    # DeepSeek-R1 and its distilled models, QwQ: the template itself begins the thought
    "r1": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "magistral": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n[THINK]{% endif %}",
    "gemma": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML,
}


@pytest.fixture
def prompt(teacher_folder: Path):
    def of(template: str, **settings) -> str:
        tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
        tokenizer.chat_template = TEMPLATES[template]
        reading = Reading("{transcript} {instruction}", **settings)
        return tokenizer.decode(reading.prompt_ids(tokenizer, SAMPLE))

    return of


@pytest.mark.parametrize(
    ("template", "options", "end"),
    [
        ("plain", {}, "<|im_start|>assistant\n"),
        ("qwen3", {}, "<|im_start|>assistant\n"),
        ("qwen3", {"enable_thinking": False}, "assistant\n<think>\n\n</think>\n\n"),
        ("r1", {}, "assistant\n<think>\n\n</think>\n\n"),
        ("magistral", {}, "assistant\n[THINK]\n\n[/THINK]\n\n"),
    ],
)
def test_a_reply_is_never_inside_a_thought(prompt, template: str, options: dict, end: str) -> None:
    text = prompt(template, template_options=options)
    assert text.endswith(end)
    assert text.count("</think>") == end.count("</think>")  # what the transcript says begins no thought
    assert text.startswith("<|im_start|>user\nAnna says: write <think> here. Who?<|im_end|>\n")


def test_a_template_without_a_system_role_is_one_line(prompt) -> None:
    with pytest.raises(UserError, match=r"of the roles system, user \(System role not supported\); a system text can"):
        prompt("gemma", system="Be brief.")


def test_a_thought_that_was_closed_before_may_begin_again() -> None:
    assert closing_of("<think>a</think><think>") == "\n\n</think>\n\n"


def test_one_vocabulary_with_other_merges_is_another_tokenizer(teacher_folder: Path, tiny_folder: Path) -> None:
    from rlspeech.catalog import fetch, resolve

    student, teacher, split = (
        AutoTokenizer.from_pretrained(place)
        for place in (tiny_folder, teacher_folder, fetch(resolve("tiny-llm-split")))
    )
    assert same_tokenizer(student, teacher)
    assert not same_tokenizer(student, split)
    assert split.get_vocab() == teacher.get_vocab()
    text = "The museum opens on Thursday at half past nine."
    assert len(split(text).input_ids) > len(teacher(text).input_ids)
    assert split.decode(split(text).input_ids) == text
