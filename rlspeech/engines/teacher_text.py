"""What every text teacher shares: how a sample is put to it, its worked examples, and whose tokenizer it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rlspeech.errors import UserError
from rlspeech.types import Sample

PROBE_CHAT = [{"role": "user", "content": "Hello."}]
# How models begin and end a thought: Qwen3, QwQ, DeepSeek-R1; Magistral; Command A.
THOUGHTS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"))
PROBE = " {line}\n{line}.\n"  # a token's text behind a space, and at a line's beginning


@dataclass(frozen=True)
class Example:
    """A worked example, shown before samples of its kind; without a kind, before samples that have no other."""

    transcript: str
    instruction: str
    answer: str
    kind: str | None = None


@dataclass(frozen=True)
class Reading:
    """How a sample is put to the teacher: worked examples, then the sample."""

    prompt: str
    prompts: Mapping[str, str] = field(default_factory=dict)  # other prompts, by the sample's kind
    system: str | None = None
    examples: tuple[Example, ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)  # handed to the chat template

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        if not sample.transcript:
            raise UserError(f"{sample.id}: no transcript, and the teacher has nothing else to read")
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        prompt = self.prompts.get(sample.tags.get("kind", ""), self.prompt)
        for example in self._shown(sample):
            content = _fill(prompt, example.transcript, example.instruction)
            messages += [{"role": "user", "content": content}, {"role": "assistant", "content": example.answer}]
        return [*messages, {"role": "user", "content": _fill(prompt, sample.transcript, sample.instruction)}]

    def beginning(self, sample: Sample) -> str:
        """Samples with the same one have the longest beginning in common: the examples, else the transcript."""
        shown = self._shown(sample)
        return str(shown) if shown else sample.transcript or ""

    def _shown(self, sample: Sample) -> list[Example]:
        own = [example for example in self.examples if example.kind == sample.tags.get("kind", "")]
        return own or [example for example in self.examples if example.kind is None]

    def prompt_ids(self, tokenizer: Any, sample: Sample) -> list[int]:
        """Token ids of the chat up to where the teacher's answer begins, which is never inside a thought.

        Raises UserError where the chat template does not take the chat.
        """
        text = _rendered(tokenizer, self.messages(sample), add_generation_prompt=True, **self.template_options)
        text += self.closing(tokenizer)
        return tokenizer(text, add_special_tokens=False).input_ids

    def closing(self, tokenizer: Any) -> str:
        """What ends the thought that the chat template begins for the assistant; empty where it begins none."""
        begun = [
            _rendered(tokenizer, PROBE_CHAT, add_generation_prompt=begin, **self.template_options)
            for begin in (False, True)
        ]
        return closing_of(begun[1].removeprefix(begun[0]))


def closing_of(begun: str) -> str:
    """
    >>> closing_of("<|im_start|>assistant\\n<think>\\n")
    '\\n</think>\\n\\n'
    >>> closing_of("<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n")
    ''
    """
    for opening, closing in THOUGHTS:
        if opening in begun and closing not in begun.rpartition(opening)[2]:
            return f"\n{closing}\n\n" if begun.endswith("\n") else f"\n\n{closing}\n\n"
    return ""


def _rendered(tokenizer: Any, chat: list[dict[str, str]], **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except TemplateError as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in chat))
        raise UserError(
            f"the teacher's chat template does not take this chat, of the roles {roles} ({error}); "
            "a system text can stand in reading.prompt instead of reading.system"
        ) from error


def _fill(prompt: str, transcript: str, instruction: str) -> str:
    return prompt.replace("{instruction}", instruction).replace("{transcript}", transcript)


def read_examples(path: Path | None) -> tuple[Example, ...]:
    """JSONL rows with transcript, instruction, answer and, if need be, kind. Raises UserError as `file:line: what`."""
    if path is None:
        return ()
    if not path.is_file():
        raise UserError(f"{path}: no such file of worked examples")
    examples = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            example = Example(**json.loads(line))
            if not all(isinstance(text, str) for text in (example.transcript, example.instruction, example.answer)):
                raise TypeError("they are text")
            examples.append(example)
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: wants transcript, instruction, answer and kind ({error})") from error
    return tuple(examples)


def same_tokenizer(student: Any, teacher: Any) -> bool:
    """Whether every text has the same ids in both. The student may have added tokens of its own.

    Every token of the teacher has its id in the student, and both cut text in the same places (two tokenizers may have
    one vocabulary and other merges): they are described alike, or the text of the whole vocabulary, a line for each
    token, has the same ids.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if not all(ours.get(token) == index for token, index in theirs.items()):
        return False
    if (described := _description(student)) and described == _description(teacher):
        return True
    probe = "".join(PROBE.format(line=line) for line in vocabulary_lines(teacher))
    mine, other = (tokenizer(probe, add_special_tokens=False).input_ids for tokenizer in (student, teacher))
    return mine == other


def _description(tokenizer: Any) -> dict[str, Any] | None:
    """What a tokenizer of the tokenizers library is made of, its added tokens apart."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "to_str"):
        return None
    state = json.loads(backend.to_str())
    return {part: state[part] for part in ("normalizer", "pre_tokenizer", "model")}


def vocabulary_lines(tokenizer: Any) -> list[str]:
    """The text of each token, without what was added to the vocabulary (special tokens) and parts of characters."""
    plain = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
    lines = tokenizer.batch_decode([[index] for index in plain])
    return [line for line in lines if "\ufffd" not in line]
