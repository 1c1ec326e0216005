"""Lists of a stage: the words that distractors of a step are drawn from."""

import time
from collections import OrderedDict

import pytest

from rlspeech.config_rlbr import ListsConfig
from rlspeech.data.mixing import batch_of_step
from rlspeech.stages.biasing_lists import Lists
from rlspeech.stages.hearing import Data, Recording
from rlspeech.types import Sample

ROWS = 10
EPOCH = 5  # steps, of 2 rows


def lists(rows: int = ROWS, *, batch: int = 2, buffer: int = 3, seed: int = 0) -> Lists:
    """Row i says a rare word of its own and one that it shares with the row after or before it."""
    samples = [Sample(f"{row}", "?", rare_words=(f"own{row}", f"shared{row // 2}")) for row in range(rows)]
    train = [Recording((sample,), ()) for sample in samples]
    return Lists.of(ListsConfig(options={"buffer": buffer}), Data(train, {}), batch=batch, seed=seed)


@pytest.mark.parametrize("buffer", [3, 1000])
@pytest.mark.parametrize("step", [0, 1, 4, 5, 8, 12])
def test_a_run_that_is_resumed_draws_from_the_words_that_one_without_a_break_has(step: int, buffer: int) -> None:
    """As a buffer of the latest words that sees the epoch before the step pass by, one row after the other."""
    passing: OrderedDict[str, None] = OrderedDict()
    for earlier in range(step - EPOCH, step):
        for row in batch_of_step(earlier, size=ROWS, batch=2, seed=7):
            for word in (f"own{row}", f"shared{row // 2}"):
                passing[word] = None
                passing.move_to_end(word)
    assert lists(buffer=buffer, seed=7).words_before(step) == tuple(reversed(passing))[:buffer]


def test_a_step_draws_from_other_words_than_the_one_before() -> None:
    assert lists().words_before(3) != lists().words_before(4)
    assert lists().words_before(3) != lists(seed=1).words_before(3)


def test_the_words_before_a_step_of_a_large_set_are_there_at_once() -> None:
    large = lists(20_000, batch=32, buffer=5_000)
    begin = time.perf_counter()
    assert len(large.words_before(100)) == 5_000
    assert time.perf_counter() - begin < 5
