"""A text teacher in process: it reads the transcript in its own chat template and scores the student's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlspeech.engines.decoding import generate
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.thoughts import answer_of
from rlspeech.maths.logprobs import CHUNK, logits, token_logprobs
from rlspeech.maths.packing import needed_mask, pack
from rlspeech.protocols import Sampling
from rlspeech.types import Answer, Completion, Sample, Scored


@dataclass
class TransformersTeacher:
    model: Any
    tokenizer: Any
    reading: Reading
    batch: int = 32
    top_k: int | None = None  # its most probable tokens at each token; None: its hidden states, the whole vocabulary

    @classmethod
    def load(
        cls,
        folder: Path,
        reading: Reading,
        *,
        batch: int = 32,
        top_k: int | None = None,
        trust_remote_code: bool = False,
    ) -> TransformersTeacher:
        trust = {"trust_remote_code": trust_remote_code}
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa", **trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
        return cls(model.eval().requires_grad_(False), tokenizer, reading, batch, top_k)

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.reading.messages(sample)

    def head(self) -> Tensor | None:
        return None if self.top_k else self._head()

    def _head(self) -> Tensor:
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
                attention_mask=needed_mask(packed.branch),
                position_ids=packed.position_ids,
                use_cache=False,
            ).last_hidden_state
            hidden_ND = hidden_BTD.flatten(0, 1)[packed.at]
            logprobs_N, *top = self._told(hidden_ND, packed.targets)
            for place, index in enumerate(index for group in chunk for index in group):
                mine = packed.rollout == place
                length = int(mine.sum())
                spans = tuple((token, token + 1) for token in range(length))
                ids, values = (part[mine] for part in top) if top else (None, None)
                hidden = None if top else hidden_ND[mine]
                scored[index] = Scored(spans, logprobs_N[mine], topk_ids=ids, topk_logprobs=values, hidden=hidden)
        return [scored[index] for index in range(len(samples))]

    def _told(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        """Log-probs of the tokens [N]; with `top_k`, the best ids and their log-probs [N, K] too."""
        if not self.top_k:
            return (token_logprobs(hidden_ND, self._head(), targets_N),)

        def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            logprobs = logits(hidden, self._head()).log_softmax(-1)
            best = logprobs.topk(min(self.top_k or 0, logprobs.shape[-1]), dim=-1)
            return logprobs.gather(-1, targets[:, None])[:, 0], best.indices, best.values

        chunks = [chunk(*pair) for pair in zip(hidden_ND.split(CHUNK), targets_N.split(CHUNK), strict=True)]
        return tuple(torch.cat(column) for column in zip(*chunks, strict=True))

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        """What it answers itself, greedily, without its thoughts."""
        prompts = [self._prompt(sample) for sample in samples]
        found: dict[int, Answer] = {}
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
            replies = [reply for group in written for reply in group]
            for index, reply in zip(indices, replies, strict=True):
                found[index] = Answer(answer_of(self.tokenizer, reply.token_ids), reply.ended)
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
        return tuple(self.reading.prompt_ids(self.tokenizer, sample))
