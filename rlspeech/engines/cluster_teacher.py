"""A teacher of vLLM engines in Ray actors: they share the replies of a step, and one that is lost is replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlspeech.engines.cluster import Actor
from rlspeech.engines.cluster_rollouts import piece_size
from rlspeech.engines.pool import Pool
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.wire import PackedReplies
from rlspeech.types import Answer, Completion, Sample, Scored


@dataclass
class ClusterTeacher:
    """`pool`'s workers are workers.TeacherWorker."""

    pool: Pool
    reading: Reading
    max_num_seqs: int  # sequences that one engine reads at once

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.reading.messages(sample)

    def head(self) -> None:
        """None: a teacher in another process tells its top tokens."""

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        def call(worker: Actor, piece: Sequence[int]) -> Any:
            packed = PackedReplies.of([replies[index] for index in piece])
            return worker.call("score", [samples[index] for index in piece], packed)

        pieces = self._pieces(samples)
        found: dict[int, Scored] = {}
        for piece, packed in zip(pieces, self.pool.run(pieces, call), strict=True):
            found |= dict(zip(piece, packed.scores(), strict=True))
        return [found[index] for index in range(len(samples))]

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        def call(worker: Actor, piece: Sequence[int]) -> Any:
            return worker.call("reply", [samples[index] for index in piece], max_tokens)

        pieces = self._pieces(samples)
        found: dict[int, Answer] = {}
        for piece, written in zip(pieces, self.pool.run(pieces, call), strict=True):
            found |= dict(zip(piece, written, strict=True))
        return [found[index] for index in range(len(samples))]

    def _pieces(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Samples whose prompts begin alike next to one another: a worker reads the beginning once."""
        order = sorted(range(len(samples)), key=lambda index: (self.reading.beginning(samples[index]), index))
        size = piece_size(len(samples), 1, workers=len(self.pool.workers) or 1, at_once=self.max_num_seqs)
        return [order[start : start + size] for start in range(0, len(order), size)]
