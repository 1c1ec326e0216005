"""Rollouts, with what a teacher says of them, to the learner's micro-batches.

N reply tokens of a batch, K teacher's top tokens, V vocabulary, D hidden size.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlspeech.maths.packing import deal, pack
from rlspeech.maths.spans import NO_SPAN
from rlspeech.protocols import Student
from rlspeech.types import Completion, Prompt, Rollout, Sample, Scored, TokenBatch

NOBODY = -1  # `TokenBatch.rollout` of tokens that only fill a rank's turn


def reference_rollouts(student: Student, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> list[Rollout]:
    """The references as replies, ended by the end-of-turn token; samples without a reference are left out."""
    rollouts = []
    for sample, prompt in zip(samples, prompts, strict=True):
        if sample.reference is not None:
            reply = Completion(reference_ids(student, sample), (), sample.reference, "stop")
            rollouts.append(Rollout(sample, prompt, reply, origin="reference"))
    return rollouts


def reference_ids(student: Student, sample: Sample) -> tuple[int, ...]:
    """Of the reference as a reply; none without one."""
    if sample.reference is None:
        return ()
    return (*student.tokenizer(sample.reference, add_special_tokens=False).input_ids, student.end_token_id)


def make_batches(
    student: Student,
    rollouts: Sequence[Rollout],
    *,
    micro_batch: int,
    micro_batch_tokens: int | None = None,
    scored: Sequence[Scored] | None = None,
    teacher_head: Tensor | None = None,
    shares: Sequence[Tensor] | None = None,
    ranks: int = 1,
) -> list[TokenBatch]:
    """One row an audio, `micro_batch` rows at most. Prompts of one audio share its positions.

    `micro_batch_tokens`: positions of a micro-batch at most, padding included; a longer row stands alone.
    `shares`: for each rollout, what its tokens count for; a teacher's weight is multiplied with it.

    Batch i belongs to rank i % ranks, and every rank has equally many. Where there is no row for a rank's turn it gets
    a copy of the shortest one, which weighs nothing and belongs to nobody.
    """
    groups: dict[Any, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt.audio_key or rollout.prompt.token_ids, []).append(index)
    rows = list(groups.values())
    members = [[(rollouts[i].prompt.token_ids, rollouts[i].completion.token_ids) for i in row] for row in rows]
    turns = deal(members, max_rows=micro_batch, max_tokens=micro_batch_tokens, ranks=ranks)
    spare = min(range(len(rows)), key=lambda row: sum(len(p) + len(r) for p, r in members[row]), default=0)
    batches = []
    for turn in turns:
        chosen = turn or [spare]
        packed = pack([members[row] for row in chosen], pad_id=student.end_token_id)
        order = [index for row in chosen for index in rows[row]]
        replies = [rollouts[index].completion for index in order]
        first = torch.tensor([student.first_position(rollouts[rows[row][0]].prompt) for row in chosen])
        found = _teacher([scored[index] for index in order], replies) if scored else {}
        weights = found.pop("weights", torch.ones(len(packed.targets)))
        if shares is not None:
            weights = weights * torch.cat([shares[index] for index in order])
        batches.append(
            TokenBatch(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids + first[:, None],
                branch=packed.branch,
                features=student.collate([rollouts[rows[row][0]].prompt for row in chosen]),
                at=packed.at,
                targets=packed.targets,
                weights=weights if turn else torch.zeros_like(weights),
                rollout=torch.tensor(order if turn else [NOBODY] * len(order))[packed.rollout],
                sampler_logprobs=_sampled(replies),
                teacher_head=teacher_head,
                **found,
            )
        )
    return batches


def _sampled(replies: Sequence[Completion]) -> Tensor | None:
    """The sampler's log-probs [N], NaN of replies that were not sampled; None where none was."""
    if not any(reply.logprobs for reply in replies):
        return None
    unknown = [(math.nan,) * len(reply.token_ids) for reply in replies]
    values = [reply.logprobs or nan for reply, nan in zip(replies, unknown, strict=True)]
    return torch.tensor([value for reply in values for value in reply])


def _teacher(scored: Sequence[Scored], replies: Sequence[Completion]) -> dict[str, Tensor | None]:
    """What all scores have: a loss that needs a field which one of them lacks then refuses the batch."""
    if any(one.alone is not None for one in scored):
        return _of_spans(scored, replies)
    weights = [torch.full((len(reply.token_ids),), one.weight) for one, reply in zip(scored, replies, strict=True)]
    hidden = [one.hidden for one in scored if one.hidden is not None]
    ids, values = _padded(scored)
    return {
        "weights": torch.cat(weights),
        "teacher_logprobs": torch.cat([one.logprobs for one in scored]),
        "teacher_hidden": torch.cat(hidden) if len(hidden) == len(scored) else None,
        "teacher_topk_ids": ids,
        "teacher_topk_logprobs": values,
    }


def _of_spans(scored: Sequence[Scored], replies: Sequence[Completion]) -> dict[str, Tensor | None]:
    """The same of spans, for each of their tokens. A token that the teacher cannot read weighs nothing."""
    sizes = [[end - start for start, end in one.spans] for one in scored]
    unread = [len(reply.token_ids) - sum(each) for each, reply in zip(sizes, replies, strict=True)]
    sizes_S = torch.tensor([size for each in sizes for size in each], dtype=torch.int64)
    row_R = torch.arange(len(sizes_S)).repeat_interleave(sizes_S)
    read = torch.cat([torch.arange(n) < n - left for n, left in zip(_lengths(replies), unread, strict=True)])
    weights = [torch.full((n,), one.weight) for one, n in zip(scored, _lengths(replies), strict=True)]
    ids, values = _padded(scored)
    logprobs_S = torch.cat([one.logprobs for one in scored]) / sizes_S
    classes = {id(one.classes): one.classes for one in scored if one.classes is not None}
    if len(classes) > 1:  # lists of several teachers' classes are none of one: spans have their k1 all the same
        ids, values = None, None
    return {
        "classes": next(iter(classes.values())) if len(classes) == 1 else None,
        "weights": torch.cat(weights) * read,
        "span": _where(read, row_R, NO_SPAN),
        "teacher_logprobs": _where(read, logprobs_S[row_R], 0.0),
        "teacher_topk_ids": None if ids is None else _where(read, ids[row_R], 0),
        "teacher_topk_logprobs": None if values is None else _where(read, values[row_R], -math.inf),
    }


def _where(read: Tensor, values_R: Tensor, otherwise: float) -> Tensor:
    """Values of the tokens that are read, in the order of all [N, ...]."""
    spread = values_R.new_full((len(read), *values_R.shape[1:]), otherwise)
    spread[read] = values_R
    return spread


def _lengths(replies: Sequence[Completion]) -> list[int]:
    return [len(reply.token_ids) for reply in replies]


def _padded(scored: Sequence[Scored]) -> tuple[Tensor | None, Tensor | None]:
    """Lists of top tokens [N, K], as wide as the widest; what a shorter one lacks is absent: -inf."""
    lists = [(one.topk_ids, one.topk_logprobs) for one in scored]
    whole = [(ids, values) for ids, values in lists if ids is not None and values is not None]
    if len(whole) < len(lists) or not whole:
        return None, None
    width = max(ids.shape[1] for ids, _ in whole)
    more = [width - ids.shape[1] for ids, _ in whole]
    return (
        torch.cat([pad(ids, (0, lacking)) for (ids, _), lacking in zip(whole, more, strict=True)]),
        torch.cat(
            [pad(values, (0, lacking), value=-math.inf) for (_, values), lacking in zip(whole, more, strict=True)]
        ),
    )
