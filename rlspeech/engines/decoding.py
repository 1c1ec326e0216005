"""transformers' `generate` over prompts that share beginnings: each shared beginning is read once.

B prompts, P tokens of the padded shared part, S tokens of the padded rest, T new tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from rlspeech.protocols import Sampling

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """New tokens of one prompt, the end token included where it was written, and their log-probs in nats."""

    token_ids: TokenIds
    logprobs: tuple[float, ...]
    ended: bool


def shared_prefix(prompts: Sequence[TokenIds]) -> int:
    """Tokens that all prompts begin with, at most all but the last of the shortest: something must be left to read.

    >>> shared_prefix([(1, 2, 3), (1, 2, 4)]), shared_prefix([(1, 2), (1, 2)])
    (2, 1)
    """
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    groups: Sequence[Sequence[TokenIds]],
    *,
    embed: Callable[[Tensor, Sequence[int]], Tensor] | None,
    sampling: Sampling,
    end_ids: Sequence[int],
    pad_id: int,
    never: Sequence[int] = (),
    first: Sequence[int] = (),
) -> list[list[Written]]:
    """Replies to the prompts of each group, group by group. The prompts of one group share a beginning.

    Tokens in `never` are not written: a placeholder of audio in a reply would claim audio that is not there.
    `embed(ids [G, P], group indices)` gives the input embeddings of the shared parts (with audio in its place);
    None where token ids alone are read. `first`: the position of each group's first token; all 0 where none are given.
    """
    lengths = [shared_prefix(group) for group in groups]
    prefix_ids, prefix_mask = _left_padded(
        [group[0][:length] for group, length in zip(groups, lengths, strict=True)], pad_id
    )
    starts = torch.tensor([*first] or [0] * len(groups))[:, None]
    cache = _read(model, prefix_ids, prefix_mask, embed, starts)
    owner = torch.tensor([index for index, group in enumerate(groups) for _ in group])
    rest = [prompt[length:] for group, length in zip(groups, lengths, strict=True) for prompt in group]
    rest_ids, rest_mask = _left_padded(rest, pad_id)
    cache.batch_select_indices(owner)
    written = _continue(
        model,
        torch.cat([prefix_ids[owner], rest_ids], dim=1),
        torch.cat([prefix_mask[owner], rest_mask], dim=1),
        cache,
        starts=starts[owner],
        sampling=sampling,
        end_ids=end_ids,
        pad_id=pad_id,
        never=never,
    )
    replies = iter(written)
    return [[next(replies) for _ in group] for group in groups]


def _left_padded(rows: Sequence[TokenIds], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _read(model: PreTrainedModel, ids: Tensor, mask: Tensor, embed: Any, starts: Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config())
    inputs = {"input_ids": ids} if embed is None else {"inputs_embeds": embed(ids, range(len(ids)))}
    decoder = model.get_decoder()
    decoder(**inputs, attention_mask=mask, position_ids=_positions(mask, starts), past_key_values=cache, use_cache=True)
    return cache


def _positions(mask: Tensor, starts: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0) + starts


def _continue(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    cache: DynamicCache,
    *,
    starts: Tensor,
    sampling: Sampling,
    end_ids: Sequence[int],
    pad_id: int,
    never: Sequence[int],
) -> list[Written]:
    greedy = sampling.temperature == 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_p=None if greedy else sampling.top_p,
        top_k=None if greedy else 0,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
        suppress_tokens=list(never) or None,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with _own_settings(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sampling.seed)
        placed = {"position_ids": _positions(mask, starts)} if starts.any() else {}
        out = model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=settings, **placed
        )
    new_BT = out.sequences[:, ids.shape[1] :]
    logprobs_BT = torch.stack([_logprob(score, new_BT[:, step]) for step, score in enumerate(out.scores)], dim=1)
    return [_cut(row, values, set(end_ids)) for row, values in zip(new_BT.tolist(), logprobs_BT.tolist(), strict=True)]


@contextmanager
def _own_settings(model: PreTrainedModel) -> Iterator[None]:
    """`generate` fills what is None from the checkpoint's generation config, such as penalties: they are kept out.

    So are the positions of the batch before, which Qwen's Omni models remember and would add to this one's.
    """
    for part in model.modules():
        if getattr(part, "rope_deltas", None) is not None:
            part.rope_deltas = None
    kept, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = kept


def _logprob(scores_BV: Tensor, chosen_B: Tensor) -> Tensor:
    """Of the distribution that was sampled: `generate` returns the scores after temperature and top-p."""
    scores_BV = scores_BV.float()
    return scores_BV.gather(1, chosen_B[:, None])[:, 0] - scores_BV.logsumexp(1)


def _cut(tokens: list[int], logprobs: list[float], ends: set[int]) -> Written:
    """A reply without the padding behind its end token."""
    length = next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))
    ended = length > 0 and tokens[length - 1] in ends
    return Written(tuple(tokens[:length]), tuple(logprobs[:length]), ended)
