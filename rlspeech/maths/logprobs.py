"""Log-probabilities of tokens straight from hidden states, the output projection applied a chunk of tokens at a time.

[N, V] is never held. Where the projection is frozen, the gradient of a chunk is taken while its logits are at hand;
where it learns, the chunk is computed again in the backward pass.

Shape letters: N tokens, V vocabulary, D hidden.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 256  # tokens projected at once: a few tensors [CHUNK, V] are alive

Rows = Callable[..., tuple[Tensor, ...]]


def token_logprobs(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """log softmax(hidden @ head.T / temperature)[target] in nats [N], float32 or better; empty N gives an empty tensor.

    The gradient flows to `hidden_ND`, and to `head_VD` where it requires one.
    """

    def rows(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return (-F.cross_entropy(logits(hidden, head, temperature), targets, reduction="none"),)

    return by_chunks(rows, hidden_ND, head_VD, targets_N, chunk=chunk)[0]


def logprobs_and_entropy(
    hidden_ND: Tensor, head_VD: Tensor, targets_N: Tensor, *, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` and, from the same logits, the entropy of each distribution in nats [N], detached."""

    def rows(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logprobs = F.log_softmax(logits(hidden, head, temperature), dim=-1)
        entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropy

    logprobs_N, entropy_N = by_chunks(rows, hidden_ND, head_VD, targets_N, chunk=chunk)
    return logprobs_N, entropy_N


def smoothed_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    targets_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor, Tensor]:
    """(1 - s) (-log q[y]) + s mean_v (-log q[v]) in nats [N]; then, detached, -log q[y] [N] and argmax == y [N]."""

    def rows(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        scores = logits(hidden, head, temperature)
        loss = F.cross_entropy(scores, targets, reduction="none", label_smoothing=label_smoothing)
        with torch.no_grad():
            nll = loss if label_smoothing == 0 else F.cross_entropy(scores, targets, reduction="none")
            return loss, nll.detach(), (scores.argmax(-1) == targets).to(loss.dtype)

    loss_N, nll_N, correct_N = by_chunks(rows, hidden_ND, head_VD, targets_N, chunk=chunk)
    return loss_N, nll_N, correct_N


def logits(hidden_ND: Tensor, head_VD: Tensor, temperature: float = 1.0) -> Tensor:
    """hidden @ head.T / temperature [N, V], float32 or better. The product itself is in the dtype of the head."""
    scores_NV = F.linear(hidden_ND.to(head_VD.dtype), head_VD)
    scores_NV = scores_NV.to(torch.promote_types(scores_NV.dtype, torch.float32))
    return scores_NV if temperature == 1.0 else scores_NV / temperature


def by_chunks(
    rows: Rows, hidden_ND: Tensor, head_VD: Tensor, *others_N: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, ...]:
    """`rows(hidden, head, *others)` over chunks of the first dimension of `hidden_ND` and `others_N`, concatenated.

    `rows` gives tensors [n]. The first carries the gradient to hidden and head; the others come back detached.
    Row n of an output must depend on row n of the inputs alone.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad):
        return _Chunked.apply(rows, chunk, hidden_ND, head_VD, *others_N)  # type: ignore[no-any-return]
    with torch.no_grad():
        pieces = [rows(hidden, head_VD, *others) for hidden, *others in _split(chunk, hidden_ND, *others_N)]
    return _cat(pieces)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Rows, chunk: int, hidden: Tensor, head: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        ctx.rows, ctx.chunk, ctx.head_learns, ctx.n_others = rows, chunk, ctx.needs_input_grad[3], len(others)
        pieces, grads = [], []
        for part, *rest in _split(chunk, hidden, *others):
            if ctx.head_learns:
                pieces.append(rows(part, head, *rest))
                continue
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                outputs = rows(leaf, head, *rest)
                grads.append(torch.autograd.grad(outputs[0].sum(), leaf)[0])
            pieces.append(tuple(output.detach() for output in outputs))
        if ctx.head_learns:
            ctx.save_for_backward(hidden, head, *others)
        else:
            ctx.save_for_backward(torch.cat(grads))
        outputs = _cat(pieces)
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads_N: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.head_learns:
            (grad_ND,) = ctx.saved_tensors  # of the sum of the rows: each row scales by its own upstream gradient
            return None, None, (grad_ND * grads_N[0][:, None]).to(grad_ND.dtype), None, *(None,) * ctx.n_others
        hidden, head, *others = ctx.saved_tensors
        head_leaf = head.detach().requires_grad_()
        head_grad = torch.zeros_like(head, dtype=torch.promote_types(head.dtype, torch.float32))
        hidden_grads = []
        for part, upstream, *rest in _split(ctx.chunk, hidden, grads_N[0], *others):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                output = ctx.rows(leaf, head_leaf, *rest)[0]
            grad_hidden, grad_head = torch.autograd.grad(output, (leaf, head_leaf), upstream)
            hidden_grads.append(grad_hidden)
            head_grad += grad_head
        return None, None, torch.cat(hidden_grads), head_grad.to(head.dtype), *(None,) * ctx.n_others


def _split(chunk: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Chunks of the first dimension side by side; one empty chunk where there are no rows."""
    return list(zip(*(tensor.detach().split(chunk) for tensor in tensors), strict=True))


def _cat(pieces: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*pieces, strict=True))
