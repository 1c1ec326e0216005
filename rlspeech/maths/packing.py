"""The padded grid of a learner's batch: replies to the same audio share the positions of their common prompt.

One row holds one group (one audio): the common prefix of its prompts, then for every member a branch: the rest of
its prompt and its reply. Branches see the prefix and themselves, never one another, and each continues the position
ids of the prefix, so that every hidden state is that of the plain sequence prompt + reply.

Shape letters: B rows, T tokens of a padded row, N reply tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from rlspeech.types import TokenBatch

Ids = Sequence[int]
Member = tuple[Ids, Ids]  # prompt, reply

SHARED = 0  # branch of the common prefix
PADDING = -1  # branch of padding
PER_TOKEN = (  # fields of a TokenBatch with a row for each reply token
    *("at", "targets", "weights", "rollout", "span", "sampler_logprobs", "teacher_logprobs", "teacher_hidden"),
    *("teacher_topk_ids", "teacher_topk_logprobs", "advantages", "old_logprobs", "reference_logprobs", "sft_weights"),
    *("pair", "preferred"),
)


@dataclass(frozen=True)
class Packed:
    """Long tensors. Reply tokens come in the order of groups, members, tokens."""

    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T] 0 in padding
    branch: Tensor  # [B, T] 0 common prefix, 1.. branches, -1 padding
    at: Tensor  # [N] flat index b * T + t of the position whose hidden state predicts the token
    targets: Tensor  # [N]
    rollout: Tensor  # [N] running index of the member over all groups


def pack(groups: Sequence[Sequence[Member]], *, pad_id: int) -> Packed:
    """Each group becomes a row, padded on the right.

    The prefix is common to all prompts of the group and leaves at least one token of each to its branch. The last
    token of a reply is a target only: nothing is predicted from it, so it is left out of the input. An empty reply
    has no targets and no branch. Raises ValueError where a prompt is empty.
    """
    rows = [_row(group) for group in groups]
    width = max((len(row.input_ids) for row in rows), default=0)
    at, targets, rollout, members = [], [], [], 0
    for index, (row, group) in enumerate(zip(rows, groups, strict=True)):
        at += [index * width + position for position in row.at]
        targets += row.targets
        rollout += [members + member for member in row.member]
        members += len(group)

    def grid(lists: list[list[int]], padding: int) -> Tensor:
        padded = [values + [padding] * (width - len(values)) for values in lists]
        return torch.tensor(padded, dtype=torch.long).reshape(len(rows), width)

    return Packed(
        input_ids=grid([row.input_ids for row in rows], pad_id),
        position_ids=grid([row.position_ids for row in rows], 0),
        branch=grid([row.branch for row in rows], PADDING),
        at=torch.tensor(at, dtype=torch.long),
        targets=torch.tensor(targets, dtype=torch.long),
        rollout=torch.tensor(rollout, dtype=torch.long),
    )


def needed_mask(branch_BT: Tensor) -> Tensor | None:
    """`attention_mask`, or None where no row has padding or a second branch: that is causal attention.

    Half an hour of audio makes 22,500 positions, and their mask would fill 500 MB, in float32 2 GB.
    """
    is_whole = branch_BT.numel() > 0 and bool(branch_BT.min() >= SHARED)
    if is_whole and all(len(row[row > SHARED].unique()) <= 1 for row in branch_BT):
        return None
    return attention_mask(branch_BT)


def attention_mask(branch_BT: Tensor) -> Tensor:
    """Bool [B, 1, T, T], True where position t may attend to s (the last): s <= t, in the prefix or t's branch.

    Padding attends to itself alone (a row without a True would be NaN) and nobody else attends to it.
    transformers' sdpa attention takes it as it is. Its eager attention adds the mask to the scores, and so misreads a
    bool one in silence: give that 0 where True and the dtype's least number where False.
    """
    to_t, from_s = branch_BT[:, :, None], branch_BT[:, None, :]
    length = branch_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=branch_BT.device).tril()
    itself_TT = torch.eye(length, dtype=torch.bool, device=branch_BT.device)
    seen_BTT = causal_TT & ((from_s == SHARED) | (from_s == to_t)) & (from_s != PADDING) & (to_t != PADDING)
    return (seen_BTT | itself_TT)[:, None]


def deal(
    groups: Sequence[Sequence[Member]], *, max_rows: int, max_tokens: int | None = None, ranks: int = 1
) -> list[list[int]]:
    """Micro-batches of at most `max_rows` groups of like length, as indices; the i-th is for rank i % ranks.

    Every group is in exactly one. All ranks have equally many, and no more than are needed; their groups are of about
    the same length together. Those of a rank with too few groups for that are empty. A rank's longest come first, so
    that a lack of memory shows at the first forward pass.

    `max_tokens`: positions of a micro-batch, padding included; a longer group stands alone.
    """
    if max_rows < 1 or ranks < 1 or (max_tokens or 1) < 1:
        raise ValueError(f"max_rows, max_tokens and ranks must be at least 1, got {max_rows}, {max_tokens} and {ranks}")
    lengths = [len(_row(group).input_ids) for group in groups]
    order = sorted(range(len(groups)), key=lambda index: (-lengths[index], index))
    rounds = -(-len(groups) // (ranks * max_rows))
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for index in order:  # each to the rank that has least to do
        free = [hand for hand in hands if len(hand) < rounds * max_rows]
        min(free, key=lambda hand: sum(lengths[other] for other in hand)).append(index)
    if max_tokens is None:
        dealt = [_even(hand, rounds) for hand in hands]
    else:
        dealt = [_within(hand, lengths, max_rows, max_tokens) for hand in hands]
        rounds = max(map(len, dealt))
    return [pieces[turn] if turn < len(pieces) else [] for turn in range(rounds) for pieces in dealt]


def _even(hand: Sequence[int], pieces: int) -> list[list[int]]:
    """Consecutive pieces of nearly equal size, the larger ones last: what comes first is longest."""
    if len(hand) <= pieces:
        return [[index] for index in hand] + [[] for _ in range(pieces - len(hand))]
    bounds = [len(hand) * piece // pieces for piece in range(pieces + 1)]
    return [list(hand[start:end]) for start, end in pairwise(bounds)]


def _within(hand: Sequence[int], lengths: Sequence[int], max_rows: int, max_tokens: int) -> list[list[int]]:
    """Consecutive pieces of at most so many rows and positions; the first row of a piece is its longest."""
    pieces: list[list[int]] = []
    for index in hand:
        piece = pieces[-1] if pieces else []
        if not piece or len(piece) == max_rows or (len(piece) + 1) * lengths[piece[0]] > max_tokens:
            pieces.append([index])
        else:
            piece.append(index)
    return pieces


def required(batch: TokenBatch, name: str) -> Tensor:
    """A field of the batch that a loss cannot do without; ValueError naming it where it is None."""
    value = getattr(batch, name)
    if value is None:
        raise ValueError(f"the batch has no {name}, which this loss needs")
    return value


def tokens_of(batch: TokenBatch, index_M: Tensor) -> TokenBatch:
    """The batch with some of its reply tokens alone, the grid as it was."""
    held = {name: getattr(batch, name) for name in PER_TOKEN}
    return replace(batch, **{name: value[index_M] for name, value in held.items() if value is not None})


@dataclass(frozen=True)
class _Row:
    input_ids: list[int]
    position_ids: list[int]
    branch: list[int]
    at: list[int]  # position in the row
    targets: list[int]
    member: list[int]


def _row(group: Sequence[Member]) -> _Row:
    prefix = _common_prefix([prompt for prompt, _ in group])
    row = _Row(list(prefix), list(range(len(prefix))), [SHARED] * len(prefix), [], [], [])
    for index, (prompt, reply) in enumerate(group):
        if not len(reply):
            continue
        branch = [*prompt[len(prefix) :], *reply[:-1]]
        first = len(row.input_ids) + len(prompt) - len(prefix) - 1  # the prompt's last token predicts the reply's first
        row.at.extend(range(first, first + len(reply)))
        row.targets.extend(reply)
        row.member.extend([index] * len(reply))
        row.input_ids.extend(branch)
        row.position_ids.extend(range(len(prefix), len(prefix) + len(branch)))
        row.branch.extend([index + 1] * len(branch))
    return row


def _common_prefix(prompts: Sequence[Ids]) -> list[int]:
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("a prompt is empty: there is no position to predict the first token of the reply from")
    if not prompts:
        return []
    longest = min(len(prompt) for prompt in prompts) - 1
    first, *others = prompts
    for length in range(longest):
        if any(other[length] != first[length] for other in others):
            return list(first[:length])
    return list(first[:longest])
