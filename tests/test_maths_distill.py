import math
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlspeech.maths.distill import (
    Divergence,
    forward_kl_from_logprobs,
    full_vocabulary,
    jsd_from_logprobs,
    k1_surrogate,
    reverse_kl_from_logprobs,
    topk_renormalised,
    topk_tail,
)

N, V, D, E = 6, 8, 5, 4
BETA = 0.3
Full = Callable[..., Divergence]

reverse_kl = partial(full_vocabulary, between=reverse_kl_from_logprobs)
forward_kl = partial(full_vocabulary, between=forward_kl_from_logprobs)


def jsd(*sides: Tensor, beta: float = 0.5, **options: float) -> Divergence:
    return full_vocabulary(*sides, between=partial(jsd_from_logprobs, beta=beta), **options)  # type: ignore[arg-type]


def plain_reverse(q: Tensor, p: Tensor) -> Tensor:
    return (q * (q / p).log()).sum(-1)


def plain_forward(q: Tensor, p: Tensor) -> Tensor:
    return plain_reverse(p, q)


def plain_jsd(q: Tensor, p: Tensor) -> Tensor:
    m = BETA * p + (1 - BETA) * q
    return BETA * plain_reverse(p, m) + (1 - BETA) * plain_reverse(q, m)


# name: our chunked form, our form on log-probabilities, the definition on probabilities
FORMS = {
    "reverse_kl": (reverse_kl, reverse_kl_from_logprobs, plain_reverse),
    "forward_kl": (forward_kl, forward_kl_from_logprobs, plain_forward),
    "jsd": (partial(jsd, beta=BETA), partial(jsd_from_logprobs, beta=BETA), plain_jsd),
}


def sides(*, extra: int = 0, head_learns: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and heads of a student with `extra` added tokens and of a teacher, float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(N, D), (V + extra, D), (N, E), (V, E)]
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return hidden.requires_grad_(), head.requires_grad_(head_learns), teacher_hidden, teacher_head


def test_divergences_worked_by_hand():
    q, p = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.75, 0.25]]).log()
    assert reverse_kl_from_logprobs(q, p.clone())[0].item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert forward_kl_from_logprobs(q, p.clone())[0].item() == pytest.approx(
        0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    )
    # beta = 1/2: m = (5/8, 3/8)
    to_p = 0.75 * math.log(6 / 5) + 0.25 * math.log(2 / 3)
    to_q = 0.5 * math.log(4 / 5) + 0.5 * math.log(4 / 3)
    assert jsd_from_logprobs(q, p, beta=0.5)[0].item() == pytest.approx((to_p + to_q) / 2)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("head_learns", [False, True])
def test_values_and_gradients_are_those_of_the_definition(name: str, chunk: int, head_learns: bool):
    full, _, plain = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides(head_learns=head_learns)
    learned = [hidden, head] if head_learns else [hidden]
    q = (hidden @ head.T / 0.8).softmax(-1)
    p = (teacher_hidden @ teacher_head.T / 0.8).softmax(-1)
    got = full(hidden, head, teacher_hidden, teacher_head, temperature=0.8, chunk=chunk)
    torch.testing.assert_close(got.nats, plain(q, p))
    torch.testing.assert_close(got.reverse_kl, plain_reverse(q, p).detach())
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(got.nats @ upstream, learned), torch.autograd.grad(plain(q, p) @ upstream, learned)
    )


@pytest.mark.parametrize("name", FORMS)
def test_a_teacher_equal_to_the_student_is_at_no_distance_and_pulls_nowhere(name: str):
    full, _, _ = FORMS[name]
    hidden, head, _, _ = sides()
    got = full(hidden, head, hidden, head)
    assert got.nats.abs().max() < 1e-12
    got.nats.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", FORMS)
def test_the_gradient_goes_to_the_student_alone(name: str):
    full, _, _ = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides()
    full(hidden, head, teacher_hidden.requires_grad_(), teacher_head.requires_grad_()).nats.sum().backward()
    assert teacher_hidden.grad is None
    assert teacher_head.grad is None


@pytest.mark.parametrize("name", FORMS)
def test_added_tokens_of_the_student_are_left_out_and_their_mass_is_told(name: str):
    full, _, plain = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides(extra=2)
    q_all = (hidden @ head.T).softmax(-1)
    q, p = (hidden @ head[:V].T).softmax(-1), (teacher_hidden @ teacher_head.T).softmax(-1)
    got = full(hidden, head, teacher_hidden, teacher_head)
    torch.testing.assert_close(got.nats, plain(q, p))
    torch.testing.assert_close(got.extra_mass, q_all[:, V:].sum(-1).detach())
    (grad,) = torch.autograd.grad(got.nats.sum(), head)
    assert grad[V:].abs().max() == 0


@pytest.mark.parametrize("name", FORMS)
def test_student_and_teacher_may_differ_in_precision(name: str):
    full, _, _ = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides()
    expected = full(hidden, head, teacher_hidden, teacher_head).nats
    for student, teacher in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        got = full(hidden.to(student), head.to(student), teacher_hidden.to(teacher), teacher_head.to(teacher)).nats
        assert got.dtype == student
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


def test_padded_rows_of_a_larger_teacher_are_left_out():
    hidden, head, teacher_hidden, teacher_head = sides(head_learns=False)
    padded = torch.cat([teacher_head, torch.full((3, E), 9.0, dtype=torch.float64)])
    expected = reverse_kl(hidden, head, teacher_hidden, teacher_head)
    got = reverse_kl(hidden, head, teacher_hidden, padded)
    torch.testing.assert_close(got.nats, expected.nats)
    assert got.extra_mass.max() == 0


def trl_jsd(student_logits: Tensor, teacher_logits: Tensor, *, beta: float, temperature: float) -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # trl warns that all of trl.experimental may change
        from trl.experimental.gkd import GKDTrainer
    return GKDTrainer.generalized_jsd_loss(
        student_logits[None], teacher_logits[None], beta=beta, temperature=temperature, reduction="sum"
    )


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_trl_computes_the_same_jsd(beta: float):
    hidden, head, teacher_hidden, teacher_head = sides()
    theirs = trl_jsd(hidden @ head.T, teacher_hidden @ teacher_head.T, beta=beta, temperature=0.9)
    ours = jsd(hidden, head, teacher_hidden, teacher_head, beta=beta, temperature=0.9).nats.sum()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, hidden), torch.autograd.grad(theirs, hidden))


@pytest.mark.parametrize(("beta", "full"), [(0, forward_kl), (1, reverse_kl)])
def test_trl_computes_the_same_kl_at_the_ends(beta: float, full: Full):
    hidden, head, teacher_hidden, teacher_head = sides()
    theirs = trl_jsd(hidden @ head.T, teacher_hidden @ teacher_head.T, beta=beta, temperature=1.0)
    torch.testing.assert_close(full(hidden, head, teacher_hidden, teacher_head).nats.sum(), theirs)


distributions = st.lists(st.floats(-30, 30), min_size=4, max_size=4).map(
    lambda scores: torch.tensor([scores], dtype=torch.float64).log_softmax(-1)
)


@given(distributions, distributions, st.floats(0.01, 0.99))
def test_divergences_are_never_negative_and_the_jsd_is_bounded(q: Tensor, p: Tensor, beta: float):
    assert reverse_kl_from_logprobs(q, p.clone())[0].item() >= -1e-12
    assert forward_kl_from_logprobs(q, p.clone())[0].item() >= -1e-12
    entropy_of_beta = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    assert -1e-12 <= jsd_from_logprobs(q, p, beta=beta)[0].item() <= entropy_of_beta + 1e-12


def test_distributions_without_common_ground_stay_finite():
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 200.0]])
    for full in (reverse_kl, forward_kl, jsd):
        got = full(hidden, torch.eye(2), teacher, torch.eye(2))
        assert got.nats.isfinite().all()
        assert torch.autograd.grad(got.nats.sum(), hidden)[0].isfinite().all()
    assert reverse_kl(hidden, torch.eye(2), teacher, torch.eye(2)).nats.item() == pytest.approx(200)
    assert jsd(hidden, torch.eye(2), teacher, torch.eye(2)).nats.item() == pytest.approx(math.log(2))


def served(teacher_hidden: Tensor, teacher_head: Tensor, k: int) -> tuple[Tensor, Tensor]:
    top = (teacher_hidden @ teacher_head.T).log_softmax(-1).topk(k, dim=-1)
    return top.indices, top.values


@pytest.mark.parametrize("topk", [topk_tail, topk_renormalised])
@pytest.mark.parametrize("name", FORMS)
def test_a_list_of_the_whole_vocabulary_is_exact(topk: Full, name: str):
    _, between, plain = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides()
    got = topk(hidden, head, *served(teacher_hidden, teacher_head, V), between=between, chunk=4)
    expected = plain((hidden @ head.T).softmax(-1), (teacher_hidden @ teacher_head.T).softmax(-1))
    torch.testing.assert_close(got.nats, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.nats.sum(), [hidden, head]), torch.autograd.grad(expected.sum(), [hidden, head])
    )
    assert got.extra_mass.max() == 0


def test_top_k_worked_by_hand():
    # student 1/2 1/4 1/4, teacher 1/8 3/4 1/8, list of the one token 1: outcomes {1} and the rest
    hidden, head = torch.tensor([[1.0]]), torch.tensor([[0.5], [0.25], [0.25]]).log()
    ids, listed = torch.tensor([[1]]), torch.tensor([[0.75]]).log()
    tail = topk_tail(hidden, head, ids, listed)
    assert tail.nats.item() == pytest.approx(0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25))
    assert tail.extra_mass.item() == pytest.approx(0.75)
    blind = topk_renormalised(hidden, head, ids, listed)
    assert blind.nats.item() == pytest.approx(0)
    assert blind.extra_mass.item() == pytest.approx(0.75)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
def test_a_longer_list_comes_nearer_from_below(name: str):
    full, between, _ = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides()
    lists = [
        topk_tail(hidden, head, *served(teacher_hidden, teacher_head, k), between=between).nats for k in range(1, V + 1)
    ]
    for shorter, longer in pairwise(lists):
        assert (shorter <= longer + 1e-9).all()
    torch.testing.assert_close(lists[-1], full(hidden, head, teacher_hidden, teacher_head).nats)


@pytest.mark.parametrize("topk", [topk_tail, topk_renormalised])
def test_an_absent_entry_is_as_if_the_list_were_shorter(topk: Full):
    hidden, head, teacher_hidden, teacher_head = sides()
    ids, listed = served(teacher_hidden, teacher_head, 3)
    unlisted = served(teacher_hidden, teacher_head, 4)[0][:, 3:]
    padded_ids = torch.cat([ids, ids[:, :1], unlisted], dim=1)  # padding may repeat a listed id or name another
    padded = torch.cat([listed, torch.full((N, 2), -math.inf, dtype=torch.float64)], dim=1)
    short, long = topk(hidden, head, ids, listed), topk(hidden, head, padded_ids, padded)
    torch.testing.assert_close(long, short)
    torch.testing.assert_close(
        torch.autograd.grad(long.nats.sum(), hidden), torch.autograd.grad(short.nats.sum(), hidden)
    )


def plain_tail(q: Tensor, p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities of the listed ids and, last, of all others together."""
    sides = [side.gather(-1, ids) for side in (q, p)]
    return tuple(torch.cat([side, 1 - side.sum(-1, keepdim=True)], dim=-1) for side in sides)


def plain_renormalised(q: Tensor, p: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    sides = [side.gather(-1, ids) for side in (q, p)]
    return tuple(side / side.sum(-1, keepdim=True) for side in sides)


@pytest.mark.parametrize(("topk", "outcomes"), [(topk_tail, plain_tail), (topk_renormalised, plain_renormalised)])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("head_learns", [False, True])
def test_a_list_is_compared_as_defined_and_so_is_its_gradient(topk: Full, outcomes: Full, name: str, head_learns: bool):
    _, between, plain = FORMS[name]
    hidden, head, teacher_hidden, teacher_head = sides(head_learns=head_learns)
    learned = [hidden, head] if head_learns else [hidden]
    ids, listed = served(teacher_hidden, teacher_head, 3)
    got = topk(hidden, head, ids, listed, between=between, temperature=0.8, chunk=4)
    q, p = (hidden @ head.T / 0.8).softmax(-1), (teacher_hidden @ teacher_head.T).softmax(-1)
    expected = plain(*outcomes(q, p, ids))
    torch.testing.assert_close(got.nats, expected)
    torch.testing.assert_close(got.reverse_kl, plain_reverse(*outcomes(q, p, ids)).detach())
    torch.testing.assert_close(got.extra_mass, 1 - q.gather(-1, ids).sum(-1).detach())
    upstream = torch.linspace(-1, 2, N, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(got.nats @ upstream, learned), torch.autograd.grad(expected @ upstream, learned)
    )


@given(st.data())
def test_the_gradient_to_the_logits_is_that_of_autograd(data: st.DataObject):
    name = data.draw(st.sampled_from(sorted(FORMS)))
    _, between, plain = FORMS[name]
    scores, p = data.draw(distributions).requires_grad_(), data.draw(distributions)
    nats, gradient = between(scores.detach().log_softmax(-1), p.clone())
    expected = plain(scores.softmax(-1), p.exp())
    torch.testing.assert_close(nats, expected, atol=1e-9, rtol=1e-9)
    found = gradient()
    torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), scores)[0], atol=1e-9, rtol=1e-9)
    assert found.sum().abs() < 1e-9


def test_the_tail_sees_what_the_renormalised_list_is_blind_to():
    # the student agrees within the list of two, and has leaked nearly everything outside of it
    hidden, head = torch.tensor([[1.0]], requires_grad=True), torch.tensor([[0.0], [0.0], [9.0]])
    ids, listed = torch.tensor([[0, 1]]), torch.tensor([[0.49, 0.49]]).log()
    assert topk_renormalised(hidden, head, ids, listed).nats.item() == pytest.approx(0, abs=1e-6)
    assert topk_tail(hidden, head, ids, listed).nats.item() > 3


def test_no_tokens_have_no_divergence():
    hidden, head, teacher_hidden, teacher_head = sides()
    ids, listed = served(teacher_hidden, teacher_head, 2)
    empty = [
        *(full(hidden[:0], head, teacher_hidden[:0], teacher_head) for full, _, _ in FORMS.values()),
        *(topk(hidden[:0], head, ids[:0], listed[:0]) for topk in (topk_tail, topk_renormalised)),
    ]
    for divergence in empty:
        assert [part.shape for part in divergence] == [(0,)] * 3
        divergence.nats.sum().backward()


OPTIONS = {"clip_low": 0.2, "clip_high": 0.28, "ratio_cap": 5.0}


def test_the_mean_gradient_of_the_surrogate_is_that_of_the_reverse_kl():
    """Every token of the vocabulary in turn, weighted by the probability of sampling it, instead of sampling."""
    hidden, head, teacher_hidden, teacher_head = sides()
    q, p = (hidden @ head.T).log_softmax(-1), (teacher_hidden @ teacher_head.T).log_softmax(-1)
    surrogate = k1_surrogate(q, q.detach(), q - p, **OPTIONS).loss
    expected = torch.autograd.grad(plain_reverse(q.exp(), p.exp()).sum(), [hidden, head], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((q.detach().exp() * surrogate).sum(), [hidden, head]), expected)


def test_off_policy_samples_are_reweighted_to_the_same_gradient_where_nothing_is_clipped():
    hidden, head, teacher_hidden, teacher_head = sides()
    q, p = (hidden @ head.T).log_softmax(-1), (teacher_hidden @ teacher_head.T).log_softmax(-1)
    old = (q.detach() + 0.01 * torch.linspace(-1, 1, V, dtype=torch.float64)).log_softmax(-1)
    got = k1_surrogate(q, old, q - p, **OPTIONS)
    assert got.clipped.sum() == 0
    expected = torch.autograd.grad(plain_reverse(q.exp(), p.exp()).sum(), hidden, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad((old.exp() * got.loss).sum(), hidden), expected)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.0, 1.0, -1.0, True),
        (1.5, 1.0, -1.28, False),  # likelier already than the clip allows: no more push
        (0.5, 1.0, -0.5, True),
        (1.5, -1.0, 1.5, True),
        (0.5, -1.0, 0.8, False),
        (20.0, -1.0, 5.0, False),  # capped: one stale token cannot rule the step
    ],
)
def test_the_clip_worked_by_hand(ratio: float, advantage: float, loss: float, moves: bool):
    logprob = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    got = k1_surrogate(logprob, logprob.detach() - math.log(ratio), torch.tensor([-advantage]), **OPTIONS)
    assert got.loss.item() == pytest.approx(loss)
    assert got.ratio.item() == pytest.approx(ratio)
    assert got.clipped.item() == float(not moves)
    got.loss.sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.item() == pytest.approx(-advantage * ratio if moves else 0.0)
