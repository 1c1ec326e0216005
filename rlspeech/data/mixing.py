"""Which recordings a step learns from: a function of the seed and the step alone, so that a resumed run goes on."""

import random
from collections.abc import Sequence
from functools import lru_cache


def batch_of_step(step: int, *, size: int, batch: int, seed: int) -> Sequence[int]:
    """Indices in 0..size-1 of the step's batch: every epoch is a new order of all, without gaps between epochs.

    >>> sorted([*batch_of_step(0, size=4, batch=2, seed=0), *batch_of_step(1, size=4, batch=2, seed=0)])
    [0, 1, 2, 3]
    """
    if size < 1:
        raise ValueError("nothing to draw from")
    chosen = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, index = divmod(place, size)
        chosen.append(_order(size, seed, epoch)[index])
    return chosen


@lru_cache(maxsize=4)  # shuffled once an epoch, not once a sample
def _order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(size))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)
