"""Workers of a role under kill -9 and SIGSTOP: every piece is done, each is counted once."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from rlspeech.config_engines import ClusterConfig
from rlspeech.engines.cluster import Actor, Cluster, Worker
from rlspeech.engines.pool import Pool, RoleLost
from rlspeech.errors import UserError


class Squares(Worker):
    """Squares numbers, slowly; it has to be told the offset, as a sampler has to be told the weights."""

    offset: int | None = None

    def start(self) -> None:
        self.progress += 1

    def tell(self, offset: int) -> None:
        self.offset = offset

    def square(self, number: int) -> tuple[int, int]:
        time.sleep(0.2)
        self.progress += 1
        if number < 0:
            raise UserError(f"{number}: negative; give a number above 0")
        assert self.offset is not None, "it was given work before it was made ready"
        return number * number + self.offset, os.getpid()


@pytest.fixture
def pool(cluster: Cluster) -> Iterator[Pool]:
    pool = Pool.begin("square", cluster, lambda place: cluster.actor(Squares, name=f"square {place}"), 2)
    pool.ready = lambda actor: cluster.all({actor.call("tell", 100): actor})
    pool.await_start()
    pool.tell_all("tell", 100)
    yield pool
    for actor in [*pool.workers.values(), *(actor for _, actor in pool.starting.values())]:
        cluster.kill(actor)


def square(actor: Actor, number: int):
    return actor.call("square", number)


def strike(pool: Pool, how: signal.Signals, after_s: float) -> threading.Timer:
    """Sends the signal to the first worker's process in the middle of a run."""
    pid = pool.cluster.all({(actor := pool.workers[0]).call("square", 1): actor})[0][1]
    timer = threading.Timer(after_s, os.kill, (pid, how))
    timer.start()
    return timer


def test_pieces_are_shared_and_come_back_in_their_order(pool: Pool) -> None:
    done = pool.run(list(range(8)), square)
    assert [value for value, _ in done] == [number**2 + 100 for number in range(8)]
    assert len({pid for _, pid in done}) == 2


def test_a_killed_worker_loses_nothing_and_is_replaced_with_what_it_has_to_know(pool: Pool) -> None:
    strike(pool, signal.SIGKILL, 0.5)
    done = pool.run(list(range(40)), square)
    assert [value for value, _ in done] == [number**2 + 100 for number in range(40)]
    assert pool.restarts == 1
    assert len({pid for _, pid in done}) == 3  # the two of the start and the replacement


def test_a_worker_that_hangs_is_taken_for_dead(pool: Pool) -> None:
    strike(pool, signal.SIGSTOP, 0.3)
    done = pool.run(list(range(12)), square)
    assert [value for value, _ in done] == [number**2 + 100 for number in range(12)]
    assert pool.restarts == 1


def test_what_a_worker_raises_reaches_the_caller_as_it_was_raised(pool: Pool) -> None:
    with pytest.raises(UserError, match="-3: negative; give a number above 0"):
        pool.run([1, -3], square)


def test_a_role_that_dies_again_and_again_is_given_up(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.cluster, "settings", ClusterConfig(heartbeat_s=0.2, max_restarts=0))
    strike(pool, signal.SIGKILL, 0.1)
    with pytest.raises(RoleLost, match=r"square 0: died; square workers were lost 1 times, cluster.max_restarts is 0"):
        pool.run(list(range(10)), square)
