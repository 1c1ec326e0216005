"""What every text teacher shares: how a sample is put to it, its worked examples, and whose tokenizer it has."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from rlspeech.engines.thoughts import begun_by, closing_of
from rlspeech.errors import UserError, did_you_mean
from rlspeech.types import Sample

PROBE = " {line}\n{line}.\n"  # a token's text behind a space, and at a line's beginning
PROBED_AT_ONCE = 4096  # tokens; two tokenizers that differ do so among the first
INSTEAD = "a system text can stand in reading.prompt instead of reading.system"
NO_OPTIONS = {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}  # a template's own


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

        Whether the chat template begins a thought is seen at this very chat: some decide by its words (/no_think).
        Raises UserError where the template does not take the chat, has no place for the system text, or none of an
        option's name. The system text is not moved into the user's message: `prompt` is where that is said.
        """
        _check_options(tokenizer, self.template_options)
        chat = self.messages(sample)
        before, text = (
            _rendered(tokenizer, chat, add_generation_prompt=begin, **self.template_options) for begin in (False, True)
        )
        if self.system and self.system.strip() not in text:
            unsaid = _rendered(tokenizer, chat[1:], add_generation_prompt=True, **self.template_options)
            if unsaid == text:
                raise UserError(f"reading.system: the teacher's chat template leaves it out; {INSTEAD}")
        text += closing_of(begun_by(before, text))
        return tokenizer(text, add_special_tokens=False).input_ids


def _rendered(tokenizer: Any, chat: list[dict[str, str]], **options: Any) -> str:
    try:
        return tokenizer.apply_chat_template(chat, tokenize=False, **options)
    except TemplateError as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in chat))
        raise UserError(
            f"the teacher's chat template does not take this chat, of the roles {roles} ({error}); {INSTEAD}"
        ) from error


def _check_options(tokenizer: Any, options: Mapping[str, Any]) -> None:
    """A template takes any name without a word."""
    template = getattr(tokenizer, "chat_template", None)
    if not options or not isinstance(template, str):
        return
    known = _words(template) - NO_OPTIONS
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(
                f"reading.template_options: {name!r} is no option of the teacher's chat template"
                + (hint if "did you mean" in hint else "")
            )


@cache
def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W\d]\w*", template))


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
    lines = vocabulary_lines(teacher)
    while some := list(islice(lines, PROBED_AT_ONCE)):
        probe = "".join(PROBE.format(line=line) for line in some)
        mine, other = (tokenizer(probe, add_special_tokens=False).input_ids for tokenizer in (student, teacher))
        if mine != other:
            return False
    return True


def _description(tokenizer: Any) -> bytes | None:
    """What a tokenizer of the tokenizers library is made of, its added tokens apart."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not hasattr(backend, "pre_tokenizer"):
        return None
    return pickle.dumps((backend.normalizer, backend.pre_tokenizer, backend.model))


def vocabulary_lines(tokenizer: Any) -> Iterator[str]:
    """The text of each token, without what was added to the vocabulary (special tokens) and parts of characters."""
    plain = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder))
    for start in range(0, len(plain), PROBED_AT_ONCE):
        lines = tokenizer.batch_decode([[index] for index in plain[start : start + PROBED_AT_ONCE]])
        yield from (line for line in lines if "\ufffd" not in line)
