"""`rlspeech rlbr` from its recipe to its checkpoint, with small models: groups, lists, rewards, records, resuming."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlspeech.cli import main
from rlspeech.config import SynthConfig
from rlspeech.stages import synth


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calls")
    synth.run(SynthConfig(synth="calls", out=out, sets={"train": 8, "test": 4}, noise_share=0))
    return out


def arguments(calls: Path, student: Path, run_dir: Path, *more: str) -> list[str]:
    data = [f"--data.train={calls}/train.jsonl", f"--data.tests.test={calls}/test.jsonl", "--quiet", "--threads=1"]
    few = ["--optim.steps=2", "--optim.batch=2", "--sampling.n=3", "--sampling.max-tokens=24", "--held-out.samples=2"]
    return ["rlbr", "tiny/rlbr", f"--student={student}", f"--run-dir={run_dir}", *data, *few, *more]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_learns_from_groups_with_the_reference_and_tells_of_them(calls, small_student, tmp_path) -> None:
    run = tmp_path / "run"
    lists = "--lists.options={present = 1.0, size_low = 3, size_high = 5}"
    assert main(arguments(calls, small_student, run, lists)) == 0
    rows = lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert "held_out/test_10_b_wer" in rows[0]
    for row in rows[1:]:
        assert row["groups/reference_share"] == 1
        assert row["groups/reference_best_share"] == 1  # a random model never writes the transcript
        assert row["groups/reference_advantage"] > 0
        assert row["reward/biasing"] == row["reward/sum"] < 0
        assert row["train/ratio"] == pytest.approx(1)
        assert row["kl/sampler_learner_max_nats"] < 1e-3
    recorded = lines(run / "rollouts.jsonl")
    assert [row["origin"] for row in recorded[:4]] == ["sampled", "sampled", "sampled", "reference"]
    assert recorded[3]["reply"] == recorded[3]["reference"]
    assert recorded[3]["reward"] == 0
    assert recorded[3]["finish"] == "stop"
    for first, *others in (recorded[start : start + 4] for start in range(0, len(recorded), 4)):
        assert all(row["biasing_words"] == first["biasing_words"] for row in others)  # one list a group
        assert sum(row["advantage"] for row in (first, *others)) == pytest.approx(0, abs=1e-3)
    assert recorded[0]["biasing_words"] != recorded[8]["biasing_words"]
    assert (run / "checkpoint" / "config.json").is_file()


@pytest.mark.parametrize("mode", ["off", "replace_worst", "replace_duplicate"])
def test_every_way_of_joining_is_a_setting(mode: str, calls, small_student, tmp_path) -> None:
    run = tmp_path / "run"
    assert main(arguments(calls, small_student, run, f"--groups.reference={mode}", "--optim.steps=1")) == 0
    told = lines(run / "metrics.jsonl")[1]
    assert told["groups/reference_share"] == {"off": 0, "replace_worst": 1, "replace_duplicate": 0}[mode]
    origins = [row["origin"] for row in lines(run / "rollouts.jsonl")]
    assert len(origins) == 6
    assert origins.count("reference") == (2 if mode == "replace_worst" else 0)


def test_several_updates_hold_on_to_the_policies_before_them(calls, small_student, tmp_path) -> None:
    """The gap to the sampler is that of the learner before its updates; the divergence from the start grows."""
    run = tmp_path / "run"
    more = ["--updates=2", "--loss-options.kl_beta=0.1", "--optim.lr=1e-3", "--optim.warmup-steps=0"]
    assert main(arguments(calls, small_student, run, *more)) == 0
    first, second = lines(run / "metrics.jsonl")[1:]
    assert first["train/ratio"] != pytest.approx(1, abs=1e-5)  # as the second update found it
    assert first["kl/sampler_learner_max_nats"] < 1e-3  # the learner before its updates, all the same
    assert 0 < first["kl/train_nats"] < second["kl/train_nats"]


def test_the_best_and_the_worst_of_more_replies_are_kept(calls, small_student, tmp_path) -> None:
    run = tmp_path / "run"
    assert main(arguments(calls, small_student, run, "--groups.oversample=2", "--optim.steps=1")) == 0
    assert len(lines(run / "rollouts.jsonl")) == 2 * (3 + 1)


FLAT = """
def alike(completions, id, origin, **columns):
    # the first sample that is judged has a group without spread
    return [0.0 if one == id[0] else float(len(text)) for one, text in zip(id, completions)]
"""


def test_groups_without_spread_are_replaced_by_other_samples(calls, small_student, tmp_path) -> None:
    """One group of the first two is flat; the one in its place is the first of a round of its own, and flat as well."""
    (tmp_path / "mine.py").write_text(FLAT)
    reward = f"--rewards={{mine = {{reward = '{tmp_path}/mine.py:alike'}}}}"
    told, drawn = {}, {}
    for rounds in (0, 2):
        run = tmp_path / f"run{rounds}"
        more = [reward, "--groups.reference=off", f"--groups.refill-rounds={rounds}", "--optim.steps=1"]
        assert main(arguments(calls, small_student, run, *more)) == 0
        told[rounds] = lines(run / "metrics.jsonl")[1]
        drawn[rounds] = list(dict.fromkeys(row["id"] for row in lines(run / "rollouts.jsonl")))
    assert "groups/refilled" not in told[0]
    assert told[2]["groups/refilled"] == 2
    assert [told[rounds]["groups/no_spread_share"] for rounds in (0, 2)] == [0.5] * 2  # that is kept which is last
    assert drawn[0][1] == drawn[2][0]  # the one with spread stays
    assert told[2]["data/audio_s"] > told[0]["data/audio_s"]  # all that was heard is told of


def test_a_run_that_no_reward_judges_is_stopped(calls, small_student, tmp_path, capsys) -> None:
    (tmp_path / "mute.py").write_text("def mute(completions, **columns):\n    return [None] * len(completions)\n")
    reward = f"--rewards={{mute = {{reward = '{tmp_path}/mute.py:mute'}}}}"
    more = [reward, "--optim.steps=9", "--guard.patience=2"]
    assert main(arguments(calls, small_student, tmp_path / "run", *more)) == 1
    assert "step 2: rewards: mute gave no reply a value for 2 steps; nothing is lost" in capsys.readouterr().err


def test_lists_without_a_rare_word_to_put_in_are_one_line(calls, small_student, tmp_path, capsys) -> None:
    rows = [row | {"rare_words": [], "audio": str(calls / row["audio"])} for row in lines(calls / "train.jsonl")]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(arguments(calls, small_student, tmp_path / "run", f"--data.train={tmp_path}/bare.jsonl")) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "no rare_words, nor has any other row; add the column, or name a file" in told


def test_a_run_that_was_cut_off_ends_as_an_uncut_one(calls, small_student, tmp_path, monkeypatch) -> None:
    """The cut: an interrupt in step 3 of 3, with two updates a step; the lists of its step are the same again."""
    from rlspeech.engines.learner_torch import TorchLearner

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = ["--checkpoints.every-steps=1", "--optim.steps=3", "--updates=2", "--loss-options.kl_beta=0.1"]
    assert main(arguments(calls, small_student, whole, *given)) == 0
    step = TorchLearner.step

    def interrupted(self, *args, **kwargs):
        if self.steps_done == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TorchLearner, "step", interrupted)
        assert main(arguments(calls, small_student, cut, *given)) == 130
    assert main(arguments(calls, small_student, cut, *given, "--resume")) == 0
    assert lines(cut / "rollouts.jsonl") == lines(whole / "rollouts.jsonl")
    timed = ("time/", "tokens_per_s")
    ours, theirs = (
        [{k: v for k, v in row.items() if not any(t in k for t in timed)} for row in lines(run / "metrics.jsonl")]
        for run in (cut, whole)
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--loss=k1", "loss = 'k1': knows no advantages (advantages_of, shares, idle), as grpo does"),
        ("--rewards={}", "rewards is empty: name one, such as [rewards.biasing]"),
        ("--lists.options={seed = 1}", "lists.options.seed: comes from seed; leave it out of the options"),
        ("--engines.teacher=vllm", "this stage has no teacher"),
        ("--groups.reference=off --groups.reference-counts=false", "groups.reference_counts = false: cannot act"),
        ('--lists={synth = "exchanges"}', "draws no lists (a method draw), as bias_words does"),
    ],
)
def test_bad_settings_are_one_line(given: str, line: str, calls, small_student, tmp_path, capsys) -> None:
    given = given.split(" --")
    more = [given[0], *(f"--{one}" for one in given[1:])]
    assert main(arguments(calls, small_student, tmp_path / "run", *more)) == 2
    told = capsys.readouterr().err.strip()
    assert line in told
    assert "\n" not in told
    assert not (tmp_path / "run").exists()
