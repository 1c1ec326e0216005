"""Replies and scores come out of their arrays as they went in."""

import pytest
import torch

from rlspeech.engines.wire import PackedReplies, PackedScores
from rlspeech.types import Completion, Scored

REPLIES = [
    Completion((5, 49151, 2), (-0.5, -1.25, -0.125), "a reply", "stop", 7),
    Completion((), (), "", "stop", 7),
    Completion((4, 6), (), "a teacher's own", "stop", 8),
    Completion((9,), (-3.5,), "cut off", "length", 8),
]


def test_replies_come_back_as_they_were_an_empty_one_too() -> None:
    assert PackedReplies.of(REPLIES).replies() == REPLIES


def test_scores_come_back_as_they_were() -> None:
    def scored(tokens: int) -> Scored:
        spans = tuple((token, token + 1) for token in range(tokens))
        values = torch.arange(tokens * 2, dtype=torch.float32).view(tokens, 2)
        return Scored(spans, -values[:, 0], topk_ids=values.long() + 49_000, topk_logprobs=-values)

    before = [scored(3), scored(0), scored(1)]
    after = PackedScores.of(before).scores()
    for one, other in zip(before, after, strict=True):
        assert one.spans == other.spans
        assert torch.equal(one.logprobs, other.logprobs)
        assert torch.equal(one.topk_ids, other.topk_ids)
        assert torch.equal(one.topk_logprobs, other.topk_logprobs)


def test_scores_without_lists_do_not_cross() -> None:
    with pytest.raises(ValueError, match="lists of one length K"):
        PackedScores.of([Scored(((0, 1),), torch.zeros(1), hidden=torch.zeros(1, 4))])


def test_what_crosses_is_a_few_arrays_however_many_replies_there_are() -> None:
    packed = PackedReplies.of(REPLIES * 100)
    assert len(packed.token_ids) == 600
    assert packed.token_ids.dtype.name == "int32"
    assert packed.logprobs.dtype.name == "float32"
