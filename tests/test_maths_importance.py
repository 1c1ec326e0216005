import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlspeech.maths.importance import LOG_RATIO_MAX, Level, Mode, Ratios, ratios

LEVELS: list[Level] = ["token", "sequence"]
MODES: list[Mode] = ["truncate", "mask"]
NAN = math.nan
NO_CAP = math.exp(LOG_RATIO_MAX)


def of_probabilities(
    learner: list[float], sampler: list[float], rollout: list[int], *, level: Level, mode: Mode, cap: float
) -> Ratios:
    sides = [torch.tensor(side, dtype=torch.float64).log() for side in (learner, sampler)]
    return ratios(*sides, torch.tensor(rollout), level=level, mode=mode, cap=cap)


# Learner / sampler: 3, 1/2 and 1 of rollout 4; 2 and 5/4 of rollout 9. Products: 3/2 and 5/2.
LEARNER, SAMPLER, ROLLOUT = [0.6, 0.1, 0.3, 0.8, 0.5], [0.2, 0.2, 0.3, 0.4, 0.4], [4, 4, 4, 9, 9]


@pytest.mark.parametrize(
    ("level", "mode", "weights", "truncated"),
    [
        ("token", "truncate", [2, 0.5, 1, 2, 1.25], [1, 0, 0, 0, 0]),
        ("token", "mask", [0, 0.5, 1, 2, 1.25], [1, 0, 0, 0, 0]),
        ("sequence", "truncate", [1.5, 1.5, 1.5, 2, 2], [0, 0, 0, 1, 1]),
        ("sequence", "mask", [1.5, 1.5, 1.5, 0, 0], [0, 0, 0, 1, 1]),
    ],
)
def test_ratios_worked_by_hand(level: Level, mode: Mode, weights: list[float], truncated: list[int]):
    got = of_probabilities(LEARNER, SAMPLER, ROLLOUT, level=level, mode=mode, cap=2 + 1e-9)
    assert got.weights.tolist() == pytest.approx(weights)
    assert got.truncated.tolist() == truncated
    before_the_cap = [3, 0.5, 1, 2, 1.25] if level == "token" else [1.5, 1.5, 1.5, 2.5, 2.5]
    assert got.ratio.tolist() == pytest.approx(before_the_cap)


logprobs = st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0), st.integers(0, 3)), min_size=1, max_size=12)


@given(logprobs, st.sampled_from(LEVELS), st.sampled_from(MODES), st.floats(1, 50))
def test_weights_are_those_of_the_definition(
    tokens: list[tuple[float, float, int]], level: Level, mode: Mode, cap: float
):
    learner, sampler, rollout = (torch.tensor(column) for column in zip(*tokens, strict=True))
    got = ratios(learner.double(), sampler.double(), rollout, level=level, mode=mode, cap=cap)
    for token, (own, other, mine) in enumerate(tokens):
        together = [a - b for a, b, index in tokens if index == mine] if level == "sequence" else [own - other]
        ratio = math.exp(min(math.fsum(together), LOG_RATIO_MAX))
        if abs(ratio - cap) < 1e-4 * cap:
            continue  # the sides of the cap cannot be told apart
        above = ratio > cap
        assert got.truncated[token] == above
        assert got.weights[token].item() == pytest.approx((cap if mode == "truncate" else 0) if above else ratio, 1e-5)


def test_a_sampler_that_is_the_learner_changes_nothing():
    same = torch.tensor([-0.3, -7.0, -1.0])
    for level, mode in itertools.product(LEVELS, MODES):
        got = ratios(same, same, torch.tensor([0, 0, 1]), level=level, mode=mode, cap=1.0)
        assert got.weights.tolist() == [1, 1, 1]
        assert got.truncated.sum() == 0


def two_step_chains() -> tuple[Tensor, Tensor]:
    """Log-probs [9, 2] of the tokens of every reply of two tokens over three, of a sampler and of a learner."""
    generator = torch.Generator().manual_seed(0)

    def chain() -> Tensor:
        first = torch.randn(3, generator=generator, dtype=torch.float64).log_softmax(-1)
        second = torch.randn(3, 3, generator=generator, dtype=torch.float64).log_softmax(-1)
        return torch.stack([torch.stack([first[a], second[a, b]]) for a in range(3) for b in range(3)])

    return chain(), chain()


def test_under_the_sampler_the_weighted_mean_is_the_learners():
    """E_sampler[w f] = E_learner[f], f any value of the reply, by summing over all replies instead of sampling."""
    sampler, learner = two_step_chains()
    rollout = torch.arange(9)[:, None].expand(9, 2)
    got = ratios(learner.flatten(), sampler.flatten(), rollout.flatten(), level="sequence", mode="truncate", cap=NO_CAP)
    weights = got.weights.reshape(9, 2)
    value = torch.linspace(-1, 3, 9, dtype=torch.float64) ** 2
    for token in range(2):
        mean = (sampler.sum(-1).exp() * weights[:, token] * value).sum()
        torch.testing.assert_close(mean, (learner.sum(-1).exp() * value).sum())


def test_of_single_tokens_the_token_level_is_unbiased_too():
    sampler, learner = (side[::3, 0] for side in two_step_chains())
    got = ratios(learner, sampler, torch.zeros(3, dtype=torch.long), level="token", mode="mask", cap=NO_CAP)
    value = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    torch.testing.assert_close((sampler.exp() * got.weights * value).sum(), (learner.exp() * value).sum())


def test_a_cap_lowers_the_mean_of_a_positive_value_and_a_mask_lowers_it_more():
    sampler, learner = (side[::3, 0] for side in two_step_chains())
    means = [
        (sampler.exp() * ratios(learner, sampler, torch.arange(3), level="token", mode=mode, cap=cap).weights).sum()
        for mode, cap in (("mask", 1.1), ("truncate", 1.1), ("truncate", NO_CAP))
    ]
    assert means[0] < means[1] < means[2]
    assert means[2].item() == pytest.approx(1)


@pytest.mark.parametrize("mode", MODES)
def test_references_weigh_one_and_are_never_counted(mode: Mode):
    learner = torch.tensor([-9.0, -0.1, -1.0, -2.0])
    sampler = torch.tensor([NAN, NAN, -3.0, -1.5])
    for level in LEVELS:
        got = ratios(learner, sampler, torch.tensor([0, 0, 1, 1]), level=level, mode=mode, cap=1.0)
        assert got.weights[:2].tolist() == got.ratio[:2].tolist() == [1, 1]
        assert got.truncated[:2].sum() == 0
        assert got.truncated[2] == 1


def test_a_token_that_was_not_sampled_leaves_the_ratio_of_its_sequence_alone():
    learner, sampler = torch.tensor([0.5, 0.9, 0.3]).log(), torch.tensor([0.4, NAN, 0.2]).log()
    got = ratios(learner, sampler, torch.zeros(3, dtype=torch.long), level="sequence", mode="truncate", cap=9.0)
    assert got.weights.tolist() == pytest.approx([1.875, 1, 1.875])


def test_a_long_reply_does_not_overflow():
    learner, sampler = torch.zeros(1000), torch.full((1000,), -5.0)
    rollout = torch.zeros(1000, dtype=torch.long)
    for mode, weight in (("truncate", 2.0), ("mask", 0.0)):
        got = ratios(learner, sampler, rollout, level="sequence", mode=mode, cap=2.0)
        assert got.weights.tolist() == [weight] * 1000
        assert got.ratio.isfinite().all()
    vanishing = ratios(sampler, learner, rollout, level="sequence", mode="truncate", cap=2.0)
    assert vanishing.weights.tolist() == [0] * 1000


def test_a_learner_that_is_broken_is_not_hidden():
    for mode in MODES:
        got = ratios(torch.tensor([NAN]), torch.tensor([-1.0]), torch.zeros(1), level="token", mode=mode, cap=2.0)
        assert got.weights.isnan().all()


def test_no_gradient_passes_and_no_tokens_are_no_error():
    learner = torch.tensor([-1.0], requires_grad=True)
    sampler, none = torch.tensor([-2.0]), torch.zeros(0)
    for level in LEVELS:
        assert not any(
            part.requires_grad
            for part in ratios(learner, sampler, torch.zeros(1), level=level, mode="truncate", cap=9.0)
        )
        empty = ratios(none, none, none.long(), level=level, mode="mask", cap=2.0)
        assert [part.shape for part in empty] == [(0,)] * 3


@pytest.mark.parametrize("wrong", [{"level": "reply"}, {"mode": "clip"}, {"cap": 0.5}, {"cap": NAN}])
def test_unknown_settings_are_refused(wrong: dict[str, object]):
    settings = {"level": "token", "mode": "truncate", "cap": 2.0} | wrong
    with pytest.raises(ValueError, match="must be"):
        ratios(torch.zeros(1), torch.zeros(1), torch.zeros(1), **settings)  # type: ignore[arg-type]
