"""Classes of tokens that two tokenizers have in common, and divergences between distributions over them."""

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rlspeech.engines.retokenise import Rereader
from rlspeech.maths.distill import topk_renormalised, topk_tail

N, D, V = 5, 4, 7
CLASSES = torch.tensor([0, 1, 0, 3, 1, 0])  # of tokens 0, 2 and 5 the class 0; token 6 is its own: padding


@pytest.fixture(scope="module")
def pair(teacher_folder: Path, split_teacher: Path) -> Rereader:
    student, teacher = (AutoTokenizer.from_pretrained(folder) for folder in (teacher_folder, split_teacher))
    return Rereader.of(student, student.eos_token_id, teacher)


def test_a_token_belongs_to_the_piece_that_both_tokenizers_write(pair: Rereader) -> None:
    """The teacher has lost all merges whose result is longer than four characters, the space included."""
    ours, theirs = pair.classes
    student = {piece: index for index, piece in enumerate(pair.student.table)}
    read, end = pair.teacher.encode([" museum", " and", "ing", " Thursday", " the"]), [pair.teacher_end_id]
    split = [pair.teacher.table[ids[0]] for ids in read]
    assert split != [b" museum", b" and", b"ing", b" Thursday", b" the"]
    for text, first, ids in zip([b" museum", b" and", b"ing", b" Thursday", b" the"], split, read, strict=True):
        assert pair.student.table[ours[student[text]]] == first
        assert theirs[ids[0]] == student[first]
    assert theirs[end] == [pair.student_end_id]


def test_a_class_is_named_by_a_token_of_its_own(pair: Rereader) -> None:
    ours, theirs = pair.classes
    assert (ours[ours] == ours).all()
    named = theirs[theirs >= 0]
    assert (ours[named] == named).all()
    table = pair.student.table
    assert all(table[index].startswith(table[name]) for index, name in enumerate(ours))


def test_of_one_tokenizer_every_token_is_a_class(teacher_folder: Path) -> None:
    one = AutoTokenizer.from_pretrained(teacher_folder)
    ours, theirs = Rereader.of(one, one.eos_token_id, one).classes
    assert (ours == range(len(ours))).all()
    spoken = [index for index, piece in enumerate(pair_table(one)) if piece]
    assert (theirs[spoken] == ours[spoken]).all()


def pair_table(tokenizer) -> list[bytes]:
    from rlspeech.engines.token_bytes import token_bytes

    return token_bytes(tokenizer).table


@pytest.mark.parametrize("topk", [topk_tail, topk_renormalised])
def test_the_divergence_of_classes_and_its_gradient_are_those_of_their_sums(topk) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(V, D, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 3]] * N)
    p = torch.tensor([[0.5, 0.2]] * N, dtype=torch.float64)
    found = topk(hidden, head, ids, p.log(), classes_V=CLASSES)
    q = (hidden @ head.T).softmax(-1)
    first, second = q[:, [0, 2, 5]].sum(-1), q[:, 3]
    mine, other = torch.stack([first, second, 1 - first - second], -1), torch.cat([p, 1 - p.sum(-1, keepdim=True)], -1)
    if topk is topk_renormalised:
        mine, other = mine[:, :2] / mine[:, :2].sum(-1, keepdim=True), p / p.sum(-1, keepdim=True)
    expected = (mine * (mine / other).log()).sum(-1)
    torch.testing.assert_close(found.nats, expected)
    torch.testing.assert_close(found.extra_mass, 1 - first - second)
    weights = torch.linspace(1, 2, N, dtype=torch.float64)
    for got, exact in zip(
        torch.autograd.grad((found.nats * weights).sum(), [hidden, head]),
        torch.autograd.grad((expected * weights).sum(), [hidden, head]),
        strict=True,
    ):
        torch.testing.assert_close(got, exact)


def test_a_class_of_no_probability_gives_no_infinite_gradient() -> None:
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = torch.tensor([[300.0], [0.0], [0.0]])
    found = topk_tail(hidden, head, torch.tensor([[1]]), torch.tensor([[0.9]]).log(), classes_V=torch.tensor([0, 1, 1]))
    found.nats.sum().backward()
    assert math.isfinite(found.nats.item())
    assert hidden.grad.isfinite().all()
