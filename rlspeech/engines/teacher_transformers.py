"""A text teacher in process: it reads the transcript in its own chat template and scores the student's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlspeech.engines.decoding import generate
from rlspeech.errors import UserError
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import attention_mask, pack
from rlspeech.protocols import Sampling
from rlspeech.types import Completion, Sample, Scored


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


@dataclass
class TransformersTeacher:
    model: Any
    tokenizer: Any
    reading: Reading
    batch: int = 32

    @classmethod
    def load(
        cls, folder: Path, reading: Reading, *, batch: int = 32, trust_remote_code: bool = False
    ) -> TransformersTeacher:
        trust = {"trust_remote_code": trust_remote_code}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        return cls(model.eval().requires_grad_(False), tokenizer, reading, batch)

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.reading.messages(sample)

    def head(self) -> Tensor:
        return self.model.get_output_embeddings().weight

    @torch.no_grad()
    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        """Log-probs of the replies' own token ids: student and teacher share a tokenizer (see same_tokenizer)."""
        prompts = [self._prompt(sample) for sample in samples]
        scored: dict[int, Scored] = {}
        for chunk in self._alike(samples):
            members = [[(prompts[index], replies[index].token_ids) for index in group] for group in chunk]
            packed = pack(members, pad_id=0)
            hidden_BTD = self.model.get_decoder()(
                input_ids=packed.input_ids,
                attention_mask=attention_mask(packed.branch),
                position_ids=packed.position_ids,
                use_cache=False,
            ).last_hidden_state
            hidden_ND = hidden_BTD.flatten(0, 1)[packed.at]
            logprobs_N = token_logprobs(hidden_ND, self.head(), packed.targets)
            for place, index in enumerate(index for group in chunk for index in group):
                mine = packed.rollout == place
                length = int(mine.sum())
                spans = tuple((token, token + 1) for token in range(length))
                scored[index] = Scored(spans, logprobs_N[mine], hidden=hidden_ND[mine])
        return [scored[index] for index in range(len(samples))]

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[str]:
        prompts = [self._prompt(sample) for sample in samples]
        found: dict[int, str] = {}
        for chunk in self._alike(samples):
            written = generate(
                self.model,
                [[prompts[index] for index in group] for group in chunk],
                embed=None,
                sampling=Sampling(max_tokens=max_tokens),
                end_ids=[self.tokenizer.eos_token_id],
                pad_id=self.tokenizer.eos_token_id,
            )
            indices = [index for group in chunk for index in group]
            texts = [reply.token_ids for group in written for reply in group]
            for index, ids in zip(indices, texts, strict=True):
                found[index] = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return [found[index] for index in range(len(samples))]

    def _alike(self, samples: Sequence[Sample]) -> Iterator[list[list[int]]]:
        """Chunks of at most `batch` samples, those whose prompts begin alike in one group: it is read once."""
        groups: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault(self.reading.beginning(sample), []).append(index)
        chunk: list[list[int]] = []
        for group in groups.values():
            while group:
                room = self.batch - sum(map(len, chunk))
                if room == 0:
                    yield chunk
                    chunk, room = [], self.batch
                chunk.append(group[:room])
                group = group[room:]
        if chunk:
            yield chunk

    def _prompt(self, sample: Sample) -> tuple[int, ...]:
        text = self.tokenizer.apply_chat_template(self.messages(sample), tokenize=False, add_generation_prompt=True)
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)


def same_tokenizer(student: Any, teacher: Any) -> bool:
    """Whether every token of the teacher has the same id in the student, which may have added tokens of its own."""
    ours = student.get_vocab()
    return all(ours.get(token) == index for token, index in teacher.get_vocab().items())
