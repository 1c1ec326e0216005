"""Spans: reply tokens that a teacher with another tokenizer scores together (see maths.align).

A span is the least stretch of bytes that both tokenizers cut at its two ends. By the chain rule its log-probability is
the sum of those of its tokens, on either side, so the span's k1 = log q(span) - log p(span) is exact whatever the
tokens are. log p(span) is that of the teacher's own segmentation: a lower bound of its probability of the text.

Shape letter: N reply tokens of a batch. `span_N` numbers the spans of a batch; -1: a token without a score.
"""

import torch
from torch import Tensor

NO_SPAN = -1


def span_k1(logprobs_N: Tensor, teacher_logprobs_N: Tensor, span_N: Tensor | None) -> Tensor:
    """The whole k1 of a token's span, at every token of it [N]; 0 where there is no score.

    As the (negative) advantage of each of the span's tokens it makes the policy gradient that of KL(q || p) over whole
    spans: log q(span) is a sum of tokens, and the gradient of each is multiplied by what the span as a whole gave.
    `teacher_logprobs_N` sums to log p(span) over the span's tokens. Without `span_N` every token is a span.
    """
    gap_N = logprobs_N - teacher_logprobs_N
    return summed(gap_N, span_N)


def summed(values_N: Tensor, span_N: Tensor | None) -> Tensor:
    """The sum over a token's span, at every token of it [N]; 0 where there is no score."""
    return values_N if span_N is None else _sum_by(values_N, span_N)


def shared(values_N: Tensor, span_N: Tensor | None) -> Tensor:
    """What stands at every token of a span, in equal shares: sums over tokens are then sums over spans [N]."""
    return values_N if span_N is None else values_N / _sum_by(torch.ones_like(values_N), span_N).clamp(min=1)


def _sum_by(values_N: Tensor, span_N: Tensor) -> Tensor:
    """For each token the sum over its span; 0 without a span."""
    scored_N = span_N != NO_SPAN
    index_N = span_N.clamp(min=0)
    sums = values_N.new_zeros(int(index_N.max()) + 1 if len(index_N) else 0)
    return sums.index_add_(0, index_N, values_N * scored_N)[index_N] * scored_N
