"""Divergences between a student q and a teacher p at each token, in nats.

Full vocabulary: from hidden states and output projections of both, a chunk of tokens at a time. Top-K: from the
teacher's list. Sampled: from the log-probabilities of the tokens as written. The gradient goes to the student only.
With teacher == student every one is 0 (the sampled one: in the mean).

Shape letters: N tokens, V the student's vocabulary, W the teacher's, K teacher's top tokens, D and E hidden sizes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlspeech.maths.logprobs import CHUNK, by_chunks, logits

NEVER = -1e4  # log-probability that stands for zero: finite, so that 0 * (NEVER - x) is 0 and not NaN
TAIL_MIN = 1e-6  # least probability of a teacher's tail: below it 1 - sum(top-K) is float32 rounding

OfLogprobs = Callable[[Tensor, Tensor], Tensor]


class Divergence(NamedTuple):
    nats: Tensor  # [N] the divergence asked for; carries the gradient to the student
    reverse_kl: Tensor  # [N] KL(q || p) between the same two distributions, detached
    extra_mass: Tensor  # [N] the student's probability outside the ids that are compared, detached


def reverse_kl(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_head_WE: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Divergence:
    """KL(q || p) = sum_v q(v) [log q(v) - log p(v)] (GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543).

    Both sides are divided by `temperature` and are distributions over the ids that both have, the first min(V, W):
    a student with added tokens leaves their logits out, and `extra_mass` tells what probability they had.
    """
    return _full_vocabulary(
        reverse_kl_from_logprobs, hidden_ND, head_VD, teacher_hidden_NE, teacher_head_WE, temperature, chunk
    )


def forward_kl(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_head_WE: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Divergence:
    """KL(p || q) = sum_v p(v) [log p(v) - log q(v)]; ids and temperature as in `reverse_kl`."""
    return _full_vocabulary(
        forward_kl_from_logprobs, hidden_ND, head_VD, teacher_hidden_NE, teacher_head_WE, temperature, chunk
    )


def jsd(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_head_WE: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Divergence:
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, 0 < beta < 1 (GKD, arXiv 2306.13649, eq. 1).

    Ids and temperature as in `reverse_kl`.
    """
    of_logprobs = partial(jsd_from_logprobs, beta=beta)
    return _full_vocabulary(of_logprobs, hidden_ND, head_VD, teacher_hidden_NE, teacher_head_WE, temperature, chunk)


def reverse_kl_from_logprobs(q_NV: Tensor, p_NV: Tensor) -> Tensor:
    """sum_v q (log q - log p) [N] of finite log-probabilities (NEVER stands for zero)."""
    return (q_NV.exp() * (q_NV - p_NV)).sum(-1)


def forward_kl_from_logprobs(q_NV: Tensor, p_NV: Tensor) -> Tensor:
    """sum_v p (log p - log q) [N] of finite log-probabilities (NEVER stands for zero)."""
    return (p_NV.exp() * (p_NV - q_NV)).sum(-1)


def jsd_from_logprobs(q_NV: Tensor, p_NV: Tensor, *, beta: float) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) [N] of finite log-probabilities; the mixture m is taken in log space."""
    m_NV = torch.logaddexp(p_NV + math.log(beta), q_NV + math.log1p(-beta))
    return beta * (p_NV.exp() * (p_NV - m_NV)).sum(-1) + (1 - beta) * (q_NV.exp() * (q_NV - m_NV)).sum(-1)


def topk_tail(
    hidden_ND: Tensor,
    head_VD: Tensor,
    topk_ids_NK: Tensor,
    topk_logprobs_NK: Tensor,
    *,
    between: OfLogprobs = reverse_kl_from_logprobs,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Divergence:
    """A divergence over K + 1 outcomes: the teacher's K tokens, and one bucket with the rest of each side's mass.

    It is exact with K = V and never above the full divergence (data processing inequality). An entry of -inf is
    absent: its id belongs to the bucket. The ids of a row are distinct. `temperature` is the student's; the list is
    taken as served. The teacher's bucket is at least TAIL_MIN; where a row lists all V ids there is no bucket.
    `extra_mass` is the student's mass in the bucket.
    """

    def rows(hidden: Tensor, head: Tensor, ids: Tensor, p_nK: Tensor) -> tuple[Tensor, ...]:
        q_nV = F.log_softmax(logits(hidden, head, temperature), dim=-1)
        q_nK, tail_n, present = _listed(q_nV, ids, p_nK)
        p_nK = torch.where(present, p_nK.to(q_nV.dtype), NEVER)
        rest_n = (1 - p_nK.exp().sum(-1)).clamp(min=TAIL_MIN).log()
        rest_n = torch.where(present.sum(-1) == q_nV.shape[-1], NEVER, rest_n)
        q = torch.cat([q_nK, tail_n[:, None]], dim=-1)
        p = torch.cat([p_nK, rest_n[:, None]], dim=-1)
        return _measured(between, q, p, tail_n.exp())

    return Divergence(*by_chunks(rows, hidden_ND, head_VD, topk_ids_NK, topk_logprobs_NK, chunk=chunk))


def topk_renormalised(
    hidden_ND: Tensor,
    head_VD: Tensor,
    topk_ids_NK: Tensor,
    topk_logprobs_NK: Tensor,
    *,
    between: OfLogprobs = reverse_kl_from_logprobs,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> Divergence:
    """A divergence between both sides renormalised on the teacher's K tokens; exact with K = V.

    Blind to what the student puts outside the list: `extra_mass` tells how much. Otherwise as `topk_tail`; a row
    with no entry present is 0.
    """

    def rows(hidden: Tensor, head: Tensor, ids: Tensor, p_nK: Tensor) -> tuple[Tensor, ...]:
        q_nV = F.log_softmax(logits(hidden, head, temperature), dim=-1)
        q_nK, tail_n, present = _listed(q_nV, ids, p_nK)
        p_nK = torch.where(present, p_nK.to(q_nV.dtype), NEVER)
        return _measured(between, F.log_softmax(q_nK, dim=-1), F.log_softmax(p_nK, dim=-1), tail_n.exp())

    return Divergence(*by_chunks(rows, hidden_ND, head_VD, topk_ids_NK, topk_logprobs_NK, chunk=chunk))


def k1(logprobs_N: Tensor, teacher_logprobs_N: Tensor) -> Tensor:
    """log q(y) - log p(y) [N]: under y ~ q its mean is KL(q || p). Single values may be negative."""
    return logprobs_N - teacher_logprobs_N


class Clipped(NamedTuple):
    loss: Tensor  # [N] carries the gradient
    ratio: Tensor  # [N] q / q_old before the cap, detached
    clipped: Tensor  # [N] 1.0 where the clip or the cap has stopped the gradient


def k1_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    teacher_logprobs_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio_cap: float,
) -> Clipped:
    """Clipped policy gradient whose advantage is A = -stopgrad(k1): minimising it lowers KL(q || p).

    loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = q(y) / q_old(y). Where A < 0 that is unbounded in r,
    so r is first capped (dual clip, arXiv 1912.09729). With y ~ q_old and r inside the clip its mean gradient is that
    of the full-vocabulary KL(q || p) at the same prefixes.
    """
    advantage_N = -k1(logprobs_N, teacher_logprobs_N).detach()
    log_ratio_N = logprobs_N - old_logprobs_N.detach()
    ratio_N = log_ratio_N.clamp(max=math.log(ratio_cap)).exp()
    kept_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * advantage_N, kept_N * advantage_N)
    full_N = log_ratio_N.detach().exp()
    held_N = torch.where(advantage_N > 0, full_N > 1 + clip_high, (full_N < 1 - clip_low) | (full_N > ratio_cap))
    return Clipped(loss_N, full_N, (held_N & (advantage_N != 0)).to(loss_N.dtype))


def _full_vocabulary(
    of_logprobs: OfLogprobs,
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_head_WE: Tensor,
    temperature: float,
    chunk: int,
) -> Divergence:
    shared = min(head_VD.shape[0], teacher_head_WE.shape[0])
    teacher_head = teacher_head_WE.detach()[:shared]

    def rows(hidden: Tensor, head: Tensor, teacher_hidden: Tensor) -> tuple[Tensor, ...]:
        scores = logits(hidden, head[:shared], temperature)
        p = F.log_softmax(logits(teacher_hidden, teacher_head, temperature), dim=-1)
        with torch.no_grad():
            extra = torch.zeros_like(scores[:, 0])
            if shared < head.shape[0]:
                added = logits(hidden, head[shared:], temperature)
                extra = (added.logsumexp(-1) - scores.logsumexp(-1)).sigmoid()
        return _measured(of_logprobs, F.log_softmax(scores, dim=-1), p, extra)

    return Divergence(*by_chunks(rows, hidden_ND, head_VD, teacher_hidden_NE, chunk=chunk))


def _listed(q_nV: Tensor, ids_nK: Tensor, p_nK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The student's log-probabilities of the listed ids [n, K], of all others together [n], and which are present."""
    present = p_nK > -math.inf
    vocabulary = q_nV.shape[-1]
    listed = torch.zeros(len(q_nV), vocabulary + 1, dtype=torch.bool, device=q_nV.device)
    listed.scatter_(1, torch.where(present, ids_nK, vocabulary), True)  # absent entries mark a column that is cut off
    tail_n = q_nV.masked_fill(listed[:, :vocabulary], NEVER).logsumexp(-1)
    return torch.where(present, q_nV.gather(-1, ids_nK), NEVER), tail_n, present


def _measured(of_logprobs: OfLogprobs, q: Tensor, p: Tensor, extra_mass: Tensor) -> tuple[Tensor, ...]:
    nats = of_logprobs(q, p)
    same = of_logprobs is reverse_kl_from_logprobs
    reverse = nats.detach() if same else reverse_kl_from_logprobs(q.detach(), p)
    return nats, reverse, extra_mass.detach()
