import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlspeech.maths.packing import PADDING, SHARED, attention_mask, deal, needed_mask, pack, required
from rlspeech.types import TokenBatch

PAD = 0
Member = tuple[list[int], list[int]]


def test_a_row_worked_by_hand():
    groups = [[([1, 2, 3], [4, 5]), ([1, 2, 6], [7])], [([9], [8, 8])]]
    packed = pack(groups, pad_id=PAD)
    # prefix 1 2; branch 1: 3 4 (5 is a target only); branch 2: 6 (7 is a target only)
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 6], [9, 8, 0, 0, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert packed.branch.tolist() == [[0, 0, 1, 1, 2], [1, 1, -1, -1, -1]]
    assert packed.at.tolist() == [2, 3, 4, 5, 6]
    assert packed.targets.tolist() == [4, 5, 7, 8, 8]
    assert packed.rollout.tolist() == [0, 0, 1, 2, 2]


def test_a_mask_worked_by_hand():
    mask = attention_mask(torch.tensor([[0, 1, 1, 2, -1]]))
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]


def test_one_member_shares_all_but_the_last_token_of_its_prompt():
    packed = pack([[([1, 2, 3], [4])]], pad_id=PAD)
    assert packed.branch.tolist() == [[SHARED, SHARED, 1]]


def test_equal_prompts_share_all_but_their_last_token():
    packed = pack([[([1, 2, 3], [4]), ([1, 2, 3], [5])]], pad_id=PAD)
    assert packed.input_ids.tolist() == [[1, 2, 3, 3]]
    assert packed.at.tolist() == [2, 3]


def test_an_empty_reply_has_no_targets_and_still_counts_as_a_rollout():
    packed = pack([[([1, 2], []), ([1, 2], [3])]], pad_id=PAD)
    assert packed.rollout.tolist() == [1]
    assert packed.input_ids.tolist() == [[1, 2]]


def test_nothing_packs_to_nothing():
    packed = pack([], pad_id=PAD)
    assert packed.input_ids.shape == (0, 0)
    assert len(packed.at) == len(packed.targets) == 0
    assert pack([[([1], [])]], pad_id=PAD).input_ids.shape == (1, 0)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt is empty"):
        pack([[([], [1])]], pad_id=PAD)


ids = st.lists(st.integers(1, 4), max_size=5)
member = st.tuples(ids.map(lambda tokens: [1, *tokens]), ids)
group_lists = st.lists(st.lists(member, min_size=1, max_size=4), max_size=4)


@given(group_lists)
def test_what_a_position_may_see_is_its_own_plain_sequence(groups: list[list[Member]]):
    packed = pack(groups, pad_id=PAD)
    seen = attention_mask(packed.branch)[:, 0]
    members = [member for group in groups for member in group]
    read: dict[int, list[int]] = {}
    for at, target, rollout in zip(packed.at.tolist(), packed.targets.tolist(), packed.rollout.tolist(), strict=True):
        prompt, reply = members[rollout]
        read.setdefault(rollout, []).append(target)
        row, position = divmod(at, packed.input_ids.shape[1])
        visible = seen[row, position]
        context = prompt + reply[: len(read[rollout]) - 1]
        assert packed.input_ids[row, visible].tolist() == context
        assert packed.position_ids[row, visible].tolist() == list(range(len(context)))
    assert read == {index: reply for index, (_, reply) in enumerate(members) if reply}


@given(group_lists)
def test_padding_sees_itself_alone_and_is_seen_by_nobody_else(groups: list[list[Member]]):
    branch = pack(groups, pad_id=PAD).branch
    seen = attention_mask(branch)[:, 0]
    assert bool(seen.any(-1).all())
    padding = branch == PADDING
    itself = torch.eye(branch.shape[1], dtype=torch.bool)
    either = padding[:, :, None] | padding[:, None, :]
    assert not bool((seen & either & ~itself).any())


@given(group_lists)
def test_only_what_is_not_causal_needs_a_mask(groups: list[list[Member]]):
    branch = pack(groups, pad_id=PAD).branch
    mask, found = attention_mask(branch), needed_mask(branch)
    causal = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool).tril().expand_as(mask)
    is_alone = branch.shape[1] == 1 and bool((branch < 0).any())  # of one position a mask is causal, whatever it is of
    assert (found is None) == (torch.equal(mask, causal) and branch.numel() > 0 and not is_alone)
    assert found is None or torch.equal(found, mask)


def length(group: list[Member]) -> int:
    return pack([group], pad_id=PAD).input_ids.shape[1]


@given(group_lists, st.integers(1, 5))
def test_every_group_is_in_one_micro_batch_and_neighbours_are_of_like_length(groups: list[list[Member]], rows: int):
    batches = deal(groups, max_rows=rows)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(groups)))
    assert all(1 <= len(batch) <= rows for batch in batches)
    lengths = [length(groups[index]) for index in order]
    assert lengths == sorted(lengths, reverse=True)


@given(group_lists, st.integers(1, 3), st.integers(2, 4))
def test_ranks_have_equally_many_micro_batches_no_more_than_needed_and_each_group_once(
    groups: list[list[Member]], rows: int, ranks: int
):
    batches = deal(groups, max_rows=rows, ranks=ranks)
    assert sorted(index for batch in batches for index in batch) == list(range(len(groups)))
    assert all(len(batch) <= rows for batch in batches)
    assert len(batches) == ranks * math.ceil(len(groups) / (ranks * rows))


@given(group_lists, st.integers(2, 4))
def test_ranks_differ_by_no_more_than_the_longest_group_where_memory_allows(groups: list[list[Member]], ranks: int):
    batches = deal(groups, max_rows=max(1, len(groups)), ranks=ranks)
    loads = [sum(length(groups[index]) for batch in batches[rank::ranks] for index in batch) for rank in range(ranks)]
    assert max(loads) - min(loads) <= max(map(length, groups), default=0)


@given(group_lists, st.integers(1, 4), st.integers(1, 12), st.integers(1, 3))
def test_micro_batches_stay_within_rows_and_positions_but_for_a_group_that_is_longer(groups, rows, tokens, ranks):
    batches = deal(groups, max_rows=rows, max_tokens=tokens, ranks=ranks)
    assert sorted(index for batch in batches for index in batch) == list(range(len(groups)))
    assert len(batches) % ranks == 0
    for batch in filter(None, batches):
        width = max(length(groups[index]) for index in batch)
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * width <= tokens


def test_half_an_hour_stands_alone_among_short_audios_and_little_is_padding():
    """A meeting of 22,500 positions, 40 clips of 75 to 250: padding with it would be over nine tenths of the grid."""
    groups = [[([1] * 22_500, [2] * 20)], *[[([1] * (75 + 175 * clip // 39), [2] * 10)] for clip in range(40)]]
    batches = deal(groups, max_rows=16, max_tokens=4096)
    assert batches[0] == [0]
    grids = [len(batch) * max(length(groups[index]) for index in batch) for batch in batches]
    used = sum(map(length, groups))
    assert max(grids[1:]) <= 4096
    assert 1 - used / sum(grids) < 0.05
    alike = deal(groups, max_rows=16)
    assert 1 - used / sum(len(b) * max(length(groups[i]) for i in b) for b in alike) > 0.9


def test_two_ranks_are_dealt_by_length():
    groups = [[([1] * size, [2])] for size in (9, 1, 5, 4)]  # rows of 9, 1, 5 and 4 tokens
    assert deal(groups, max_rows=2, ranks=2) == [[0, 1], [2, 3]]
    assert deal(groups, max_rows=1, ranks=2) == [[0], [2], [1], [3]]
    assert deal(groups[:3], max_rows=1, ranks=2) == [[0], [2], [], [1]]


def test_micro_batches_of_no_rows_are_refused():
    with pytest.raises(ValueError, match="max_rows"):
        deal([], max_rows=0)


SIZES = {
    "vocab_size": 17,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_plain_sequences(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
):
    """transformers' eager attention takes its softmax in float32, which sums a row with padding in another order."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim=dim))
    config, architecture = FAMILIES[family]
    torch.manual_seed(0)
    model = architecture(config(**SIZES, attn_implementation=attention)).double()

    def check(groups: list[list[Member]]) -> None:
        packed = pack(groups, pad_id=PAD)
        allowed = attention_mask(packed.branch)
        mask = torch.zeros(allowed.shape, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float64).min)
        together = model.model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            attention_mask=allowed if attention == "sdpa" else mask,
            use_cache=False,
        ).last_hidden_state.flatten(0, 1)[packed.at]
        apart = []
        for prompt, reply in (member for group in groups for member in group):
            states = model.model(input_ids=torch.tensor([prompt + reply]), use_cache=False).last_hidden_state[0]
            apart.append(states[len(prompt) - 1 : len(prompt) + len(reply) - 1])
        torch.testing.assert_close(together, torch.cat(apart), atol=1e-8, rtol=0)
        # the model's norms and rotations are float32 whatever its dtype
        torch.testing.assert_close(_gradients(model, together), _gradients(model, torch.cat(apart)), atol=1e-5, rtol=0)

    prefix = [5, 6, 7, 8, 9]
    check([[([*prefix, 1], [2, 3]), ([*prefix, 4, 4], [5, 6, 7]), ([*prefix, 1], [9])], [([3, 3, 3], [1, 2])]])
    check([[([1], [2, 3, 4])], [([1, 2], []), ([1, 2], [3])]])


def _gradients(model: torch.nn.Module, hidden_ND: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.linspace(-1, 1, hidden_ND.numel(), dtype=hidden_ND.dtype).reshape(hidden_ND.shape)
    parameters = [weight for name, weight in model.named_parameters() if not name.startswith("lm_head")]
    return list(torch.autograd.grad((hidden_ND * weights).sum(), parameters))


def test_a_missing_field_is_named():
    empty = torch.zeros(0, dtype=torch.long)
    batch = TokenBatch(empty, empty, empty, None, empty, empty, empty, empty)
    with pytest.raises(ValueError, match="teacher_hidden"):
        required(batch, "teacher_hidden")
