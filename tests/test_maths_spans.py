"""Spans against models small enough to write down every reply."""

import math
import random
from dataclasses import replace
from itertools import product

import pytest
import torch

from rlspeech.losses import forward_kl, jsd, k1, reverse_kl
from rlspeech.maths.distill import reverse_kl_from_logprobs
from rlspeech.maths.divergence import divergence
from rlspeech.maths.spans import shared, span_k1
from rlspeech.types import Policy, TokenBatch

LOSSES = [reverse_kl.Loss(), forward_kl.Loss(), jsd.Loss(), k1.Loss()]


def batch_of(targets: torch.Tensor, **more: torch.Tensor) -> TokenBatch:
    count = len(targets)
    none = torch.zeros(1, 1, dtype=torch.int64)
    at, rollout = torch.arange(count), torch.zeros(count, dtype=torch.int64)
    given = {"weights": torch.ones(count), **more}
    return TokenBatch(none, none, none, None, at=at, targets=targets, rollout=rollout, **given)


def test_a_span_has_the_k1_of_its_tokens_together_and_each_bears_all_of_it() -> None:
    ours, theirs = torch.tensor([-1.0, -2.0, -3.0, -9.0]), torch.tensor([-0.5, -0.5, -4.0, 0.0])
    span = torch.tensor([0, 0, 1, -1])
    k1_N = span_k1(ours, theirs, span)
    assert k1_N.tolist() == [-2.0, -2.0, 1.0, 0.0]
    assert shared(k1_N, span).tolist() == [-1.0, -1.0, 1.0, 0.0]  # sums over tokens are sums over spans


def models(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the next token after each token (the last row: at the beginning), of student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64).log_softmax(-1)
    return ours, theirs


# The student writes a, b, ab; the teacher reads a, b, ba, the longest first. The last token of each ends the turn.
OURS, THEIRS, END = ("a", "b", "ab"), ("a", "b", "ba"), 3


def reread(text: str) -> list[int]:
    ids = []
    while text:
        piece = max((piece for piece in THEIRS if text.startswith(piece)), key=len)
        ids.append(THEIRS.index(piece))
        text = text[len(piece) :]
    return ids


def logprobs(model: torch.Tensor, ids: list[int]) -> list[float]:
    return [model[before, after].item() for before, after in zip([4, *ids[:-1]], ids, strict=True)]


def spans(ours: list[int], theirs: list[int]) -> tuple[list[int], list[int]]:
    """Span of each token on both sides: written down plainly, a byte at a time."""
    ends = [[sum(len(vocabulary[i]) if i != END else 1 for i in ids[: n + 1]) for n in range(len(ids))]
            for ids, vocabulary in ((ours, OURS), (theirs, THEIRS))]  # fmt: skip
    cuts = sorted(set(ends[0]) & set(ends[1]))
    first, second = ([sum(cut < end for cut in cuts) for end in side] for side in ends)
    return first, second


def measured(reply: list[int]) -> float:
    """The loss's own k1 of one reply, summed over its spans."""
    ours, theirs = models()
    reading = [*reread("".join(OURS[i] for i in reply if i != END)), *[END] * (reply[-1] == END)]
    mine, other = spans(reply, reading)
    span, q = torch.tensor(mine), torch.tensor(logprobs(ours, reply), dtype=torch.float64)
    p = torch.zeros(max(mine) + 1, dtype=torch.float64).index_add_(
        0, torch.tensor(other), torch.tensor(logprobs(theirs, reading), dtype=torch.float64)
    )
    share = p[span] / span.bincount()[span]
    return float(shared(span_k1(q, share, span), span).sum())


def replies(longest: int) -> list[list[int]]:
    """Every reply that ends within so many tokens, and every one that is cut there."""
    found = []
    for length in range(1, longest + 1):
        found += [[*body, END] for body in product(range(3), repeat=length - 1)]
    return found + [list(body) for body in product(range(3), repeat=longest)]


def test_the_mean_of_k1_over_samples_is_the_divergence_of_student_and_teacher() -> None:
    """All 81 replies of up to 4 tokens, written down; then 4000 that are drawn."""
    ours, theirs = models()
    exact = 0.0
    for reply in replies(4):
        reading = [*reread("".join(OURS[i] for i in reply if i != END)), *[END] * (reply[-1] == END)]
        q, p = sum(logprobs(ours, reply)), sum(logprobs(theirs, reading))
        exact += math.exp(q) * (q - p)
    assert sum(math.exp(sum(logprobs(ours, reply))) for reply in replies(4)) == pytest.approx(1)
    assert sum(math.exp(sum(logprobs(ours, r))) * measured(r) for r in replies(4)) == pytest.approx(exact)
    draws = random.Random(1).choices(replies(4), [math.exp(sum(logprobs(ours, reply))) for reply in replies(4)], k=4000)
    values = torch.tensor([measured(reply) for reply in draws])
    assert values.mean().item() == pytest.approx(exact, abs=4 * values.std().item() / math.sqrt(len(draws)))
    assert exact > 8 * values.std().item() / math.sqrt(len(draws))  # so that the test can fail


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_gradient_of_a_span_is_that_of_the_divergence_over_whole_spans(loss) -> None:
    """Spans of two tokens: every pair in turn, weighted by the probability of sampling it."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(
        4, 6, generator=generator, dtype=torch.float64, requires_grad=True
    )  # at the start, after 0, 1, 2
    head = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    p = torch.randn(9, generator=generator, dtype=torch.float64).log_softmax(-1)
    q = (hidden @ head.T).log_softmax(-1)
    pairs = [(first, second) for first in range(3) for second in range(3)]
    exact = sum((q[0, i] + q[1 + i, j]).exp() * (q[0, i] + q[1 + i, j] - p[3 * i + j]) for i, j in pairs)
    expected = torch.autograd.grad(exact, hidden, retain_graph=True)[0]
    got = torch.zeros_like(hidden)
    for (i, j), teacher in zip(pairs, p, strict=True):
        policy = Policy(hidden[[0, 1 + i]], head)
        old = torch.stack([q[0, i], q[1 + i, j]]).detach()
        batch = batch_of(
            torch.tensor([i, j]),
            sampler_logprobs=old,
            teacher_logprobs=(teacher / 2).repeat(2),
            span=torch.zeros(2, dtype=torch.int64),
            teacher_topk_ids=torch.zeros(2, 1, dtype=torch.int64),
            teacher_topk_logprobs=torch.full((2, 1), -math.inf),
        )
        loss_N, metrics = loss(policy, batch)
        got += old.sum().exp() * torch.autograd.grad(loss_N.sum(), hidden, retain_graph=True)[0]
        named = metrics.get("kl_nats", metrics.get("k1_nats"))
        assert named.sum().item() == pytest.approx((old.sum() - teacher).item())
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def listed(count: int = 5) -> tuple[Policy, TokenBatch]:
    generator = torch.Generator().manual_seed(5)
    hidden, head = torch.randn(count, 4, generator=generator), torch.randn(7, 4, generator=generator)
    values, ids = torch.randn(count, 7, generator=generator).log_softmax(-1).topk(3)
    targets = torch.arange(count) % 7
    q = (hidden @ head.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    batch = batch_of(
        targets, sampler_logprobs=q, teacher_logprobs=values[:, 0], teacher_topk_ids=ids, teacher_topk_logprobs=values
    )
    return Policy(hidden.requires_grad_(), head), batch


@pytest.mark.parametrize("loss", LOSSES)
def test_where_every_token_is_a_span_the_loss_is_that_of_one_tokenizer(loss) -> None:
    policy, batch = listed()
    with_spans = replace(batch, span=torch.arange(5))
    (plain, _), (spanned, _) = loss(policy, batch), loss(policy, with_spans)
    torch.testing.assert_close(spanned, plain)
    weights = torch.linspace(1, 2, 5)
    grads = [torch.autograd.grad((v * weights).sum(), policy.hidden, retain_graph=True)[0] for v in (plain, spanned)]
    torch.testing.assert_close(*grads)


def test_lists_and_spans_are_told_apart_token_by_token() -> None:
    policy, batch = listed()
    values = batch.teacher_topk_logprobs.clone()
    values[1:3] = -math.inf  # tokens 1 and 2 are one span; token 4 is not read
    values[4] = -math.inf
    spanned = replace(batch, span=torch.tensor([0, 1, 1, 2, -1]), teacher_topk_logprobs=values)
    found = divergence(policy, spanned, reverse_kl_from_logprobs, tail="bucket")
    plain = divergence(policy, batch, reverse_kl_from_logprobs, tail="bucket")
    torch.testing.assert_close(found.nats[[0, 3]], plain.nats[[0, 3]])
    k1_ = (batch.sampler_logprobs - batch.teacher_logprobs)[1:3].sum()
    torch.testing.assert_close(found.nats[1:3].sum(), k1_)
    assert found.nats[4] == 0
    assert torch.autograd.grad(found.nats[4], policy.hidden, retain_graph=True)[0].abs().sum() == 0
    unsampled = replace(spanned, sampler_logprobs=torch.full((5,), math.nan))
    assert divergence(policy, unsampled, reverse_kl_from_logprobs, tail="bucket").nats[1:3].tolist() == [0, 0]
