"""What every text teacher shares: how a sample is put to it, its worked examples, and whose tokenizer it has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspeech.errors import UserError
from rlspeech.types import Sample


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
    """Whether every token of the teacher has the same id in the student, which may have added tokens of its own."""
    ours = student.get_vocab()
    return all(ours.get(token) == index for token, index in teacher.get_vocab().items())
