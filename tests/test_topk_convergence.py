"""What a teacher's top tokens tell of the full divergence, on the real tiny pair: the student reads the instruction
alone, the teacher the transcript too, at every token of given replies. float64."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlspeech.engines.batches import reference_rollouts
from rlspeech.engines.teacher_transformers import Reading, TransformersTeacher
from rlspeech.maths.distill import (
    TAIL_MIN,
    Between,
    forward_kl_from_logprobs,
    full_vocabulary,
    jsd_from_logprobs,
    reverse_kl_from_logprobs,
    topk_renormalised,
    topk_tail,
)
from rlspeech.students.tiny import Student
from rlspeech.types import Prompt, Sample

FLOOR = (
    20 * TAIL_MIN
)  # nats that the least probability of a teacher's tail may add: it is surer than that here and there
SIZES = [8, 32, 128, 1024, 8192, 49152]
SAMPLES = [
    Sample(
        id="shop",
        instruction="What does she want to buy?",
        transcript="Good morning. I would like two loaves of bread and a bag of apples, please.",
        reference="She wants to buy two loaves of bread and a bag of apples.",
    ),
    Sample(
        id="train",
        instruction="When does the train leave?",
        transcript="The train to the coast leaves at nine from platform four.",
        reference="The train leaves at nine.",
    ),
]
BETWEEN: dict[str, Between] = {
    "reverse_kl": reverse_kl_from_logprobs,
    "forward_kl": forward_kl_from_logprobs,
    "jsd": partial(jsd_from_logprobs, beta=0.5),
}


class Pair(NamedTuple):
    hidden: Tensor  # [N, D] of the student
    head: Tensor  # [V, D], cut to the ids that the teacher has
    teacher_hidden: Tensor  # [N, D]
    teacher_head: Tensor  # [V, D]

    def top(self) -> tuple[Tensor, Tensor]:
        """The teacher's tokens, likeliest first [N, V], and their log-probs."""
        sorted_NV = (self.teacher_hidden @ self.teacher_head.T).log_softmax(-1).sort(descending=True)
        return sorted_NV.indices, sorted_NV.values


@pytest.fixture(scope="module")
@torch.no_grad()
def pair(tiny_folder: Path, teacher_folder: Path) -> Pair:
    student = Student.load(tiny_folder)
    teacher = TransformersTeacher.load(teacher_folder, Reading('Transcript: "{transcript}"\n\n{instruction}'))
    rollouts = reference_rollouts(student, SAMPLES, [Prompt(()) for _ in SAMPLES])
    replies = [rollout.completion for rollout in rollouts]
    hidden = torch.cat([states(student, s, r.token_ids) for s, r in zip(SAMPLES, replies, strict=True)])
    scored = teacher.score(SAMPLES, replies)
    teacher_hidden = torch.cat([one.hidden for one in scored if one.hidden is not None])
    head = student.head()[: len(teacher.head())]
    return Pair(*(tensor.double() for tensor in (hidden, head, teacher_hidden, teacher.head())))


def states(student: Student, sample: Sample, reply: tuple[int, ...]) -> Tensor:
    """Hidden states [N, D] that predict the tokens of the reply, from the instruction alone."""
    messages = [{"role": "user", "content": sample.instruction}]
    text = student.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = student.tokenizer(text, add_special_tokens=False).input_ids
    ids = torch.tensor([[*prompt, *reply[:-1]]])
    hidden = student.decoder(inputs_embeds=student.model.get_input_embeddings()(ids)).last_hidden_state
    return hidden[0, len(prompt) - 1 :]


def by_size(pair: Pair, topk: Any, between: Between) -> tuple[Tensor, Tensor]:
    """Values of nested lists [len(SIZES), N], and of the full vocabulary [N]."""
    ids, logprobs = pair.top()
    lists = [topk(pair.hidden, pair.head, ids[:, :k], logprobs[:, :k], between=between).nats for k in SIZES]
    return torch.stack(lists), full_vocabulary(*pair, between=between).nats


@pytest.mark.parametrize("name", BETWEEN)
def test_with_a_tail_a_longer_list_comes_nearer_to_the_full_divergence_and_never_passes_it(pair: Pair, name: str):
    lists, full = by_size(pair, topk_tail, BETWEEN[name])
    for shorter, longer in pairwise(lists):
        assert (shorter <= longer + FLOOR).all()
    assert (lists <= full + FLOOR).all()
    errors = (full - lists).mean(-1)
    for shorter, longer in pairwise(errors.tolist()):
        assert longer < shorter
    assert errors[1] < 0.25 * full.mean()
    torch.testing.assert_close(lists[-1], full)


@pytest.mark.parametrize("name", BETWEEN)
def test_renormalised_lists_pass_the_full_divergence_and_may_lose_by_growing(pair: Pair, name: str):
    lists, full = by_size(pair, topk_renormalised, BETWEEN[name])
    assert (lists - full).max() > 0.05 * full.mean()
    assert max((shorter - longer).max() for shorter, longer in pairwise(lists)) > 0.05 * full.mean()
    torch.testing.assert_close(lists[-1], full)
