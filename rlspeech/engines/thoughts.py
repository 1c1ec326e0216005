"""Where a model's thought begins and ends: a student's reply is never part of one, and a teacher's answer follows it.

How published models mark a thought, by their chat templates (those of llama.cpp's models/templates are copies) and by
the parsers of vllm/reasoning:

- `<think>`: DeepSeek-R1 and its distilled models, QwQ, Qwen3, GLM-4.5, Nemotron Nano 2, Kimi K2 Thinking
- `[THINK]`: Magistral
- `<|START_THINKING|>`: Command R7B, Command A Reasoning
- `<seed:think>`: Seed-OSS
- `<|channel>thought`: Gemma 4
- channels: gpt-oss writes its thought and its answer in messages of their own (openai/harmony)
"""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Any

log = logging.getLogger(__name__)

THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought\n", "<channel|>"),
)
HARMONY_TURN, HARMONY_ANSWER = "<|start|>assistant", "<|channel|>final<|message|>"


def begun_by(before: str, prompt: str) -> str:
    """How a chat template begins the assistant's turn: what `prompt` has that the chat `before` it has not.

    >>> begun_by("<|user|>Hi", "<|user|>Hi<|assistant|>")
    '<|assistant|>'
    """
    pairs = enumerate(zip(before, prompt, strict=False))
    return prompt[next((at for at, (one, other) in pairs if one != other), min(len(before), len(prompt))) :]


def closing_of(begun: str) -> str:
    """What is to follow the beginning of an assistant's turn, so that the answer does; empty where the answer may.

    An empty thought is written as its model does when it is not to think: with an empty line where the template goes on
    in a line of its own (Qwen3), otherwise with nothing at all (GLM-4.5, Nemotron Nano 2, Command R7B).

    >>> closing_of("<|im_start|>assistant\\n<think>\\n")
    '\\n</think>\\n\\n'
    >>> closing_of("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n")
    ''
    >>> closing_of("<|assistant|><think>")
    '</think>'
    """
    for opening, closing in THOUGHTS:
        _, opened, inside = begun.rpartition(opening)
        if opened and closing not in inside:
            return "\n\n"[len(inside) :] + f"{closing}\n\n" if inside in ("\n", "\n\n") else closing
    return HARMONY_ANSWER if begun.endswith(HARMONY_TURN) else ""


def answer_of(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """The text that a model wrote, without the thought that it began with.

    Empty where that thought does not end, which is warned of once in a process.
    """
    ids = list(token_ids)
    text = tokenizer.decode(ids, skip_special_tokens=False).lstrip()
    closing = next((closing for opening, closing in THOUGHTS if text.startswith(opening)), None)
    if closing is None:
        return tokenizer.decode(ids, skip_special_tokens=True).strip()

    def upto(count: int) -> str:
        return tokenizer.decode(ids[:count], skip_special_tokens=False)

    count = bisect_left(range(len(ids) + 1), True, key=lambda count: closing in upto(count))
    if count > len(ids):
        _warn_of_silence()
    rest = upto(count).partition(closing)[2]  # of the token that ends the thought
    return (rest + tokenizer.decode(ids[count:], skip_special_tokens=True)).strip()


@cache
def _warn_of_silence() -> None:
    log.warning(
        "a thought of the teacher does not end within its longest reply, so its answer is empty: "
        "reading.template_options can switch its thinking off, such as enable_thinking = false"
    )
