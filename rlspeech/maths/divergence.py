"""A divergence of the student from whatever a batch's teacher tells of each token.

With one tokenizer: the full vocabulary, or the teacher's top tokens. With two: its top tokens where a token stands
alone on both sides, matched by their bytes, and the sampled k1 of the span elsewhere.

Shape letters: N tokens, V vocabulary, K teacher's top tokens.
"""

from dataclasses import replace
from typing import get_args

import torch

from rlspeech.maths.distill import Between, Divergence, Tail, full_vocabulary, topk_renormalised, topk_tail
from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import required, tokens_of
from rlspeech.maths.spans import shared, span_k1
from rlspeech.types import Policy, TokenBatch


def divergence(policy: Policy, batch: TokenBatch, between: Between, *, tail: Tail) -> Divergence:
    """A divergence from whatever the batch's teacher tells: the full vocabulary where it can, else its top tokens.

    The policy's temperature divides both sides of the full vocabulary, and of a list the student alone. `tail` is what
    stands for the tokens that are not listed: one bucket (`topk_tail`), or nothing (`topk_renormalised`). The batch's
    weights are announced to `by_chunks`. Raises ValueError naming the fields that the batch has not.
    """
    full = [name for name in ("teacher_hidden", "teacher_head") if getattr(batch, name) is None]
    listed = [name for name in ("teacher_topk_ids", "teacher_topk_logprobs") if getattr(batch, name) is None]
    if full and listed:
        raise ValueError(
            f"the batch has no {' and no '.join(full)} for the full vocabulary, and no {' and no '.join(listed)} for "
            "the teacher's top tokens; this loss needs the one or the other"
        )
    student = (policy.hidden, policy.head)
    common = {"between": between, "temperature": policy.temperature, "weights_N": batch.weights}
    if batch.span is not None:
        return _of_spans(policy, batch, between, tail)
    if not full:
        return full_vocabulary(*student, required(batch, "teacher_hidden"), required(batch, "teacher_head"), **common)
    topk = topk_tail if tail == "bucket" else topk_renormalised
    lists = (required(batch, "teacher_topk_ids"), required(batch, "teacher_topk_logprobs"))
    return topk(*student, *lists, classes_V=batch.classes, **common)


def _of_spans(policy: Policy, batch: TokenBatch, between: Between, tail: Tail) -> Divergence:
    """`between` on the tokens that have a list; elsewhere, whatever `between` is, the sampled reverse KL of the span.

    Its value is k1 in equal shares of the span's tokens, its gradient k1 grad log q of each token. That is a mean over
    samples, so a token that the student has not sampled (its sampler's log-prob is NaN) gives 0 there. A span has its
    tokens all in one part.
    """
    listed_N = required(batch, "teacher_topk_logprobs").isfinite().any(-1)
    nats_N = policy.hidden.new_zeros(len(listed_N), dtype=torch.float32)
    found = Divergence(nats_N, nats_N, nats_N)
    for which_N, of_part in ((listed_N, _of_lists), (~listed_N, _of_samples)):
        at = which_N.nonzero()[:, 0]
        if len(at):
            part = of_part(replace(policy, hidden=policy.hidden[at]), tokens_of(batch, at), between, tail)
            pairs = zip(found, part, strict=True)
            found = Divergence(*(whole.index_copy(0, at, value.to(whole.dtype)) for whole, value in pairs))
    return found


def _of_lists(policy: Policy, batch: TokenBatch, between: Between, tail: Tail) -> Divergence:
    return divergence(policy, replace(batch, span=None), between, tail=tail)


def _of_samples(policy: Policy, batch: TokenBatch, between: Between, tail: Tail) -> Divergence:
    logprobs_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
    k1_N = span_k1(logprobs_N.detach(), required(batch, "teacher_logprobs"), batch.span)
    if batch.sampler_logprobs is not None:
        k1_N = k1_N.masked_fill(batch.sampler_logprobs.isnan(), 0)
    share_N = shared(k1_N, batch.span)
    return Divergence(share_N + k1_N * (logprobs_N - logprobs_N.detach()), share_N, torch.zeros_like(share_N))


def check_tail(tail: str) -> None:
    """Raises ValueError where `tail` is none of Tail."""
    if tail not in get_args(Tail):
        raise ValueError(f"tail must be {' or '.join(get_args(Tail))}, got {tail!r}")
