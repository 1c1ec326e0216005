"""Rollouts to micro-batches: every token once, whatever the ranks; what samplers and teachers do not tell is marked."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.config_objective import ImportanceConfig
from rlspeech.engines.batches import NOBODY, make_batches
from rlspeech.engines.measure import Look, Objective, Sums, look
from rlspeech.losses.cross_entropy import Loss as CrossEntropy
from rlspeech.losses.k1 import Loss as K1
from rlspeech.types import Completion, Policy, Prompt, Rollout, Sample, Scored, TokenBatch

STUDENT = SimpleNamespace(  # all of a student that batches are made with
    end_token_id=0, collate=tuple, first_position=lambda prompt: 0
)


def rollout(reply: list[int], *, audio: str = "", prompt: tuple[int, ...] = (1, 2), sampled: bool = True) -> Rollout:
    logprobs = tuple(-0.1 * token for token in reply) if sampled else ()
    completion = Completion(tuple(reply), logprobs, "", "stop")
    return Rollout(Sample("a", "?"), Prompt(prompt, audio or None, audio), completion)


def scored(length: int, *, k: int | None = None, weight: float = 1.0, hidden: int | None = None) -> Scored:
    return Scored(
        spans=tuple((token, token + 1) for token in range(length)),
        logprobs=-torch.arange(length, dtype=torch.float32),
        topk_ids=None if k is None else torch.arange(k).repeat(length, 1) + 3,
        topk_logprobs=None if k is None else torch.full((length, k), -2.0),
        hidden=None if hidden is None else torch.ones(length, hidden),
        weight=weight,
    )


many = st.lists(
    st.tuples(st.lists(st.integers(3, 9), min_size=1, max_size=5), st.sampled_from(["", "x", "y", "z"])),
    min_size=1,
    max_size=9,
)


@given(many, st.integers(1, 3), st.integers(1, 4))
def test_every_token_counts_once_and_ranks_have_equally_many_batches(made, micro_batch: int, ranks: int) -> None:
    rollouts = [rollout(reply, audio=audio) for reply, audio in made]
    batches = make_batches(STUDENT, rollouts, micro_batch=micro_batch, ranks=ranks)
    assert len(batches) % ranks == 0
    counted = Counter[tuple[int, int]]()
    for batch in batches:
        assert 1 <= len(batch.input_ids) <= micro_batch
        assert len(batch.features) == len(batch.input_ids)
        for owner, token, weight in zip(
            batch.rollout.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True
        ):
            assert weight == (owner != NOBODY)
            counted[owner, token] += weight
    expected = Counter((index, token) for index, (reply, _) in enumerate(made) for token in reply)
    assert {key: count for key, count in counted.items() if count} == expected


def test_prompts_of_one_audio_and_equal_prompts_of_text_share_a_row() -> None:
    rollouts = [
        rollout([3], audio="x", prompt=(1, 2, 5)),
        rollout([4], audio="x", prompt=(1, 2, 6)),
        rollout([5], prompt=(7, 8)),
        rollout([6], prompt=(7, 8)),
        rollout([7], prompt=(7, 9)),
    ]
    (batch,) = make_batches(STUDENT, rollouts, micro_batch=9)
    assert len(batch.input_ids) == 3


def test_replies_that_were_not_sampled_have_no_sampler_logprobs() -> None:
    rollouts = [rollout([3, 4], audio="x"), rollout([5], audio="x", sampled=False)]
    (batch,) = make_batches(STUDENT, rollouts, micro_batch=1)
    assert batch.sampler_logprobs[:2].tolist() == pytest.approx([-0.3, -0.4])
    assert batch.sampler_logprobs[2].isnan()
    (batch,) = make_batches(STUDENT, rollouts[1:], micro_batch=1)
    assert batch.sampler_logprobs is None


def test_a_teachers_word_has_its_weight_and_short_lists_are_filled_with_absent_entries() -> None:
    rollouts = [rollout([3, 4], audio="x"), rollout([5], audio="x")]
    given = [scored(2, k=1, weight=0.5), scored(1, k=3, weight=2.0)]
    (batch,) = make_batches(STUDENT, rollouts, micro_batch=1, scored=given)
    assert batch.weights.tolist() == [0.5, 0.5, 2.0]
    assert batch.teacher_topk_ids[:, 0].tolist() == [3, 3, 3]
    inf = math.inf
    assert batch.teacher_topk_logprobs.tolist() == [[-2, -inf, -inf], [-2, -inf, -inf], [-2, -2, -2]]
    assert batch.teacher_logprobs.tolist() == [0, -1, 0]


def test_what_one_score_lacks_the_batch_lacks() -> None:
    rollouts = [rollout([3], audio="x"), rollout([5], audio="x")]
    (batch,) = make_batches(STUDENT, rollouts, micro_batch=1, scored=[scored(1, k=2), scored(1, hidden=4)])
    assert batch.teacher_topk_ids is None
    assert batch.teacher_topk_logprobs is None
    assert batch.teacher_hidden is None
    (batch,) = make_batches(STUDENT, rollouts, micro_batch=1, scored=[scored(1, hidden=4)] * 2)
    assert batch.teacher_hidden.shape == (2, 4)


def seen_of(sampler: list[float], importance: ImportanceConfig, loss=CrossEntropy()) -> Look:  # noqa: B008
    """Two tokens of probability 1/2 each under the learner: two words, and a head that cannot tell them apart."""
    nothing = torch.zeros(0, dtype=torch.long)
    batch = TokenBatch(
        nothing,
        nothing,
        nothing,
        None,
        at=nothing,
        targets=torch.tensor([0, 1]),
        weights=torch.tensor([1.0, 3.0]),
        rollout=torch.tensor([0, 1]),
        sampler_logprobs=torch.tensor(sampler),
        teacher_logprobs=torch.zeros(2),
    )
    return look(Policy(torch.zeros(2, 1), torch.zeros(2, 1)), batch, loss, Objective(importance))


def test_importance_multiplies_what_a_token_counts_for() -> None:
    """Sampler 1/8 and 1/4, learner 1/2: ratios 4 and 2, the first cut to 3. The mean is over the weights 1 and 3."""
    seen = seen_of([math.log(1 / 8), math.log(1 / 4)], ImportanceConfig(level="token", cap=3))
    assert seen.weights.tolist() == pytest.approx([3.0, 6.0])
    sums = Sums()
    sums.add(seen)
    metrics = sums.learned().metrics
    assert metrics["train/loss"] == pytest.approx(math.log(2) * (3 + 6) / 4)
    assert metrics["importance/truncated_share"] == pytest.approx(1 / 4)
    assert metrics["importance/mean_weight"] == pytest.approx((3 + 3 * 2) / 4)
    assert metrics["importance/max_ratio"] == pytest.approx(4)
    assert metrics["kl/sampler_learner_nats"] == pytest.approx(-(math.log(4) + 3 * math.log(2)) / 4)
    assert metrics["kl/sampler_learner_max_nats"] == pytest.approx(math.log(4))


def test_a_reference_among_samples_counts_as_it_is_and_is_left_out_of_the_gap() -> None:
    seen = seen_of([math.nan, math.log(1 / 4)], ImportanceConfig(level="token", cap=3))
    assert seen.weights.tolist() == pytest.approx([1.0, 6.0])
    sums = Sums()
    sums.add(seen)
    metrics = sums.learned().metrics
    assert metrics["kl/sampler_learner_nats"] == pytest.approx(-math.log(2))
    assert metrics["importance/mean_weight"] == pytest.approx(2)


def test_a_loss_that_corrects_for_the_sampler_is_not_corrected_again() -> None:
    seen = seen_of([math.log(1 / 8)] * 2, ImportanceConfig(), K1())
    assert seen.weights.tolist() == [1.0, 3.0]
    assert not any(name.startswith("importance/") for name in seen.sampled)


def test_sums_of_ranks_are_joined_as_if_one_had_seen_all() -> None:
    both, apart = Sums(), [Sums(), Sums()]
    for part, logprobs in zip(apart, ([-1.0, -2.0], [math.nan, -3.0]), strict=True):
        seen = seen_of(logprobs, ImportanceConfig())
        for sums in (both, part):
            sums.add(seen)
    joined = Sums()
    for part in apart:
        joined.join(part)
    assert joined.learned().metrics == pytest.approx(both.learned().metrics)


def test_tokens_of_nobody_are_not_shown() -> None:
    seen = seen_of([-1.0, -1.0], ImportanceConfig(level="off"), K1())
    sums = Sums()
    sums.add(replace(seen, batch=replace(seen.batch, rollout=torch.tensor([4, NOBODY]))))
    assert list(sums.token_kl_nats) == [4]
