"""Divergences between a student q and a teacher p at each token, in nats.

Full vocabulary: from hidden states and output projections of both, a chunk of tokens at a time. Top-K: from the
teacher's list. Sampled: from the log-probabilities of the tokens as written. The gradient goes to the student only.
With teacher == student every one is 0 (the sampled one: in the mean).

Shape letters: N tokens (n of a chunk), V the student's vocabulary, W the teacher's, K teacher's top tokens, D and E
hidden sizes, O outcomes: a vocabulary, or the tokens of a list and perhaps a bucket for the rest.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlspeech.maths.logprobs import CHUNK, Gradient, by_chunks, logits

NEVER = -1e4  # log-probability that stands for zero: finite, so that 0 * (NEVER - x) is 0 and not NaN
TAIL_MIN = 1e-6  # least probability of a teacher's tail: below it 1 - sum(top-K) is float32 rounding

Tail = Literal["bucket", "renormalised"]
Between = Callable[[Tensor, Tensor], tuple[Tensor, Gradient]]  # as reverse_kl_from_logprobs; may overwrite the second


class Divergence(NamedTuple):
    nats: Tensor  # [N] the divergence asked for; carries the gradient to the student
    reverse_kl: Tensor  # [N] KL(q || p) between the same two distributions, detached
    extra_mass: Tensor  # [N] the student's probability outside the ids that are compared, detached


def reverse_kl_from_logprobs(q_NO: Tensor, p_NO: Tensor) -> tuple[Tensor, Gradient]:
    """KL(q || p) = sum_o q (log q - log p) [N] of finite log-probabilities (NEVER stands for zero).

    (GKD, arXiv 2306.13649; MiniLLM, arXiv 2306.08543.) The second value, called once at most, gives the gradient to the
    logits of q [N, O]: q (log q - log p - KL). Its rows sum to 0. `p_NO` is overwritten: of a whole vocabulary it is
    one of three tensors that fill the memory.
    """
    prob_NO = q_NO.exp()
    weighted_NO = torch.sub(q_NO, p_NO, out=p_NO).mul_(prob_NO)
    nats_N = weighted_NO.sum(-1)
    return nats_N, lambda: weighted_NO.addcmul_(prob_NO, nats_N[:, None], value=-1)


def forward_kl_from_logprobs(q_NO: Tensor, p_NO: Tensor) -> tuple[Tensor, Gradient]:
    """KL(p || q) = sum_o p (log p - log q) [N], as `reverse_kl_from_logprobs`. Gradient to the logits of q: q - p."""
    prob_NO = p_NO.exp()
    return (prob_NO * (p_NO - q_NO)).sum(-1), lambda: q_NO.exp().sub_(prob_NO)


def jsd_from_logprobs(q_NO: Tensor, p_NO: Tensor, *, beta: float) -> tuple[Tensor, Gradient]:
    """beta KL(p || m) + (1 - beta) KL(q || m) [N], m = beta p + (1 - beta) q, 0 < beta < 1 (arXiv 2306.13649, eq. 1).

    As `reverse_kl_from_logprobs`. The mixture is taken in log space. The gradient to the logits of q is that of the
    second term with m held fixed, (1 - beta) q (log q - log m - KL(q || m)): what m's motion adds cancels.
    """
    m_NO = torch.logaddexp(p_NO + math.log(beta), q_NO + math.log1p(-beta))
    to_p_N = (p_NO.exp() * (p_NO - m_NO)).sum(-1)
    to_q_N, gradient = reverse_kl_from_logprobs(q_NO, m_NO)
    return beta * to_p_N + (1 - beta) * to_q_N, lambda: gradient().mul_(1 - beta)


def full_vocabulary(
    hidden_ND: Tensor,
    head_VD: Tensor,
    teacher_hidden_NE: Tensor,
    teacher_head_WE: Tensor,
    *,
    between: Between = reverse_kl_from_logprobs,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    chunk: int = CHUNK,
) -> Divergence:
    """A divergence over the ids that both sides have, the first min(V, W), both divided by `temperature`.

    A student with added tokens leaves their logits out, and `extra_mass` tells what probability they had. `weights_N`
    and `chunk` as in `by_chunks`.
    """
    shared = min(head_VD.shape[0], teacher_head_WE.shape[0])
    teacher_head = teacher_head_WE.detach()[:shared]

    def rows(hidden: Tensor, head: Tensor, teacher_hidden: Tensor) -> tuple[tuple[Tensor, ...], Gradient]:
        q_nO, normaliser_n = _log_softmax(logits(hidden, head[:shared], temperature))
        p_nO, _ = _log_softmax(logits(teacher_hidden, teacher_head, temperature))
        added_n = logits(hidden, head[shared:], temperature).logsumexp(-1)  # -inf where none are added
        return _measured(between, q_nO, p_nO.to(q_nO.dtype), (added_n - normaliser_n).sigmoid())

    options = {"temperature": temperature, "weights_N": weights_N, "chunk": chunk}
    return Divergence(*by_chunks(rows, hidden_ND, head_VD, teacher_hidden_NE, **options))


def topk_tail(
    hidden_ND: Tensor,
    head_VD: Tensor,
    topk_ids_NK: Tensor,
    topk_logprobs_NK: Tensor,
    *,
    between: Between = reverse_kl_from_logprobs,
    temperature: float = 1.0,
    classes_V: Tensor | None = None,
    weights_N: Tensor | None = None,
    chunk: int = CHUNK,
) -> Divergence:
    """A divergence over K + 1 outcomes: the teacher's K tokens, and one bucket with the rest of each side's mass.

    It is exact with K = V, never above the full divergence and never lowered by a longer list (data processing
    inequality). An entry of -inf is absent: its id belongs to the bucket. The ids of a row are distinct. `temperature`
    is the student's; the list is taken as served. The teacher's bucket is at least TAIL_MIN, which may add some
    1e-5 nats; where a row lists all V ids there is no bucket. `extra_mass` is the student's mass in the bucket.
    `classes_V` names the class of each of the student's tokens by one of them: ids are then classes, and a class has
    the probability of its tokens together. `weights_N` and `chunk` as in `by_chunks`.
    """

    def rows(hidden: Tensor, head: Tensor, ids: Tensor, p_nK: Tensor) -> tuple[tuple[Tensor, ...], Gradient]:
        q_nV, spread = _classed(_log_softmax(logits(hidden, head, temperature))[0], classes_V)
        listed = _listed(q_nV, ids, p_nK)
        rest_n = (1 - listed.p.exp().sum(-1)).clamp(min=TAIL_MIN).log()
        rest_n = torch.where(listed.present.sum(-1) == head.shape[0], NEVER, rest_n)
        q_nO = torch.cat([listed.q, listed.tail[:, None]], dim=-1)
        outputs, gradient = _measured(between, q_nO, torch.cat([listed.p, rest_n[:, None]], dim=-1), listed.tail.exp())

        def to_logits() -> Tensor:
            grad_nO = gradient()  # an unlisted token has its share of what the bucket gets
            shares_nV = listed.others.sub_(listed.tail[:, None]).exp_()
            return spread(shares_nV.mul_(grad_nO[:, -1:]).scatter_add_(-1, ids, grad_nO[:, :-1]))

        return outputs, to_logits

    options = {"temperature": temperature, "weights_N": weights_N, "chunk": chunk}
    return Divergence(*by_chunks(rows, hidden_ND, head_VD, topk_ids_NK, topk_logprobs_NK, **options))


def topk_renormalised(
    hidden_ND: Tensor,
    head_VD: Tensor,
    topk_ids_NK: Tensor,
    topk_logprobs_NK: Tensor,
    *,
    between: Between = reverse_kl_from_logprobs,
    temperature: float = 1.0,
    classes_V: Tensor | None = None,
    weights_N: Tensor | None = None,
    chunk: int = CHUNK,
) -> Divergence:
    """A divergence between both sides renormalised on the teacher's K tokens; exact with K = V.

    Blind to what the student puts outside the list: `extra_mass` tells how much. Otherwise as `topk_tail`; a row
    with no entry present is 0.
    """

    def rows(hidden: Tensor, head: Tensor, ids: Tensor, p_nK: Tensor) -> tuple[tuple[Tensor, ...], Gradient]:
        q_nV, spread = _classed(_log_softmax(logits(hidden, head, temperature))[0], classes_V)
        listed = _listed(q_nV, ids, p_nK)
        q_nO, p_nO = F.log_softmax(listed.q, dim=-1), F.log_softmax(listed.p, dim=-1)
        outputs, gradient = _measured(between, q_nO, p_nO, listed.tail.exp())
        return outputs, lambda: spread(listed.others.zero_().scatter_add_(-1, ids, gradient()))

    options = {"temperature": temperature, "weights_N": weights_N, "chunk": chunk}
    return Divergence(*by_chunks(rows, hidden_ND, head_VD, topk_ids_NK, topk_logprobs_NK, **options))


class Clipped(NamedTuple):
    loss: Tensor  # [N] carries the gradient
    ratio: Tensor  # [N] q / q_old before the cap, detached
    clipped: Tensor  # [N] 1.0 where the clip or the cap has stopped the gradient


def k1_surrogate(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    k1_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    ratio_cap: float,
) -> Clipped:
    """Clipped policy gradient whose advantage is A = -stopgrad(k1): minimising it lowers KL(q || p).

    `k1_N` is `k1` of each token, or `spans.span_k1` where the teacher scores several tokens together.

    loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = q(y) / q_old(y). Where A < 0 that is unbounded in r,
    so r is first capped (dual clip, arXiv 1912.09729). With y ~ q_old and r inside the clip its mean gradient is that
    of the full-vocabulary KL(q || p) at the same prefixes.
    """
    advantage_N = -k1_N.detach()
    log_ratio_N = logprobs_N - old_logprobs_N.detach()
    ratio_N = log_ratio_N.clamp(max=math.log(ratio_cap)).exp()
    kept_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * advantage_N, kept_N * advantage_N)
    full_N = log_ratio_N.detach().exp()
    held_N = torch.where(advantage_N > 0, full_N > 1 + clip_high, (full_N < 1 - clip_low) | (full_N > ratio_cap))
    return Clipped(loss_N, full_N, (held_N & (advantage_N != 0)).to(loss_N.dtype))


def _log_softmax(scores_nO: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities, and what was taken off the scores of each row [n]."""
    logprobs_nO = F.log_softmax(scores_nO, dim=-1)
    return logprobs_nO, scores_nO[:, 0] - logprobs_nO[:, 0]


def _classed(q_nV: Tensor, classes_V: Tensor | None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Log-probabilities of classes at the tokens that name them, NEVER elsewhere; and what brings a gradient back.

    A class's logit is the logsumexp of its tokens' logits, so each token has its share of the gradient to it.
    """
    if classes_V is None:
        return q_nV, lambda grad_nV: grad_nV
    more = torch.arange(len(classes_V), q_nV.shape[-1], device=q_nV.device)  # of a padded projection
    classes_V = torch.cat([classes_V, more])
    sums_nV = torch.zeros_like(q_nV).index_add_(-1, classes_V, q_nV.exp()).log_().clamp_(min=NEVER)
    shares_nV = (q_nV - sums_nV[:, classes_V]).clamp_(max=0).exp_()
    return sums_nV, lambda grad_nV: shares_nV * grad_nV[:, classes_V]


class _Listed(NamedTuple):
    q: Tensor  # [n, K] the student's log-probabilities of the listed ids, NEVER where absent
    p: Tensor  # [n, K] the teacher's
    present: Tensor  # [n, K]
    tail: Tensor  # [n] the student's log-probability of all other ids together
    others: Tensor  # [n, V] of each of them, NEVER where listed


def _listed(q_nV: Tensor, ids_nK: Tensor, p_nK: Tensor) -> _Listed:
    present = p_nK > -math.inf
    vocabulary = q_nV.shape[-1]
    is_listed = torch.zeros(len(q_nV), vocabulary + 1, dtype=torch.bool, device=q_nV.device)
    is_listed.scatter_(1, torch.where(present, ids_nK, vocabulary), True)  # absent ones mark a column that is cut off
    q_nK = torch.where(present, q_nV.gather(-1, ids_nK), NEVER)
    p_nK = torch.where(present, p_nK.to(q_nV.dtype), NEVER)
    others_nV = q_nV.masked_fill_(is_listed[:, :vocabulary], NEVER)
    return _Listed(q_nK, p_nK, present, others_nV.logsumexp(-1), others_nV)


def _measured(
    between: Between, q_nO: Tensor, p_nO: Tensor, extra_mass_n: Tensor
) -> tuple[tuple[Tensor, ...], Gradient]:
    """The parts of a Divergence, and the gradient of the first to the logits of q. Overwrites `p_nO`."""
    nats_n, gradient = between(q_nO, p_nO)
    reverse_n = nats_n if between is reverse_kl_from_logprobs else reverse_kl_from_logprobs(q_nO, p_nO)[0]
    return (nats_n, reverse_n, extra_mass_n), gradient
