"""`rlspeech reward try`: a reward over recorded rollouts."""

import json
from pathlib import Path

import pytest

from rlspeech.cli import main
from rlspeech.stages.reward import read_rollouts


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
        ("[1]", "rollouts.jsonl:1: not a recorded rollout (no JSON object)"),
        (
            '{"id": "a", "instruction": "?", "reply": 7}',
            "rollouts.jsonl:1: not a recorded rollout (reply is 7, no text)",
        ),
        ('{"id": "a", "instruction": "?", "reply": null}', "not a recorded rollout (reply is null, no text)"),
        ('{"id": "a", "instruction": "?", "reply": "", "rare_words": [1]}', "(rare_words is no list of texts)"),
        ("\udcff", "rollouts.jsonl: not UTF-8 text; --on wants the rollouts.jsonl of a run"),
    ],
)
def test_a_record_that_is_none_is_one_line(text: str, line: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "rollouts.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["reward", "try", "wer", f"--on={tmp_path}/rollouts.jsonl"]) == 2
    assert line in capsys.readouterr().err


def test_a_record_is_read_whatever_characters_its_replies_hold(tmp_path: Path, capsys) -> None:
    row = {"id": "a", "instruction": "?", "reference": None, "reply": "one\u2028two\u0085three", "tokens": ["x", "y"]}
    (tmp_path / "rollouts.jsonl").write_text((json.dumps(row, ensure_ascii=False) + "\n") * 2)
    (one, other) = read_rollouts(tmp_path / "rollouts.jsonl")
    assert (one.rollout.completion.text, one.rollout.completion.token_ids) == ("one\u2028two\u0085three", ())
    assert one == other


def test_a_file_to_write_is_looked_at_before_the_reward_is(tmp_path: Path, capsys) -> None:
    assert main(["reward", "try", "wer", f"--on={tmp_path}/none.jsonl", f"--out={tmp_path}"]) == 2
    assert "a folder, where a file is to be written" in capsys.readouterr().err
