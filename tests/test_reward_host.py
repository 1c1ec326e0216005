"""Rewards in processes of their own: how they end, and what is told of it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlspeech.config_rewards import RewardConfig
from rlspeech.engines import reward_host
from rlspeech.engines.reward_host import RewardHost
from rlspeech.errors import RunFailed
from rlspeech.types import Completion, Prompt, Rollout, Sample

ROLLOUTS = [
    Rollout(Sample(f"s{i}", "?", reference="a"), Prompt((1,)), Completion((7, 8), (), text, "stop"))
    for i, text in enumerate(["a", "ab", "abc", "abcd"])
]
MANY = [*ROLLOUTS[:3], Rollout(Sample("s3", "?" * 2_000_000), Prompt(()), Completion((), (), "abcd", "stop"))]

ONLY_IN_A_WORKER = "import multiprocessing\nif multiprocessing.parent_process(): "
ONE = "\ndef f(completions, **columns): return [1.0] * len(completions)\n"


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str, *, name: str = "f", **settings: float) -> RewardConfig:
        (tmp_path / "mine.py").write_text(text)
        return RewardConfig(reward=f"{tmp_path}/mine.py:{name}", **settings)

    return write


def told(settings: RewardConfig, rollouts=ROLLOUTS) -> str:
    """What the run ends with, without the reward's name."""
    with RewardHost.of({"it": settings}) as host:
        host.start()
        with pytest.raises(RunFailed) as failed:
            host.score(rollouts)
    return str(failed.value).removeprefix(f"reward 'it' ({settings.reward}): ")


def values(settings: RewardConfig) -> list[float | None]:
    with RewardHost.of({"it": settings}) as host:
        return host.score(ROLLOUTS).parts["it"]


@pytest.mark.parametrize("rollouts", [ROLLOUTS, MANY], ids=["few", "more than a pipe holds"])
def test_a_reward_that_cannot_be_loaded_in_its_process_is_told_without_a_sample(written, rollouts) -> None:
    settings = written(f"{ONLY_IN_A_WORKER}raise OSError('no card left')\n{ONE}")
    assert told(settings, rollouts).endswith("no card left while it was loaded")
    assert told(written(f"{ONLY_IN_A_WORKER}__import__('os')._exit(4)\n{ONE}"), rollouts) == (
        "ended its process (status 4) while it was loaded"
    )


def test_a_reward_that_hangs_while_it_is_loaded_is_ended_in_time(written, monkeypatch) -> None:
    """Its pipe holds less than what is sent to it."""
    monkeypatch.setattr(reward_host, "START_S", 1.0)
    started_s = time.monotonic()
    assert told(written(f"{ONLY_IN_A_WORKER}__import__('time').sleep(60)\n{ONE}"), MANY) == ("was not ready within 1 s")
    assert time.monotonic() - started_s < 20


def test_a_process_that_is_killed_between_two_steps_is_told(written) -> None:
    with RewardHost.of({"it": written(ONE)}) as host:
        assert host.score(ROLLOUTS).total == [1.0] * 4
        os.kill(host.workers[0].process.pid, signal.SIGKILL)
        host.workers[0].process.join()
        with pytest.raises(RunFailed) as failed:
            host.score(ROLLOUTS)
        assert str(failed.value).endswith("mine.py:f): ended its process (status -9) between two steps")
        assert host.score(ROLLOUTS).total == [1.0] * 4  # a new one is started


def test_the_command_tells_a_dead_reward_and_ends_with_status_1(written, tmp_path: Path) -> None:
    settings = written(f"{ONLY_IN_A_WORKER}raise OSError('no card left')\n{ONE}")
    (tmp_path / "rollouts.jsonl").write_text(json.dumps({"id": "a", "instruction": "?", "reply": "x" * 2_000_000}))
    words = ["reward", "try", settings.reward, f"--on={tmp_path}/rollouts.jsonl"]
    done = subprocess.run([sys.executable, "-m", "rlspeech", *words], capture_output=True, text=True)
    assert done.returncode == 1
    assert "rlspeech: failed: reward 'it'" in done.stderr
    assert "no card left while it was loaded" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_value_that_is_none_is_told_with_its_sample_where_it_does_not_come_again(written) -> None:
    code = (
        "CALLS = []\ndef f(completions, **columns):\n    CALLS.append(1)\n"
        "    return [float('nan') if len(CALLS) == 1 and text == 'abcd' else 0.0 for text in completions]\n"
    )
    assert told(written(code)) == "gave nan, for a reply to s3"


def test_time_outs_of_several_rewards_do_not_add_up(written, tmp_path: Path) -> None:
    """The second one has had its time when the first one has used it up."""
    slow = "import time\ndef f(completions, **columns):\n    time.sleep({})\n    return [0.0] * len(completions)\n"
    settings = {"first": written(slow.format(2.0), timeout_s=20)}
    (tmp_path / "other.py").write_text(slow.format(3.0))
    settings["second"] = RewardConfig(reward=f"{tmp_path}/other.py:f", timeout_s=1.5)
    with RewardHost.of(settings) as host, pytest.raises(RunFailed) as failed:
        host.score(ROLLOUTS[:1])
    assert "other.py:f): took more than timeout_s = 1.5 s, for a reply to s0" in str(failed.value)


def test_a_class_whose_call_is_a_coroutine_is_awaited(written) -> None:
    code = (
        "import asyncio\nfrom dataclasses import dataclass\n@dataclass(frozen=True)\nclass Reward:\n"
        "    async def __call__(self, rollouts):\n        await asyncio.sleep(0.01)\n"
        "        return [len(one.completion.text) for one in rollouts]\n"
    )
    assert values(written(code, name="Reward")) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "given",
    [
        "[np.float32(1.5), np.float64(2.0), np.int64(3), None]",
        "(1.5, 2, fractions.Fraction(3), None)",
        "[np.array(1.5), np.array([2.0]), torch.tensor(3), None]",
    ],
)
def test_numbers_of_numpy_and_torch_are_numbers(written, given: str) -> None:
    code = f"import fractions, torch, numpy as np\ndef f(completions, **columns): return {given}\n"
    assert values(written(code)) == [1.5, 2.0, 3.0, None]


@pytest.mark.parametrize("given", ["np.array([1.5, 2, 3, 4])", "torch.tensor([1.5, 2, 3, 4])"])
def test_an_array_and_a_tensor_are_lists(written, given: str) -> None:
    code = f"import torch, numpy as np\ndef f(completions, **columns): return {given}\n"
    assert values(written(code)) == [1.5, 2, 3, 4]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("[0, 0, True, 0]", "gave True, which is no number, for a reply to s2"),
        ("[0, np.True_, 0, 0]", "gave np.True_, which is no number, for a reply to s1"),
        ("[0, 0, 0, np.zeros(2)]", "gave array([0., 0.]), which is no number, for a reply to s3"),
        ("[0, 10 ** 400, 0, 0]", "gave inf, for a reply to s1"),
        ("'abcd'", "gave str, not a list of numbers, for a reply to s0"),
        ("[0, object, 0, (i for i in [])]", "gave <class 'object'>, which is no number, for a reply to s1"),
    ],
)
def test_what_is_no_number_is_one_line(written, given: str, line: str) -> None:
    code = f"import numpy as np\ndef f(completions, **columns): return {given}\n"
    assert told(written(code)) == line


def test_tokens_are_those_of_the_reply_and_none_where_a_record_has_none(written) -> None:
    code = "def f(completions, completion_ids, **columns): return [ids and sum(ids) for ids in completion_ids]\n"
    with RewardHost.of({"it": written(code)}) as host:
        assert host.score([MANY[0], MANY[3]]).parts["it"] == [15, None]


OURS = """
import asyncio, math, os, time
def good(completions, reference, tone, **columns):
    assert len(completions) == len(reference) == len(tone) == len(columns["rare_words"])
    return [float(len(text)) + (1 if one == "loud" else 0) for text, one in zip(completions, tone)]
async def later(completions, **columns):
    await asyncio.sleep(0.01)
    return [1.0 for _ in completions]
def raises(completions, **columns):
    if "bad" in completions: raise KeyError("no such column")
    return [0.0] * len(completions)
def hangs(completions, **columns):
    if "bad" in completions: time.sleep(60)
    return [0.0] * len(completions)
def nan(completions, **columns):
    return [math.nan if text == "bad" else 0.0 for text in completions]
def short(completions, **columns):
    return [0.0] * (len(completions) - ("bad" in completions))
def words(completions, **columns):
    return ["x" if text == "bad" else 1.0 for text in completions]
def scalar(completions, **columns):
    return 1.0
def dies(completions, **columns):
    if "bad" in completions: os._exit(3)
    return [0.0] * len(completions)
def together(completions, **columns):
    if len(completions) > 2: raise ValueError("too many")
    return [0.0] * len(completions)
"""


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "ours.py"
    file.write_text(OURS)
    return file


TONED = [
    Rollout(
        Sample(f"s{i}", "?", reference="a", tags={"tone": "loud" if i == 1 else "soft"}),
        Prompt((1,)),
        Completion((), (), text, "stop"),
    )
    for i, text in enumerate(["a", "ab", "bad", "abc"])
]


def test_trl_functions_and_coroutines_are_called_as_trl_does(ours: Path) -> None:
    settings = {
        "sum": RewardConfig(reward=f"{ours}:good", weight=2.0),
        "later": RewardConfig(reward=f"{ours}:later", weight=0.5),
        "wer": RewardConfig(reward="wer"),
    }
    with RewardHost.of(settings) as host:
        found = host.score(
            [*TONED, replace(TONED[0], sample=Sample("s4", "?"), completion=Completion((), (), "abcd", "stop"))]
        )
        again = host.score(TONED[:1])
    assert found.parts["sum"] == [1, 3, 3, 3, 4]
    assert found.parts["later"] == [1] * 5
    assert found.parts["wer"] == [0, -1, -1, -1, None]
    assert found.total == [2.5, 5.5, 5.5, 5.5, 8.5]  # what has no value is left out of the sum
    assert again.total == [2.5]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("raises", "raised KeyError: 'no such column', for a reply to s2"),
        ("hangs", "took more than timeout_s = 1 s, for a reply to s2"),
        ("nan", "gave nan, for a reply to s2"),
        ("short", "gave 0 values for 1 replies, for a reply to s2"),
        ("words", "gave 'x', which is no number, for a reply to s2"),
        ("scalar", "gave float, not a list of numbers, for a reply to s0"),
        ("dies", "ended its process (status 3), for a reply to s2"),
        ("together", "raised ValueError: too many, for 4 replies together (the first: s0)"),
    ],
)
def test_a_reward_that_fails_is_one_line_with_the_sample(function: str, line: str, ours: Path) -> None:
    settings = {"mine": RewardConfig(reward=f"{ours}:{function}", timeout_s=1)}
    with RewardHost.of(settings) as host, pytest.raises(RunFailed) as told:
        host.score(TONED)
    assert str(told.value) == f"reward 'mine' ({ours}:{function}): {line}"
