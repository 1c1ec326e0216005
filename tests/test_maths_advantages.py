"""Advantages worked by hand, and against TRL's own standard deviation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.maths.advantages import advantages, has_spread

NAN = math.nan


def test_a_reward_is_told_by_its_distance_from_the_mean_of_its_group() -> None:
    assert advantages([[3.0, 1.0, 2.0], [10.0, 20.0]], scale="none") == [[1, -1, 0], [-5, 5]]


def test_the_baseline_of_leave_one_out_is_the_mean_of_the_others() -> None:
    """3 - (1 + 5) / 2, 1 - (3 + 5) / 2, 5 - (3 + 1) / 2."""
    assert advantages([[3.0, 1.0, 5.0]], baseline="leave_one_out", scale="none") == [[0, -3, 3]]


def test_a_group_is_divided_by_its_deviation_or_by_that_of_the_batch() -> None:
    """Deviations: of 0 and 2 sqrt(2); of 4 and 4 none; of all four sqrt((6.25 + 0.25 + 2.25 + 2.25) / 3)."""
    groups = [[0.0, 2.0], [4.0, 4.0]]
    one = 1 / (math.sqrt(2) + 1e-4)
    assert advantages(groups, scale="group") == [[pytest.approx(-one), pytest.approx(one)], [0, 0]]
    one = 1 / (math.sqrt(11 / 3) + 1e-4)
    assert advantages(groups, scale="batch") == [[pytest.approx(-one), pytest.approx(one)], [0, 0]]


@pytest.mark.parametrize("baseline", ["group", "leave_one_out"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_without_spread_there_is_no_advantage(baseline, scale) -> None:
    """0.1 three times has another sum than 0.3 in floating point."""
    found = advantages([[0.1, 0.1, 0.1], [7.0], [], [None, NAN], [2.0, None]], baseline=baseline, scale=scale)
    assert found == [[0, 0, 0], [0], [], [0, 0], [0, 0]]


def test_a_rollout_without_a_reward_is_out_of_its_group() -> None:
    whole, with_gaps = advantages([[1.0, 4.0]]), advantages([[1.0, None, 4.0, NAN]])
    assert with_gaps == [[whole[0][0], 0, whole[0][1], 0]]


def test_a_reference_that_does_not_count_moves_nobody_elses_advantage() -> None:
    """Mean 2 and deviation sqrt(2) of 1 and 3 alone; the reference with its 6 is 4 above."""
    (found,) = advantages([[1.0, 3.0, 6.0]], [[True, True, False]])
    assert found == pytest.approx([-1 / (math.sqrt(2) + 1e-4), 1 / (math.sqrt(2) + 1e-4), 4 / (math.sqrt(2) + 1e-4)])
    (found,) = advantages([[1.0, 3.0, 6.0]], [[True, True, False]], baseline="leave_one_out", scale="none")
    assert found == [-2, 2, 4]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_a_reference_beside_rollouts_that_are_alike_is_measured_by_the_spread_of_all(scale) -> None:
    """Deviation of -3, -3 and 0: sqrt(3). By that of the rollouts, 0, its advantage would be 30,000."""
    (found,) = advantages([[-3.0, -3.0, 0.0]], [[True, True, False]], scale=scale)
    assert found == [0, 0, pytest.approx(3 / (math.sqrt(3) + 1e-4))]
    assert has_spread([-3.0, -3.0, 0.0])


def test_spread_is_of_rewards_that_are_known() -> None:
    assert not has_spread([1.0, None, 1.0, NAN])
    assert not has_spread([])


rewards = st.lists(st.lists(st.one_of(st.none(), st.integers(-9, 0)), min_size=4, max_size=4), min_size=1, max_size=5)


@settings(deadline=None)  # the first example imports TRL
@given(rewards, st.sampled_from(["group", "batch", "none"]))
def test_advantages_are_those_of_trls_formula(groups, scale) -> None:
    from trl.trainer.utils import nanstd

    given = torch.tensor([[NAN if reward is None else reward for reward in group] for group in groups]).double()
    std = nanstd(given, dim=1, keepdim=True) if scale == "group" else nanstd(given)
    expected = given - given.nanmean(dim=1, keepdim=True)
    expected = torch.nan_to_num(expected if scale == "none" else expected / (std + 1e-4), nan=0.0)
    assert torch.allclose(torch.tensor(advantages(groups, scale=scale)).double(), expected, atol=1e-9)
    assert advantages(list(given), scale=scale) == advantages(groups, scale=scale)  # a tensor's rows, too


def test_an_infinite_reward_and_an_unknown_setting_are_refused() -> None:
    with pytest.raises(ValueError, match="infinite"):
        advantages([[1.0, -math.inf]])
    with pytest.raises(ValueError, match="baseline is group"):
        advantages([[1.0]], baseline="mean")
