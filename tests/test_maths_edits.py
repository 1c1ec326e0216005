import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlspeech.maths.edits import Edits, edits, word_error_rate

sentence = st.lists(st.sampled_from(["a", "b", "c"]), max_size=8)


def test_edits_worked_by_hand():
    assert edits(["the", "cat", "sat"], ["the", "bat", "sat", "down"]) == Edits(1, 1, 0, 3)
    assert edits(["a", "b"], []) == Edits(0, 0, 2, 2)
    assert edits([], ["a", "b"]) == Edits(0, 2, 0, 0)
    assert edits([], []) == Edits(0, 0, 0, 0)


@given(sentence, sentence)
def test_the_edits_turn_one_length_into_the_other_and_are_few(reference: list[str], hypothesis: list[str]):
    found = edits(reference, hypothesis)
    assert len(reference) + found.insertions - found.deletions == len(hypothesis)
    assert abs(len(reference) - len(hypothesis)) <= found.errors <= max(len(reference), len(hypothesis))
    assert (found.errors == 0) == (reference == hypothesis)


@given(st.lists(st.tuples(sentence.filter(bool), sentence), min_size=1, max_size=4))
def test_jiwer_counts_the_same_word_error_rate(pairs: list[tuple[list[str], list[str]]]):
    theirs = jiwer.wer([" ".join(reference) for reference, _ in pairs], [" ".join(said) for _, said in pairs])
    assert word_error_rate(pairs) == pytest.approx(theirs)


def test_the_rate_of_a_corpus_is_not_the_mean_of_the_rates():
    assert word_error_rate([(["a"], ["b"]), (["a", "b", "c"], ["a", "b", "c"])]) == 0.25


def test_no_reference_words_have_no_rate_but_add_their_insertions_to_others():
    assert word_error_rate([]) is None
    assert word_error_rate([([], ["a"])]) is None
    assert word_error_rate([([], ["a"]), (["b", "c"], ["b", "c"])]) == 0.5


def test_a_text_is_not_taken_for_its_letters():
    with pytest.raises(TypeError, match="lists of words"):
        edits("a text", ["a", "text"])
