"""Rollouts by transformers' `generate`, in the learner's process, on the learner's own weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlspeech.engines.decoding import Written, generate
from rlspeech.protocols import Sampling, Student
from rlspeech.types import Completion, Prompt, Rollout, Sample

LIKE = 2  # what is padded is read and kept with the rest


@dataclass
class TransformersRollouts:
    """Prompts that hear the same audio are read together: the audio is encoded and prefilled once."""

    student: Student
    batch: int = 32  # replies written at once, at most
    batch_tokens: int = 65_536  # of their prompts, at most, padding included; a longer group stands alone
    version: int = 0

    def generate(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        groups = _by_audio(prompts)
        training = self.student.model.training
        self.student.model.eval()
        found: dict[int, list[Written]] = {}
        with self.student.merged():
            for number, chunk in enumerate(self._chunks(groups, prompts, sampling.n)):
                seeded = replace(sampling, seed=(sampling.seed * 1_000_003 + number) % 2**63)
                found |= self._write(chunk, prompts, seeded)
        self.student.model.train(training)
        return [
            Rollout(sample, prompt, self._completion(written))
            for index, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
            for written in found[index]
        ]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """The weights are the learner's own: there is nothing to copy."""
        self.version = version

    def _chunks(self, groups: Sequence[list[int]], prompts: Sequence[Prompt], n: int) -> list[list[list[int]]]:
        """Groups of like length together, the longest at most LIKE times the shortest; none is ever split."""
        chunks: list[list[list[int]]] = []
        size = shortest = 0
        for group in sorted(groups, key=lambda group: (len(prompts[group[0]].token_ids), group)):
            longest = len(prompts[group[0]].token_ids)
            size += len(group) * n
            is_full = not chunks or size > self.batch or (len(chunks[-1]) + 1) * longest > self.batch_tokens
            if is_full or longest > LIKE * shortest:
                chunks.append([])
                size, shortest = len(group) * n, longest
            chunks[-1].append(group)
        return chunks

    def _write(
        self, groups: Sequence[Sequence[int]], prompts: Sequence[Prompt], sampling: Sampling
    ) -> dict[int, list[Written]]:
        def embed(ids: Tensor, owners: Sequence[int]) -> Tensor:
            return self.student.embed(ids, self.student.collate([prompts[groups[owner][0]] for owner in owners]))

        with torch.no_grad():
            replies = generate(
                self.student.model,
                [[prompts[index].token_ids for index in group for _ in range(sampling.n)] for group in groups],
                embed=embed,
                sampling=sampling,
                end_ids=[self.student.end_token_id],
                pad_id=self.student.end_token_id,
                never=[self.student.placeholder_id],
                first=[self.student.first_position(prompts[group[0]]) for group in groups],
            )
        n = sampling.n
        return {
            index: written[place * n : (place + 1) * n]
            for group, written in zip(groups, replies, strict=True)
            for place, index in enumerate(group)
        }

    def _completion(self, written: Written) -> Completion:
        return Completion(
            token_ids=written.token_ids,
            logprobs=written.logprobs,
            text=self.student.tokenizer.decode(written.token_ids, skip_special_tokens=True).strip(),
            finish="stop" if written.ended else "length",
            policy_version=self.version,
        )


def _by_audio(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts that hear the same audio, in order of first appearance; a prompt without audio is alone."""
    groups: dict[str | int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt.audio_key or index, []).append(index)
    return list(groups.values())
