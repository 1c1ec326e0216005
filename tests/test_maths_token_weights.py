"""What tokens count for: values worked by hand, and a rule for names and numbers that a person can check."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.maths.token_weights import divergence_weights, early_weights, entities, entity_weights


def named(text: str, *biasing: str) -> list[str]:
    return [text[start:end] for start, end in entities(text, biasing)]


def test_early_weights_fall_from_the_gain_to_one_by_their_half_life() -> None:
    found = early_weights(7, gain=5, half_life_tokens=2)
    assert found.tolist() == pytest.approx(
        [5, 1 + 4 / math.sqrt(2), 3, 1 + 2 / math.sqrt(2), 2, 1 + 1 / math.sqrt(2), 1.5]
    )
    assert early_weights(0, gain=5, half_life_tokens=2).tolist() == []
    assert early_weights(2, gain=1, half_life_tokens=9).tolist() == [1, 1]


def test_divergence_weights_are_those_of_each_token_alone_and_know_no_sign() -> None:
    kl = torch.tensor([0.0, 1.0, -1.0, 3.0], requires_grad=True)
    found = divergence_weights(kl, gain=3)
    assert found.tolist() == pytest.approx([1, 2, 2, 2.5])
    assert not found.requires_grad
    assert divergence_weights(kl[1:2], gain=3).tolist() == pytest.approx([2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("They meet Anna in Paris.", ["Anna", "Paris"]),
        ("Anna is there. Ben is not! Why? Carl left.", []),  # sentence beginnings tell nothing of a capital
        ("Where is Anna? In Rome.", ["Anna", "Rome"]),
        ("I think I'm late, but I\u2019ll ask O'Neil.", ["O'Neil"]),
        ("Ask Mr. Smith and J. Doe. They know.", ["Mr", "Smith", "J", "Doe"]),
        ("At 5:30 on 21/03, room 7b costs 1,299.50 euros.", ["5:30", "21/03", "7b", "1,299.50"]),
        ("twenty-one apples and a dozen pears", ["twenty-one", "dozen"]),
        ("monday's plan, second try", ["monday's", "second"]),
        ("you may march on", []),
        ("we meet on May 5", ["May", "5"]),
        ("Tuesday it is", ["Tuesday"]),
        ("on the line\nThen more", []),
        ("", []),
        ("\u5317\u4eac\u898b\u9762 3 \u70b9", ["3"]),  # no case: numbers alone
    ],
)
def test_names_numbers_and_dates_are_found(text: str, expected: list[str]) -> None:
    assert named(text) == expected


def test_biasing_words_count_whatever_their_case_as_whole_words() -> None:
    assert named("the kubelet talks to cube or kubelets", "Kubelet") == ["kubelet"]
    assert named("open  weight model", "open weight") == ["open  weight"]
    assert named("\u5317\u4eac\u898b\u9762", "\u898b\u9762") == ["\u898b\u9762"]
    assert named("a+b (c)", "(c)", "") == ["(c)"]


def test_a_token_with_any_byte_of_an_entity_counts_the_gain() -> None:
    pieces = [b" We", b" meet", b" \xc3", b"\x89mile", b"'s", b" dog", b"", b" at", b" 5", b":", b"30", b"."]
    assert entity_weights(pieces, gain=4).tolist() == [1, 1, 4, 4, 4, 1, 1, 1, 4, 4, 4, 1]


def test_bytes_that_are_no_text_shift_nothing() -> None:
    assert entity_weights([b"we met\xff", b"\xe2\x82", b" Ann", b" once"], gain=2).tolist() == [1, 1, 2, 1]
    assert entity_weights([], gain=2).tolist() == []


@given(st.text(), st.lists(st.text(max_size=5), max_size=3), st.randoms())
def test_entities_lie_in_the_text_and_weights_do_not_depend_on_the_cut(text: str, biasing, random) -> None:
    """Every byte a token: a token of several bytes counts the most of what they count."""
    text = text.encode(errors="ignore").decode()
    raw = text.encode()
    biasing = [phrase.encode(errors="ignore").decode() for phrase in biasing]
    for start, end in entities(text, biasing):
        assert 0 <= start < end <= len(text)
    each = entity_weights([bytes([byte]) for byte in raw], biasing, gain=2).tolist()
    cut = random.randint(0, len(raw))
    expected = [max(part, default=1.0) for part in (each[:cut], each[cut:])]
    assert entity_weights([raw[:cut], raw[cut:]], biasing, gain=2).tolist() == expected
