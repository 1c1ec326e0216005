"""Pairs of replies to a learner's micro-batches: the two of a pair hear the same, so they share a row and its audio."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from rlspeech.engines.batches import NOBODY, make_batches
from rlspeech.protocols import Student
from rlspeech.types import Rollout, TokenBatch


def pair_batches(
    student: Student,
    pairs: Sequence[tuple[Rollout, Rollout]],
    *,
    micro_batch: int,
    micro_batch_tokens: int | None = None,
    ranks: int = 1,
) -> list[TokenBatch]:
    """As `make_batches`, of the preferred and the rejected reply of each pair: rollouts 2p and 2p + 1.

    The weights of a pair's tokens add up to 1, and stay so: what the replies were sampled with is left out, because a
    ratio to it would be taken of each token, and a pair's loss is not an expectation over them.

    Raises ValueError where a reply has no token, or the two of a pair are not replies to one prompt.
    """
    rollouts = [one for pair in pairs for one in pair]
    shares = []
    for chosen, rejected in pairs:
        if chosen.prompt.token_ids != rejected.prompt.token_ids or chosen.prompt.audio_key != rejected.prompt.audio_key:
            raise ValueError(f"{chosen.sample.id}: the replies of a pair are to different prompts")
        lengths = [len(one.completion.token_ids) for one in (chosen, rejected)]
        if not all(lengths):
            raise ValueError(f"{chosen.sample.id}: a reply of a pair has no token")
        shares += [torch.full((length,), 1 / sum(lengths)) for length in lengths]
    batches = make_batches(
        student,
        rollouts,
        micro_batch=micro_batch,
        micro_batch_tokens=micro_batch_tokens,
        shares=shares,
        ranks=ranks,
    )
    return [_with_pairs(batch) for batch in batches]


def _with_pairs(batch: TokenBatch) -> TokenBatch:
    """Copies that fill a rank's turn are of no pair."""
    pair = torch.where(batch.rollout == NOBODY, NOBODY, batch.rollout // 2)
    return replace(batch, pair=pair, preferred=batch.rollout % 2 == 0, sampler_logprobs=None)
