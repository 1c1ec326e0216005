"""engines.retokenise.end_of_turn: the token that ends an assistant's turn, out of chat templates of many kinds."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from real_tokenizers import fresh_smollm2, tokenizer

from rlspeech.engines.retokenise import Rereader, end_of_turn
from rlspeech.engines.token_bytes import token_bytes
from rlspeech.errors import UserError


def templated(template: str | None, *, special: Sequence[str] = (), added: Sequence[str] = (), **settings: Any) -> Any:
    kind = fresh_smollm2()
    kind.add_special_tokens({"additional_special_tokens": list(special)})
    kind.add_tokens(list(added))
    kind.chat_template = template
    for name, value in settings.items():
        setattr(kind, name, value)
    return kind


TURNS = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}CLOSE{% endfor %}"


@pytest.mark.parametrize(
    ("close", "wanted"),
    [
        ("<|eot|>\n", "<|eot|>"),
        (" <|eot|>", "<|eot|>"),  # Llama 2 has a space there
        ("\n\n<|eot|><|im_end|>", "<|eot|>"),
        ("<|end|>\n", "<|end|>"),  # added, and not special
        ("\n", "<|im_end|>"),  # nothing closes the answer: the end of sequence
        (" Regards.<|eot|>", "<|im_end|>"),  # what follows is not the answer's end
    ],
)
def test_the_end_of_turn_is_what_follows_an_answer_in_the_template(close: str, wanted: str) -> None:
    kind = templated(TURNS.replace("CLOSE", close), special=["<|eot|>"], added=["<|end|>"])
    assert end_of_turn(kind) == kind.convert_tokens_to_ids(wanted)


def test_a_thought_before_the_answer_does_not_hide_its_end() -> None:
    template = TURNS.replace(
        "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    )
    kind = templated(template.replace("CLOSE", "<|eot|>"), special=["<|eot|>"], added=["<think>", "</think>"])
    assert end_of_turn(kind) == kind.convert_tokens_to_ids("<|eot|>")


def test_without_a_template_the_end_of_turn_is_the_end_of_sequence() -> None:
    assert end_of_turn(tokenizer("whisper")) == 50256
    assert end_of_turn(templated("{{ raise_exception('no') }}")) == 2
    assert end_of_turn(templated("{{ messages[0].content }}")) == 2  # the answer is not shown


def test_a_template_of_mistral_common_ends_an_answer_with_its_end_of_sequence() -> None:
    turn = [{"role": "user", "content": "Hi"}]
    for name in ("tekken", "sentencepiece"):
        kind = tokenizer(name)
        chat = [*turn, {"role": "assistant", "content": "Tuesday"}, *turn]
        ids = kind.apply_chat_template(chat, tokenize=True, return_dict=False)
        [answer] = token_bytes(kind).encode(["Tuesday"])
        place = next(i for i in range(len(ids)) if ids[i : i + len(answer)] == answer)
        assert ids[place + len(answer)] == end_of_turn(kind) == end_of_turn(kind.tokenizer)


def test_without_any_end_of_turn_there_is_no_teacher() -> None:
    with pytest.raises(UserError, match="no token ends an assistant's turn"):
        Rereader.of(tokenizer("whisper"), 50256, tokenizer("tiktoken"))
    assert end_of_turn(SimpleNamespace(eos_token_id=7)) == 7
