"""The shipped rewards, by hand; and rewards in processes of their own, with everything that can go wrong there."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlspeech.cli import main
from rlspeech.config_rewards import RewardConfig
from rlspeech.engines.reward_functions import load_reward
from rlspeech.engines.reward_host import RewardHost
from rlspeech.errors import RunFailed
from rlspeech.types import Completion, Prompt, Rollout, Sample


def rollout(reference: str | None, reply: str, *, finish: str = "stop", name: str = "s1", **sample: Any) -> Rollout:
    made = Sample(name, "Transcribe.", reference=reference, **sample)
    return Rollout(made, Prompt((1,)), Completion(tuple(range(len(reply))), (), reply, finish))  # type: ignore[arg-type]


def value(name: str, one: Rollout, **options: Any) -> float | None:
    (found,) = load_reward(name, options)([one])
    return found


LISTED = {"rare_words": ("Kowal", "Ann Lee"), "biasing_words": ("Kowal", "Ann Lee", "Art", "Bo Diddley")}


@pytest.mark.parametrize(
    ("reference", "reply", "options", "expected"),
    [
        ("call Kowal now", "Call, Kowal: now!", {}, 0),
        ("call Kowal now", "call koval", {}, -2),
        ("call Kowal now", "", {}, -3),
        ("call *Kowal* now", "call Kowal now", {}, 0),  # a mark that is missing is no word that is
        ("call Kowal now", "a b c d e f", {"cap": 2.0}, -2),
        ("call Kowal now", "call koval", {"rate": True}, -2 / 3),
        ("call Kowal", "call Kowl", {"unit": "characters"}, -1),
        ("", "well", {}, -1),
        ("", "well", {"rate": True}, None),
        (None, "well", {}, None),
    ],
)
def test_wer(reference: str | None, reply: str, options: dict[str, Any], expected: float | None) -> None:
    assert value("wer", rollout(reference, reply), **options) == expected


@pytest.mark.parametrize(
    ("reply", "options", "expected"),
    [
        ("start Kowal and Ann Lee", {}, 0),
        ("start Koval and Ann Lee", {}, -(1 + 5)),
        ("start Kowal and An Lee", {}, -(1 + 5)),
        ("begin Kowal and Ann Lee", {}, -1),
        ("start Kowal and Ann Lee art", {}, -(1 + 1)),  # listed, and not said
        ("start Kowal and Ann Lee Bo Diddley", {"false_insertion": 3.0}, -(2 + 3)),
        ("art Kowal and Ann Lee", {}, -(1 + 1)),  # "art" is in "start", and is not said
        ("start Kowal Kowal and Ann Lee", {}, -(1 + 5 + 1)),  # inserted, rare, and once too often
        ("", {}, -(5 + 15)),
        ("", {"cap": 4.0}, -4),
        ("start Koval and Ann Lee", {"rate": True}, -(1 / 5 + 5 / 3)),
        ("start Kowl and Ann Lee", {"unit": "characters"}, -(1 + 5)),
        ("start Kl and Ann Lee", {"unit": "characters", "whole": 0.0}, -15),
    ],
)
def test_biasing(reply: str, options: dict[str, Any], expected: float) -> None:
    one = rollout("start Kowal and Ann Lee", reply, **LISTED)
    assert value("biasing", one, **options) == pytest.approx(expected)


def test_biasing_without_a_reference_is_nothing() -> None:
    assert value("biasing", rollout(None, "a", **LISTED)) is None
    assert value("biasing", rollout("", "a"), rate=True) is None


@pytest.mark.parametrize(
    ("reference", "reply", "expected"),
    [
        ("call *Ann Lee* and *Bo*", "call *Ann Lee* and *Bo*", 1),
        ("call *Ann Lee* and *Bo*", "call *Ann Lee* and Bo", 2 / 3),
        ("call *Ann Lee* and *Bo*", "*call* *Ann Lee* and *Bo*", 4 / 5),
        ("call *Ann Lee* and *Bo*", "call *Ann Lee*", 1),  # what is not written is no matter of marks
        ("call Bo", "call Bo", None),
        (None, "*Bo*", None),
    ],
)
def test_marks_are_judged_apart_from_words(reference: str | None, reply: str, expected: float | None) -> None:
    assert value("marks", rollout(reference, reply)) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("reply", "finish", "expected"),
    [
        ("a b c d", "stop", 0),
        ("a b c d e f g h", "stop", -0.5),
        ("a", "stop", -0.25),
        ("", "stop", -0.5),
        ("a b c d", "length", -1),
    ],
)
def test_length(reply: str, finish: str, expected: float) -> None:
    assert value("length", rollout("the cat sat here", reply, finish=finish)) == pytest.approx(expected)
    assert value("length", rollout("", reply, finish=finish)) is None


def test_repetition() -> None:
    assert value("repetition", rollout(None, "all is well")) == 0
    looping = value("repetition", rollout(None, "how to get away " * 6))
    assert looping is not None
    assert looping < -0.5
    assert value("repetition", rollout(None, "how to get away " * 6), allowed=1.0) == 0


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("wer", {"cap": 0}, "cap must be positive, got 0"),
        ("biasing", {"biasing": -1}, "weights must not be negative"),
        ("biasing", {"unit": "letters"}, "'words' or 'characters'"),
        ("length", {"shortest": 2}, "shortest in 0..1"),
        ("bising", {}, "did you mean 'biasing'?"),
    ],
)
def test_a_setting_that_cannot_be_is_told_before_anything_starts(name: str, options: dict[str, Any], line: str) -> None:
    from rlspeech.errors import UserError

    with pytest.raises(UserError) as told:
        RewardHost.of({"it": RewardConfig(reward=name, options=options)})
    assert line in str(told.value)


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


ROLLOUTS = [
    rollout("a", text, name=f"s{i}", tags={"tone": "loud" if i == 1 else "soft"})
    for i, text in enumerate(["a", "ab", "bad", "abc"])
]


def test_trl_functions_and_coroutines_are_called_as_trl_does(ours: Path) -> None:
    settings = {
        "sum": RewardConfig(reward=f"{ours}:good", weight=2.0),
        "later": RewardConfig(reward=f"{ours}:later", weight=0.5),
        "wer": RewardConfig(reward="wer"),
    }
    with RewardHost.of(settings) as host:
        found = host.score([*ROLLOUTS, rollout(None, "abcd", name="s4")])
        again = host.score(ROLLOUTS[:1])
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
        host.score(ROLLOUTS)
    assert str(told.value) == f"reward 'mine' ({ours}:{function}): {line}"


def test_try_tells_how_a_reward_spreads_over_recorded_rollouts(tmp_path: Path, capsys) -> None:
    rows = [
        {"step": 1, "id": "a", "instruction": "?", "reference": "call Bo", "reply": reply, "rare_words": ["Bo"]}
        for reply in ("call Bo", "call Bob", "call")
    ] + [{"step": 1, "id": "b", "instruction": "?", "reference": None, "reply": "x"}]
    (tmp_path / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "told.json"
    assert main(["reward", "try", "biasing", f"--on={tmp_path}/rollouts.jsonl", f"--out={out}"]) == 0
    told = json.loads(out.read_text())
    assert [row["value"] for row in told["replies"]] == [0, -6, -6, None]
    assert (told["replies"][0]["id"], told["none"], told["groups"], told["no_spread"]) == ("a", 1, 1, 0)
    assert told["mean"] == -4
    shown = capsys.readouterr().out
    assert "4 replies, 1 without a value" in shown
    assert "call Bob" in shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no rollouts are recorded in it"),
        ('{"id": "a"}', "rollouts.jsonl:1: not a recorded rollout (no 'instruction')"),
        ("{", "rollouts.jsonl:1: not a recorded rollout"),
    ],
)
def test_a_record_that_is_none_is_one_line(text: str, line: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "rollouts.jsonl").write_text(text)
    assert main(["reward", "try", "wer", f"--on={tmp_path}/rollouts.jsonl"]) == 2
    assert line in capsys.readouterr().err
