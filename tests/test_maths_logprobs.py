import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlspeech.maths.distill import (
    forward_kl_from_logprobs,
    full_vocabulary,
    jsd_from_logprobs,
    reverse_kl_from_logprobs,
    topk_renormalised,
    topk_tail,
)
from rlspeech.maths.logprobs import logprobs_and_entropy, smoothed_cross_entropy, token_logprobs

N, V, D = 10, 7, 4


def inputs(*, head_learns: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(V, D, generator=generator, dtype=dtype).requires_grad_(head_learns)
    return hidden, head, torch.randint(V, (N,), generator=generator)


def test_a_log_probability_worked_by_hand():
    # logits (log 3, 0) / 1: probabilities 3/4 and 1/4; at temperature 1/2 the odds are squared: 9/10 and 1/10
    hidden, head = torch.tensor([[math.log(3.0)]] * 2), torch.tensor([[1.0], [0.0]])
    targets = torch.tensor([0, 1])
    assert token_logprobs(hidden, head, targets).exp().tolist() == pytest.approx([0.75, 0.25])
    assert token_logprobs(hidden, head, targets, temperature=0.5).exp().tolist() == pytest.approx([0.9, 0.1])


def test_the_entropy_of_a_uniform_distribution_is_the_log_of_its_size():
    logprobs, entropy = logprobs_and_entropy(torch.zeros(2, D), torch.zeros(V, D), torch.tensor([0, 3]))
    assert entropy.tolist() == pytest.approx([math.log(V)] * 2)
    assert logprobs.tolist() == pytest.approx([-math.log(V)] * 2)
    assert not entropy.requires_grad


@pytest.mark.parametrize("head_learns", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
def test_values_and_gradients_are_those_of_the_plain_definition(chunk: int, head_learns: bool):
    hidden, head, targets = inputs(head_learns=head_learns)
    learned = [hidden, head] if head_learns else [hidden]
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    plain = (hidden @ head.T / 0.7).log_softmax(-1)
    expected = plain[torch.arange(N), targets]
    chunked = token_logprobs(hidden, head, targets, temperature=0.7, chunk=chunk)
    torch.testing.assert_close(chunked, expected)
    torch.testing.assert_close(
        torch.autograd.grad(chunked @ upstream, learned), torch.autograd.grad(expected @ upstream, learned)
    )
    both, entropy = logprobs_and_entropy(hidden, head, targets, temperature=0.7, chunk=chunk)
    torch.testing.assert_close(both, chunked)
    torch.testing.assert_close(entropy, -(plain.exp() * plain).sum(-1).detach())


@pytest.mark.parametrize("head_learns", [False, True])
def test_autograd_agrees_with_finite_differences(head_learns: bool):
    hidden, head, targets = inputs(head_learns=head_learns)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, chunk=3), (hidden, head))


def test_a_frozen_head_gets_no_gradient_and_no_grad_mode_builds_no_graph():
    hidden, head, targets = inputs()
    token_logprobs(hidden, head, targets).sum().backward()
    assert head.grad is None
    with torch.no_grad():
        assert not token_logprobs(hidden, head, targets).requires_grad


def test_the_log_softmax_of_bfloat16_states_is_float32():
    hidden, head, targets = inputs(dtype=torch.bfloat16, head_learns=True)
    logprobs = token_logprobs(hidden, head, targets)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert hidden.grad.dtype == head.grad.dtype == torch.bfloat16


def test_no_tokens_give_no_values_and_a_zero_gradient():
    for head_learns in (False, True):
        hidden, head, targets = inputs(head_learns=head_learns)
        empty = token_logprobs(hidden[:0], head, targets[:0])
        assert empty.shape == (0,)
        empty.sum().backward()
        assert hidden.grad is not None
        assert hidden.grad.abs().sum() == 0


def test_no_tokens_give_a_zero_gradient_to_a_head_whose_weights_were_announced():
    hidden, head, targets = inputs(head_learns=True)
    loss, _, _ = smoothed_cross_entropy(hidden[:0], head, targets[:0], weights_N=torch.ones(0))
    loss.sum().backward()
    assert head.grad is not None
    assert head.grad.abs().sum() == 0


def test_label_smoothing_worked_by_hand():
    # probabilities 3/4, 1/4; target 0; s = 0.2: 0.8 (-log 3/4) + 0.2 (-log 3/4 - log 1/4) / 2
    hidden, head = torch.tensor([[math.log(3.0)]]), torch.tensor([[1.0], [0.0]])
    loss, nll, correct = smoothed_cross_entropy(hidden, head, torch.tensor([0]), label_smoothing=0.2)
    assert loss.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25))
    assert nll.item() == pytest.approx(-math.log(0.75))
    assert correct.tolist() == [1.0]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("head_learns", [False, True])
def test_the_gradient_of_a_smoothed_cross_entropy_is_that_of_the_definition(label_smoothing: float, head_learns: bool):
    hidden, head, targets = inputs(head_learns=head_learns)
    learned = [hidden, head] if head_learns else [hidden]
    got, nll, correct = smoothed_cross_entropy(
        hidden, head, targets, label_smoothing=label_smoothing, temperature=0.7, chunk=3
    )
    scores = hidden @ head.T / 0.7
    expected = F.cross_entropy(scores, targets, reduction="none", label_smoothing=label_smoothing)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(nll, F.cross_entropy(scores, targets, reduction="none").detach())
    torch.testing.assert_close(correct, (scores.argmax(-1) == targets).double())
    torch.testing.assert_close(
        torch.autograd.grad(got.square().sum(), learned), torch.autograd.grad(expected.square().sum(), learned)
    )


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("mm", "addmm_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("announced", "products"),
    [
        ("nothing", 4),  # of one chunk: logits; in the backward pass logits, to hidden, to head
        ("what comes", 3),
        ("a multiple", 3),
        ("another", 6),  # in vain
        ("zeros", 6),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_announced_weights_save_a_projection_and_change_nothing(announced: str, products: int, dtype: torch.dtype):
    hidden, head, targets = inputs(head_learns=True, dtype=dtype)
    upstream = torch.linspace(0, 2, N)
    weights = {
        "nothing": None,
        "what comes": upstream,
        "a multiple": -17 * upstream,
        "another": upstream.flip(0),
        "zeros": torch.zeros(N),
    }[announced]

    def gradients(weights_N: Tensor | None) -> tuple[Tensor, ...]:
        loss = smoothed_cross_entropy(hidden, head, targets, temperature=0.7, weights_N=weights_N, chunk=N)[0]
        return torch.autograd.grad((loss * upstream).sum(), [hidden, head])

    with Products() as counted:
        found = gradients(weights)
    assert counted.count == products
    near = 2e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(found, gradients(None), rtol=near, atol=near)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, list | tuple) else [result]
        self.numel = max([self.numel, *(output.numel() for output in outputs if isinstance(output, Tensor))])
        return result


@pytest.mark.parametrize("head_learns", [False, True])
def test_no_tensor_of_tokens_by_vocabulary_is_ever_made(head_learns: bool):
    tokens, vocabulary, chunk = 64, 500, 8
    hidden = torch.randn(tokens, D, requires_grad=True)
    head = torch.randn(vocabulary, D, requires_grad=head_learns)
    teacher = torch.randn(tokens, 3), torch.randn(vocabulary - 1, 3)
    targets = torch.randint(vocabulary, (tokens,))
    ids = torch.arange(5).expand(tokens, 5)
    listed = torch.full((tokens, 5), math.log(0.1))
    calls = [
        lambda: token_logprobs(hidden, head, targets, chunk=chunk),
        lambda: logprobs_and_entropy(hidden, head, targets, chunk=chunk)[0],
        lambda: smoothed_cross_entropy(hidden, head, targets, label_smoothing=0.1, chunk=chunk)[0],
        *(
            partial(lambda between: full_vocabulary(hidden, head, *teacher, between=between, chunk=chunk).nats, between)
            for between in (reverse_kl_from_logprobs, forward_kl_from_logprobs, partial(jsd_from_logprobs, beta=0.5))
        ),
        lambda: topk_tail(hidden, head, ids, listed, chunk=chunk).nats,
        lambda: topk_renormalised(hidden, head, ids, listed, chunk=chunk).nats,
    ]
    for call in calls:
        with Largest() as largest:
            call().sum().backward()
        assert chunk * (vocabulary - 1) <= largest.numel <= chunk * (vocabulary + 1)


def test_the_witness_of_allocations_sees_a_plain_log_softmax():
    with Largest() as largest:
        torch.randn(64, D).matmul(torch.randn(D, 500)).log_softmax(-1)
    assert largest.numel == 64 * 500
