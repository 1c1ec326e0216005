"""What the teacher itself writes, as replies in the student's tokens, and its cross-entropy in a learner's batches.

N reply tokens of a batch, T tokens of a reply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from rlspeech.engines.measure import weight_of
from rlspeech.engines.token_bytes import token_bytes
from rlspeech.protocols import Student
from rlspeech.types import Completion, Prompt, Rollout, Sample, Scored, TokenBatch


def teacher_rollouts(
    student: Student,
    samples: Sequence[Sample],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    *,
    max_tokens: int,
    version: int,
) -> list[Rollout]:
    """Texts with the student's end of turn. One longer than `max_tokens` with it is cut there, and has none.

    An empty text is the end of turn alone. Nothing in a text is taken for a special token. No token has a sampler's
    log-prob. `version`: steps learned when they are asked for.
    """
    rollouts = []
    encoded = token_bytes(student.tokenizer).encode(texts) if texts else []
    for sample, prompt, text, ids in zip(samples, prompts, texts, encoded, strict=True):
        whole = (*ids, student.end_token_id)
        finish = "stop" if len(whole) <= max_tokens else "length"
        reply = Completion(whole[:max_tokens], (), text, finish, version)
        rollouts.append(Rollout(sample, prompt, reply, origin="teacher"))
    return rollouts


def unscored(scored: Sequence[Scored], rollouts: Sequence[Rollout]) -> list[Scored]:
    """Scores without weight of rollouts that no teacher has scored, to stand in one batch with those of others.

    They have what the others have. Among spans of another tokenizer they are replies that nobody reads.
    """
    like = scored[0]
    in_spans = any(one.alone is not None for one in scored)
    return [_unscored(like, 0 if in_spans else len(r.completion.token_ids), in_spans=in_spans) for r in rollouts]


def _unscored(like: Scored, tokens: int, *, in_spans: bool) -> Scored:
    ids, values, hidden = like.topk_ids, like.topk_logprobs, like.hidden
    return Scored(
        spans=tuple((token, token + 1) for token in range(tokens)),
        logprobs=like.logprobs.new_zeros(tokens),
        topk_ids=None if ids is None else ids.new_zeros(tokens, ids.shape[1]),
        topk_logprobs=None if values is None else values.new_full((tokens, values.shape[1]), -math.inf),
        hidden=None if hidden is None else hidden.new_zeros(tokens, hidden.shape[1]),
        weight=0.0,
        alone=torch.zeros(0, dtype=torch.bool) if in_spans else None,
    )


def with_cross_entropy(
    batches: Sequence[TokenBatch], rollouts: Sequence[Rollout], *, weight: float
) -> list[TokenBatch]:
    """All micro-batches of a step, on all ranks, with `sft_weights` on every token that the teacher wrote.

    A learner divides by the sum W of the step's weights: L = sum(w loss) / W + weight * mean over the M tokens of
    teacher-written replies of -log q, so each of them has weight * W / M. `rollouts` are those of `make_batches`.
    """
    theirs = torch.tensor([rollout.origin == "teacher" for rollout in rollouts] + [False])  # the last: of NOBODY
    written = [theirs[batch.rollout] for batch in batches]
    scale = weight * weight_of(batches) / sum(int(mask_N.sum()) for mask_N in written)
    return [replace(batch, sft_weights=mask_N * scale) for batch, mask_N in zip(batches, written, strict=True)]
