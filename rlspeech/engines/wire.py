"""Replies and scores as a few arrays: what crosses from one process to another.

R replies, N tokens of all of them, K teacher's top tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch

from rlspeech.types import Completion, Scored

FINISHES: tuple[Literal["stop", "length"], ...] = ("stop", "length")


@dataclass(frozen=True)
class PackedReplies:
    ends: np.ndarray  # [R] int64: reply r is tokens ends[r - 1] to ends[r]
    token_ids: np.ndarray  # [N] int32
    logprobs: np.ndarray  # [N] float32; NaN of a reply that was not sampled
    finish: np.ndarray  # [R] uint8, index into FINISHES
    versions: np.ndarray  # [R] int64
    texts: tuple[str, ...]

    @classmethod
    def of(cls, replies: Sequence[Completion]) -> PackedReplies:
        return cls(
            ends=np.cumsum([len(reply.token_ids) for reply in replies], dtype=np.int64),
            token_ids=np.array([token for reply in replies for token in reply.token_ids], dtype=np.int32),
            logprobs=np.array([value for reply in replies for value in _sampled(reply)], dtype=np.float32),
            finish=np.array([FINISHES.index(reply.finish) for reply in replies], dtype=np.uint8),
            versions=np.array([reply.policy_version for reply in replies], dtype=np.int64),
            texts=tuple(reply.text for reply in replies),
        )

    def replies(self) -> list[Completion]:
        tokens, logprobs = np.split(self.token_ids, self.ends[:-1]), np.split(self.logprobs, self.ends[:-1])
        return [
            Completion(tuple(tokens[r].tolist()), _known(logprobs[r]), text, FINISHES[finish], version)
            for r, (text, finish, version) in enumerate(
                zip(self.texts, self.finish.tolist(), self.versions.tolist(), strict=True)
            )
        ]


def _sampled(reply: Completion) -> Sequence[float]:
    return reply.logprobs or (np.nan,) * len(reply.token_ids)


def _known(logprobs: np.ndarray) -> tuple[float, ...]:
    return () if np.isnan(logprobs).all() else tuple(logprobs.tolist())


@dataclass(frozen=True)
class PackedScores:
    """Scores with one row a token."""

    ends: np.ndarray  # [R] int64
    logprobs: np.ndarray  # [N] float32
    topk_ids: np.ndarray  # [N, K] int32
    topk_logprobs: np.ndarray  # [N, K] float32

    @classmethod
    def of(cls, scored: Sequence[Scored]) -> PackedScores:
        """Raises ValueError where a score has no list of top tokens, or lists of several lengths are mixed."""
        ids = [one.topk_ids for one in scored]
        values = [one.topk_logprobs for one in scored]
        if (
            any(part is None for part in [*ids, *values])
            or len({part.shape[1] for part in ids if part is not None}) > 1
        ):
            raise ValueError("only scores with lists of one length K cross between processes")
        return cls(
            ends=np.cumsum([len(one.logprobs) for one in scored], dtype=np.int64),
            logprobs=torch.cat([one.logprobs for one in scored]).float().numpy(),
            topk_ids=torch.cat(ids).int().numpy(),
            topk_logprobs=torch.cat(values).float().numpy(),
        )

    def scores(self) -> list[Scored]:
        # Arrays that Ray hands over are read-only: torch gets a copy of its own.
        bounds = [0, *self.ends.tolist()]
        logprobs, ids, values = (
            torch.from_numpy(np.array(array)) for array in (self.logprobs, self.topk_ids, self.topk_logprobs)
        )
        return [
            Scored(
                tuple((token, token + 1) for token in range(end - start)),
                logprobs[start:end],
                topk_ids=ids[start:end].long(),
                topk_logprobs=values[start:end],
            )
            for start, end in pairwise(bounds)
        ]
