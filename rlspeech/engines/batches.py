"""Rollouts, with what a teacher says of them, to the learner's micro-batches."""

from collections.abc import Sequence

import torch

from rlspeech.maths.packing import pack, split
from rlspeech.protocols import Student
from rlspeech.types import Completion, Prompt, Rollout, Sample, Scored, TokenBatch


def reference_rollouts(student: Student, samples: Sequence[Sample], prompts: Sequence[Prompt]) -> list[Rollout]:
    """The references as replies, ended by the end-of-turn token; samples without a reference are left out."""
    rollouts = []
    for sample, prompt in zip(samples, prompts, strict=True):
        if sample.reference is not None:
            ids = (*student.tokenizer(sample.reference, add_special_tokens=False).input_ids, student.end_token_id)
            reply = Completion(ids, (), sample.reference, "stop")
            rollouts.append(Rollout(sample, prompt, reply, origin="reference"))
    return rollouts


def make_batches(
    student: Student,
    rollouts: Sequence[Rollout],
    *,
    micro_batch: int,
    scored: Sequence[Scored] | None = None,
    teacher_head: torch.Tensor | None = None,
) -> list[TokenBatch]:
    """One row an audio, `micro_batch` rows at most. Prompts of one audio share its positions."""
    groups: dict[str, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt.audio_key, []).append(index)
    rows = list(groups.values())
    members = [[(rollouts[i].prompt.token_ids, rollouts[i].completion.token_ids) for i in row] for row in rows]
    batches = []
    for chosen in split(members, micro_batch):
        packed = pack([members[row] for row in chosen], pad_id=student.end_token_id)
        order = [index for row in chosen for index in rows[row]]
        replies = [rollouts[index].completion for index in order]
        batches.append(
            TokenBatch(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                branch=packed.branch,
                features=student.collate([rollouts[rows[row][0]].prompt for row in chosen]),
                at=packed.at,
                targets=packed.targets,
                weights=torch.ones(len(packed.targets)),
                rollout=torch.tensor(order)[packed.rollout],
                sampler_logprobs=_flat(replies),
                teacher_logprobs=torch.cat([scored[index].logprobs for index in order]) if scored else None,
                teacher_hidden=_hidden([scored[index] for index in order]) if scored else None,
                teacher_head=teacher_head,
            )
        )
    return batches


def _flat(replies: Sequence[Completion]) -> torch.Tensor | None:
    """The sampler's log-probs [N]; None where the replies were not sampled."""
    if not all(len(reply.logprobs) == len(reply.token_ids) for reply in replies):
        return None
    return torch.tensor([value for reply in replies for value in reply.logprobs])


def _hidden(scored: Sequence[Scored]) -> torch.Tensor | None:
    """The teacher's hidden states [N, D]; None of a teacher that gives none: full-vocabulary losses then refuse."""
    states = [one.hidden for one in scored if one.hidden is not None]
    return torch.cat(states) if len(states) == len(scored) else None
