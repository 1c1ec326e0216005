"""Log-probabilities of tokens straight from hidden states, the output projection applied a chunk of tokens at a time.

[N, V] is never held, and no graph is: what is computed of a chunk's logits comes with its gradient as a formula. Where
the projection is frozen, or where it is known in advance how much each token counts, the gradient of a chunk is taken
while its logits are at hand; elsewhere the chunk is computed again in the backward pass.

Shape letters: N tokens (n of a chunk), V vocabulary, W <= V of its columns, D hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 192  # tokens projected at once, at most: about three tensors [CHUNK, V] are alive
PROPORTIONAL = 1e-5  # relative difference up to which a gradient from above counts as the one that was announced

Gradient = Callable[[], Tensor]
Rows = Callable[..., tuple[tuple[Tensor, ...], Gradient]]


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """log softmax(hidden @ head.T / temperature)[target] in nats [N], float32 or better; empty N gives an empty tensor.

    The gradient flows to `hidden_ND`, and to `head_VD` where it requires one.
    """

    def rows(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[tuple[Tensor, ...], Gradient]:
        q_nV = F.log_softmax(logits(hidden, head, temperature), dim=-1)
        return (_at(q_nV, targets),), lambda: _one_minus_q(q_nV, targets)

    return by_chunks(rows, hidden_ND, head_VD, targets_N, temperature=temperature, chunk=chunk)[0]


def logprobs_and_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` and, from the same logits, the entropy of each distribution in nats [N], detached."""

    def rows(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[tuple[Tensor, ...], Gradient]:
        q_nV = F.log_softmax(logits(hidden, head, temperature), dim=-1)
        entropy = -(q_nV.exp().mul_(q_nV)).sum(-1)
        return (_at(q_nV, targets), entropy), lambda: _one_minus_q(q_nV, targets)

    logprobs_N, entropy_N = by_chunks(rows, hidden_ND, head_VD, targets_N, temperature=temperature, chunk=chunk)
    return logprobs_N, entropy_N


def smoothed_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - s) (-log q[y]) + s mean_v (-log q[v]) in nats [N]; then, detached, -log q[y] [N] and argmax == y [N].

    `weights_N` as in `by_chunks`.
    """

    def rows(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[tuple[Tensor, ...], Gradient]:
        q_nV = F.log_softmax(logits(hidden, head, temperature), dim=-1)
        nll = -_at(q_nV, targets)
        loss = nll if label_smoothing == 0 else (1 - label_smoothing) * nll - label_smoothing * q_nV.mean(-1)
        correct = (q_nV.argmax(-1) == targets).to(nll.dtype)

        def gradient() -> Tensor:
            smooth = label_smoothing / q_nV.shape[-1]
            grad_nV = q_nV.exp_() if label_smoothing == 0 else q_nV.exp_().sub_(smooth)
            return grad_nV.scatter_add_(-1, targets[:, None], torch.full_like(nll, label_smoothing - 1)[:, None])

        return (loss, nll, correct), gradient

    loss_N, nll_N, correct_N = by_chunks(
        rows, hidden_ND, head_VD, targets_N, temperature=temperature, weights_N=weights_N, chunk=chunk
    )
    return loss_N, nll_N, correct_N


def logits(hidden_ND: Tensor, head_VD: Tensor, temperature: float = 1.0) -> Tensor:
    """hidden @ head.T / temperature [N, V], float32 or better. The product itself is in the dtype of the head."""
    scores_NV = F.linear(hidden_ND.to(head_VD.dtype), head_VD)
    scores_NV = scores_NV.to(torch.promote_types(scores_NV.dtype, torch.float32))
    return scores_NV if temperature == 1.0 else scores_NV / temperature


def by_chunks(
    rows: Rows,
    hidden_ND: Tensor,
    head_VD: Tensor,
    *others_N: Tensor,
    temperature: float = 1.0,
    weights_N: Tensor | None = None,
    chunk: int = CHUNK,
) -> tuple[Tensor, ...]:
    """`rows(hidden, head, *others)` over chunks of the first dimension of `hidden_ND` and `others_N`, concatenated.

    `rows` gives tensors [n], and a function, called once at most, that gives the gradient of the first of them with
    respect to the first W columns of `logits(hidden, head, temperature)` [n, W]; the other columns have none. Row n of
    an output must depend on row n of the inputs alone. The first output carries the gradient to hidden and head, the
    others come back detached.

    `weights_N` is for a head that learns: how much each row is going to count, up to a common factor. Where the
    gradient that arrives at the first output is proportional to it, nothing is computed twice. Otherwise, and without
    it, the backward pass projects again: the result is the same.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad):
        return _Chunked.apply(rows, chunk, temperature, weights_N, hidden_ND, head_VD, *others_N)  # type: ignore[no-any-return]
    with torch.no_grad():
        pieces = [rows(hidden, head_VD, *others)[0] for hidden, *others in _split(chunk, hidden_ND, *others_N)]
    return _cat(pieces)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Rows,
        chunk: int,
        temperature: float,
        weights: Tensor | None,
        hidden: Tensor,
        head: Tensor,
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.rows, ctx.chunk, ctx.temperature, ctx.n_others = rows, chunk, temperature, len(others)
        ctx.head_learns = ctx.needs_input_grad[5]
        announced = weights if ctx.head_learns else None
        if ctx.head_learns and weights is None:
            pieces = [rows(part, head, *rest)[0] for part, *rest in _split(chunk, hidden, *others)]
            hidden_grad = head_grad = None
        else:
            head_grad = _zeros_like(head) if ctx.head_learns else None
            pieces, hidden_grad = _pull_back(rows, chunk, hidden, head, others, announced, head_grad)
        ctx.save_for_backward(hidden_grad, head_grad, announced, *((hidden, head, *others) if ctx.head_learns else ()))
        outputs = _cat(pieces)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, head_grad, announced, *inputs = ctx.saved_tensors
        upstream_N = grads_N[0] / ctx.temperature
        if ctx.head_learns:
            factor = None if announced is None else _factor(upstream_N, announced)
            if factor is not None:
                head_grad = head_grad * factor
            else:
                hidden, head, *others = inputs
                head_grad = _zeros_like(head)
                _, hidden_grad = _pull_back(ctx.rows, ctx.chunk, hidden, head, others, upstream_N, head_grad)
            head_grad = head_grad.to(inputs[1].dtype)
        hidden_grad = (hidden_grad * upstream_N[:, None]).to(hidden_grad.dtype)
        return None, None, None, None, hidden_grad, head_grad, *(None,) * ctx.n_others


def _pull_back(
    rows: Rows,
    chunk: int,
    hidden_ND: Tensor,
    head_VD: Tensor,
    others_N: Any,
    weights_N: Tensor | None,
    head_grad_VD: Tensor | None,
) -> tuple[list[tuple[Tensor, ...]], Tensor]:
    """Outputs of every chunk, and the gradient of each row's first output to its own hidden state [N, D].

    That to the head, summed over the rows times their weights, is added to `head_grad_VD`. None of the two is divided
    by the temperature.
    """

    hidden_grad_ND = torch.empty_like(hidden_ND)
    counted_N = hidden_ND.new_ones(len(hidden_ND)) if weights_N is None else weights_N

    def one(hidden: Tensor, hidden_grad: Tensor, weights: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        outputs, gradient = rows(hidden, head_VD, *others)
        grad_nW = gradient().to(head_VD.dtype)
        width = grad_nW.shape[1]
        hidden_grad.copy_(grad_nW @ head_VD[:width])
        if head_grad_VD is not None:
            weighted = (hidden * weights[:, None]).to(head_VD.dtype)
            if head_grad_VD.dtype == head_VD.dtype:
                head_grad_VD[:width].addmm_(grad_nW.T, weighted)
            else:
                head_grad_VD[:width] += grad_nW.T @ weighted
        return outputs

    # A call for each chunk, so that nothing of one is alive during the next.
    return [one(*part) for part in _split(chunk, hidden_ND, hidden_grad_ND, counted_N, *others_N)], hidden_grad_ND


def _factor(upstream_N: Tensor, announced_N: Tensor) -> Tensor | None:
    """c where upstream == c * announced, else None; None where there are no rows, and any c would do."""
    if not len(announced_N):
        return None
    announced_N = announced_N.to(upstream_N.dtype)
    factor = (upstream_N @ announced_N) / (announced_N @ announced_N)
    same = torch.allclose(upstream_N, factor * announced_N, rtol=PROPORTIONAL, atol=0)
    return factor if same else None


def _at(logprobs_nV: Tensor, targets_n: Tensor) -> Tensor:
    return logprobs_nV.gather(-1, targets_n[:, None])[:, 0]


def _one_minus_q(logprobs_nV: Tensor, targets_n: Tensor) -> Tensor:
    """Gradient of log q[target] to the logits: 1 at the target, minus q. Overwrites its argument."""
    grad_nV = logprobs_nV.exp_().neg_()
    return grad_nV.scatter_add_(-1, targets_n[:, None], torch.ones_like(grad_nV[:, :1]))


def _zeros_like(head_VD: Tensor) -> Tensor:
    return torch.zeros_like(head_VD, dtype=torch.promote_types(head_VD.dtype, torch.float32))


def _split(chunk: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Chunks of nearly equal size of the first dimension, side by side; one empty chunk where there are no rows.

    Equal, because a C library's allocator gives small tensors back to the system later than large ones.
    """
    count = max(1, -(-len(tensors[0]) // chunk))
    return list(zip(*(tensor.detach().tensor_split(count) for tensor in tensors), strict=True))


def _cat(pieces: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))
