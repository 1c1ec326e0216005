"""What a token's loss is multiplied by, and what is added for the teacher's own words: in one place, for every loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rlspeech.config import DistillConfig
from rlspeech.config_objective import ImportanceConfig
from rlspeech.engines.batches import NOBODY, make_batches
from rlspeech.engines.measure import PLAIN, Look, Objective, Sums, look, weight_of
from rlspeech.engines.teacher_written import unscored, with_cross_entropy
from rlspeech.errors import UserError
from rlspeech.losses.forward_kl import Loss as ForwardKl
from rlspeech.losses.jsd import Loss as Jsd
from rlspeech.losses.k1 import Loss as K1
from rlspeech.losses.reverse_kl import Loss as ReverseKl
from rlspeech.types import Completion, Policy, Prompt, Rollout, Sample, Scored, TokenBatch

VOCABULARY, WIDTH = 7, 5
STUDENT = SimpleNamespace(
    end_token_id=0, collate=tuple, first_position=lambda prompt: 0
)  # all of a student that batches are made with
LOSSES = [ReverseKl(), ForwardKl(), Jsd(), K1(clip_high=50, clip_low=1, ratio_cap=100)]


@dataclass(frozen=True)
class Told:
    """A loss whose every token is its first hidden value, with a divergence that is told."""

    nats: tuple[float, ...] | None

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return policy.hidden[:, 0], {} if self.nats is None else {"kl_nats": torch.tensor(self.nats)}


def random_batch(tokens: int, seed: int = 0) -> tuple[Policy, TokenBatch]:
    """Tokens of all kinds of a teacher that is far from the student."""
    draw = torch.Generator().manual_seed(seed)
    teacher = 6 * torch.randn(tokens, VOCABULARY, generator=draw)
    targets = torch.randint(VOCABULARY, (tokens,), generator=draw)
    logprobs = teacher.log_softmax(-1)
    policy = Policy(
        torch.randn(tokens, WIDTH, generator=draw).requires_grad_(),
        torch.randn(VOCABULARY, WIDTH, generator=draw).requires_grad_(),
    )
    own = (policy.hidden @ policy.head.T).log_softmax(-1).detach()
    batch = TokenBatch(
        *[torch.zeros(1, tokens, dtype=torch.long)] * 3,
        None,
        at=torch.arange(tokens),
        targets=targets,
        weights=1 + torch.rand(tokens, generator=draw),
        rollout=torch.arange(tokens) // 2,
        sampler_logprobs=own[torch.arange(tokens), targets],
        teacher_logprobs=logprobs[torch.arange(tokens), targets],
        teacher_topk_ids=torch.arange(VOCABULARY).repeat(tokens, 1),
        teacher_topk_logprobs=logprobs,
    )
    return policy, batch


def gradients(seen: Look, policy: Policy) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(seen.objective, (policy.hidden, policy.head), retain_graph=True)


def means(*seen: Look) -> dict[str, float]:
    sums = Sums()
    for one in seen:
        sums.add(one)
    return sums.learned().metrics


def told(nats: tuple[float, ...] | None, objective: Objective, **fields) -> Look:
    policy, batch = random_batch(3)
    return look(
        policy,
        replace(batch, sampler_logprobs=None, weights=torch.tensor([1.0, 2.0, 1.0]), **fields),
        Told(nats),
        objective,
    )


def test_a_token_beyond_the_cap_counts_for_cap_over_kl() -> None:
    """|KL| 20, 4 and 5 under a cap of 5: a quarter of the first one's gradient, all of the others'."""
    seen = told((20.0, 4.0, -5.0), Objective(kl_cap_nats=5))
    assert seen.weights.tolist() == pytest.approx([0.25, 2, 1])
    found = means(seen)
    assert found["kl/clipped_share"] == pytest.approx(1 / 4)  # of the weights 1, 2, 1
    assert found["kl/train_nats"] == pytest.approx((20 + 2 * 4 - 5) / 4)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__module__.rpartition(".")[2])
def test_the_cap_scales_the_gradient_of_every_estimator_and_no_metric(loss) -> None:
    policy, batch = random_batch(6)
    free = look(policy, batch, loss)
    nats = free.kl_nats.abs()
    cap = float(nats.median())
    capped = look(policy, batch, loss, Objective(kl_cap_nats=cap))
    assert 0 < int((nats > cap).sum()) < 6
    before, after = gradients(free, policy)[0], gradients(capped, policy)[0]
    assert torch.allclose(after, before * (cap / nats).clamp(max=1)[:, None], atol=1e-6)
    assert torch.equal(capped.kl_nats, free.kl_nats)
    with_cap, without = means(capped), means(free)
    assert "kl/clipped_share" not in without
    changed = {name for name in without if with_cap[name] != pytest.approx(without[name])}
    assert changed == {"train/loss"}


def test_the_cap_is_on_the_whole_of_a_span() -> None:
    """Two spans, of two tokens with 4 nats each and of one with 8: 8 nats that all three are multiplied with."""
    seen = told((4.0, 4.0, 8.0), Objective(kl_cap_nats=4), span=torch.tensor([0, 0, 1]))
    assert seen.weights.tolist() == pytest.approx([0.5, 1, 0.5])
    assert means(seen)["kl/clipped_share"] == pytest.approx(1)


def test_weights_by_divergence_are_times_the_cap_and_the_importance() -> None:
    """1 + 2 kl / (kl + 1): 2 at one nat, 2.8 at nine."""
    seen = told((1.0, 9.0, 0.0), Objective(divergence_gain=3))
    assert seen.weights.tolist() == pytest.approx([2, 2 * 2.8, 1])
    seen = told((1.0, 9.0, 0.0), Objective(divergence_gain=3, kl_cap_nats=3))
    assert seen.weights.tolist() == pytest.approx([2, 2 * 2.8 / 3, 1])
    policy, batch = random_batch(4)
    ratio = Objective(ImportanceConfig(cap=1.5), divergence_gain=3)
    late = replace(batch, sampler_logprobs=batch.sampler_logprobs - 0.2)
    plain, both = look(policy, late, ReverseKl()), look(policy, late, ReverseKl(), ratio)
    expected = batch.weights * math.exp(0.2) * (1 + 2 * plain.kl_nats / (plain.kl_nats + 1))
    assert torch.allclose(both.weights, expected)


def test_a_loss_that_tells_no_divergence_is_not_capped_and_cannot_be_weighed_by_it() -> None:
    assert told(None, Objective(kl_cap_nats=1)).weights.tolist() == [1, 2, 1]
    with pytest.raises(UserError, match="tells no kl_nats"):
        told(None, Objective(divergence_gain=2))


def test_the_objective_is_that_of_the_recipe() -> None:
    def objective(**settings) -> Objective:
        given = {"student": "s", "teacher": "t", "run_dir": "r", "data": {"train": "d"}, "optim": {"steps": 1}}
        return Objective.of(DistillConfig.model_validate(given | settings))

    assert objective() == Objective(ImportanceConfig(), kl_cap_nats=10, divergence_gain=1)
    assert objective(weighting={"scheme": "early", "gain": 4}).divergence_gain == 1
    assert objective(weighting={"scheme": "divergence", "gain": 4}, kl_cap_nats=None) == Objective(
        ImportanceConfig(), None, 4
    )
    assert objective(weighting={"scheme": "divergence"}).divergence_gain == 2


def written(tokens: list[float]) -> Callable[[TokenBatch], TokenBatch]:
    return lambda batch: replace(batch, sft_weights=torch.tensor(tokens))


def test_the_teachers_words_add_their_cross_entropy() -> None:
    """Tokens 0 and 1 are the student's; 2 is scored and the teacher's, 3 the teacher's alone."""
    policy, batch = random_batch(4)
    batch = replace(batch, weights=torch.tensor([1.0, 2.0, 3.0, 0.0]))
    seen = look(policy, written([0.0, 0.0, 0.5, 1.5])(batch), ReverseKl())
    nll = -(policy.hidden @ policy.head.T).log_softmax(-1)[torch.arange(4), batch.targets]
    plain = look(replace(policy, hidden=policy.hidden[:3]), _first(batch, 3), ReverseKl())
    assert seen.objective.item() == pytest.approx((plain.objective + 0.5 * nll[2] + 1.5 * nll[3]).item(), rel=1e-5)
    assert means(seen)["train/sft_nats"] == pytest.approx((0.5 * nll[2] + 1.5 * nll[3]).item() / 2, rel=1e-5)
    assert means(seen)["kl/train_nats"] == pytest.approx(means(plain)["kl/train_nats"], rel=1e-5)
    expected = torch.autograd.grad(
        plain.objective + 0.5 * nll[2] + 1.5 * nll[3], (policy.hidden, policy.head), retain_graph=True
    )
    for found, wanted in zip(gradients(seen, policy), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


def _first(batch: TokenBatch, tokens: int) -> TokenBatch:
    from rlspeech.maths.packing import tokens_of

    return tokens_of(batch, torch.arange(tokens))


def test_cross_entropy_is_at_temperature_one_whatever_is_sampled() -> None:
    policy, batch = random_batch(2)
    seen = look(replace(policy, temperature=0.5), written([0.0, 1.0])(replace(batch, weights=torch.ones(2))), K1())
    nll = -(policy.hidden @ policy.head.T).log_softmax(-1)[1, batch.targets[1]]
    assert seen.sft_nats.tolist() == pytest.approx([nll.item()])


def test_a_loss_of_samples_alone_does_not_see_what_the_teacher_wrote() -> None:
    """k1 would be no number on a token that nobody sampled."""
    policy, batch = random_batch(3)
    sampler = batch.sampler_logprobs.clone()
    sampler[2] = torch.nan
    batch = replace(batch, weights=torch.tensor([1.0, 1.0, 0.0]), sampler_logprobs=sampler)
    seen = look(policy, written([0.0, 0.0, 1.0])(batch), K1())
    assert all(part.isfinite().all() for part in gradients(seen, policy))
    assert {name: math.isfinite(value) for name, value in means(seen).items()}["train/loss"]


def test_a_copy_that_fills_a_ranks_turn_has_a_gradient_of_zero() -> None:
    policy, batch = random_batch(3)
    nobody = torch.full((3,), NOBODY)
    nothing = replace(batch, weights=torch.zeros(3), rollout=nobody, sampler_logprobs=torch.full((3,), torch.nan))
    seen = look(policy, written([0.0] * 3)(nothing), K1())
    assert all(part.abs().sum() == 0 for part in gradients(seen, policy))
    assert means(seen) == {}


def rollouts() -> list[Rollout]:
    """Three audios: two are answered by the student, one by the teacher; what it would have said to the others too."""

    def one(reply: list[int], audio: str, origin) -> Rollout:
        logprobs = tuple(-0.5 for _ in reply) if origin == "sampled" else ()
        return Rollout(
            Sample(audio, "?"), Prompt((1, 2), audio, audio), Completion(tuple(reply), logprobs, "", "stop"), origin
        )

    return [
        one([3, 4, 0], "a", "sampled"),
        one([5, 0], "b", "sampled"),
        one([6, 6, 6, 0], "c", "teacher"),
        one([4, 0], "a", "teacher"),
        one([0], "b", "teacher"),
    ]


def scores(replies: list[Rollout], *, spans: bool = False) -> list[Scored]:
    found = []
    for reply in replies:
        number = len(reply.completion.token_ids)
        ids = torch.arange(VOCABULARY).repeat(number, 1)
        values = (torch.arange(number * VOCABULARY).reshape(number, -1) % 5 * 1.5).log_softmax(-1)
        alone = torch.ones(number, dtype=torch.bool) if spans else None
        found.append(Scored(tuple((i, i + 1) for i in range(number)), values[:, 0], ids, values, alone=alone))
    return found


@pytest.mark.parametrize("spans", [False, True], ids=["one tokenizer", "two tokenizers"])
@pytest.mark.parametrize(("micro_batch", "ranks"), [(9, 1), (1, 1), (1, 2), (2, 2)])
def test_the_mixed_mean_is_the_same_whatever_the_micro_batches_and_ranks(
    spans: bool, micro_batch: int, ranks: int
) -> None:
    """L = mean over 9 scored tokens + 0.25 * mean cross-entropy of 7 that the teacher wrote."""
    made = rollouts()
    given = scores(made[:3], spans=spans)
    batches = make_batches(
        STUDENT, made, micro_batch=micro_batch, scored=[*given, *unscored(given, made[3:])], ranks=ranks
    )
    batches = with_cross_entropy(batches, made, weight=0.25)
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(8, WIDTH, generator=draw)  # of a token, by its id
    head = torch.randn(VOCABULARY, WIDTH, generator=draw)
    seen = [
        look(Policy(hidden[batch.targets], head), batch, ReverseKl(), Objective(kl_cap_nats=9)) for batch in batches
    ]
    total = sum(float(one.objective) for one in seen) / weight_of(batches)
    assert weight_of(batches) == 9

    logprobs = (hidden[:VOCABULARY] @ head.T).log_softmax(-1)
    teacher = torch.cat([one.topk_logprobs for one in given])
    ids = torch.tensor([i for one in made[:3] for i in one.completion.token_ids])
    kl = (logprobs[ids].exp() * (logprobs[ids] - teacher)).sum(-1)
    theirs = torch.tensor([i for one in made[2:] for i in one.completion.token_ids])
    nll = -logprobs[theirs, theirs]
    assert len(theirs) == 7
    assert total == pytest.approx(float(kl.mean() + 0.25 * nll.mean()), rel=1e-4)
    found = means(*seen)
    assert found["train/loss"] == pytest.approx(total, rel=1e-5)
    assert found["train/sft_nats"] == pytest.approx(float(nll.mean()), rel=1e-4)
    assert found["kl/train_nats"] == pytest.approx(float(kl.mean()), rel=1e-4)


def test_no_divergence_is_told_of_replies_that_are_there_for_their_cross_entropy() -> None:
    made = rollouts()
    given = scores(made[:3])
    batches = make_batches(STUDENT, made, micro_batch=9, scored=[*given, *unscored(given, made[3:])])
    sums = Sums()
    for batch in with_cross_entropy(batches, made, weight=1):
        policy = Policy(torch.zeros(len(batch.targets), WIDTH), torch.zeros(VOCABULARY, WIDTH))
        sums.add(look(policy, batch, ReverseKl(), PLAIN))
    assert sorted(sums.token_kl_nats) == [0, 1, 2]


def test_what_a_token_counts_for_is_times_its_teachers_weight() -> None:
    made = rollouts()[:2]
    given = [replace(one, weight=3.0) for one in scores(made)]
    shares = [torch.tensor([1.0, 2.0, 1.0]), torch.tensor([5.0, 1.0])]
    (batch,) = make_batches(STUDENT, made, micro_batch=9, scored=given, shares=shares)
    by_rollout = {0: [3.0, 6.0, 3.0], 1: [15.0, 3.0]}
    for index, expected in by_rollout.items():
        assert batch.weights[batch.rollout == index].tolist() == expected
