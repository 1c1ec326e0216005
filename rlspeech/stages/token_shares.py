"""What each token of a step's replies counts for, by the settings of the recipe."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlspeech.config import DistillConfig
from rlspeech.config_objective import WeightingConfig
from rlspeech.engines.token_bytes import TokenBytes, token_bytes
from rlspeech.maths.token_weights import early_weights, entity_weights
from rlspeech.protocols import Student
from rlspeech.types import Rollout


def token_shares(config: DistillConfig, student: Student, rollouts: Sequence[Rollout]) -> list[Tensor] | None:
    """[T] of each rollout; None where all tokens count alike.

    What a teacher wrote in place of the student's n replies to a sample counts as n. Weights by divergence are not
    known before the student is run (see measure.Objective).
    """
    weighting, n = config.weighting, config.sampling.n
    replaced = n > 1 and any(rollout.origin == "teacher" for rollout in rollouts)
    if weighting.scheme in ("uniform", "divergence") and not replaced:
        return None
    known = token_bytes(student.tokenizer) if weighting.scheme == "entity" else None
    return [(n if r.origin == "teacher" else 1) * _share(weighting, r, known) for r in rollouts]


def _share(weighting: WeightingConfig, rollout: Rollout, known: TokenBytes | None) -> Tensor:
    ids = rollout.completion.token_ids
    if weighting.scheme == "early":
        return early_weights(len(ids), gain=weighting.largest, half_life_tokens=weighting.half_life)
    if known is not None:
        pieces = [known.table[index] if index < len(known.table) else b"" for index in ids]
        return entity_weights(pieces, rollout.sample.biasing_words, gain=weighting.largest)
    return torch.ones(len(ids))
