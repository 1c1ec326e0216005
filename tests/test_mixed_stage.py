"""The settings of the objective through the whole stage, on small random-weight models."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rlspeech.cli import main
from rlspeech.stages import rollout_records


@pytest.fixture(autouse=True)
def _threads_as_they_were() -> Iterator[None]:
    """The command sets them for its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(small_student: Path, small_teacher: Path, spoken: Path) -> list[str]:
    """`distill` of three steps of two audios, one instruction each, without its run folder."""
    tests = [f"--data.tests.{name}={spoken / name}.jsonl" for name in ("test_voice", "test_text")]
    models = [f"--student={small_student}", f"--teacher={small_teacher}", f"--data.train={spoken}/train.jsonl"]
    size = ["--optim.steps=3", "--optim.batch=2", "--optim.micro-batch=1", "--sampling.max-tokens=6"]
    return [
        "distill",
        "tiny/distill",
        *models,
        *tests,
        *size,
        "--data.kinds=transcribe",
        "--held-out.samples=1",
        "--held-out.every-steps=99",
        "--threads=1",  # waiting threads would spin on cores that others use
        "--quiet",
    ]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return lines(folder / "metrics.jsonl")


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "time/" not in name and "tokens_per_s" not in name}


def test_the_teachers_own_replies_are_learned_beside_the_students(command, tmp_path) -> None:
    """With k1 too: it does not see them. Half of the weight: the loss is the sum of the two means."""
    for loss in ("reverse_kl", "k1"):
        assert main([*command, f"--run-dir={tmp_path / loss}", f"--loss={loss}", "--mixed.sft-weight=0.5"]) == 0
        for row in metrics(tmp_path / loss)[1:]:
            assert row["train/sft_nats"] > 5  # random weights know nothing of 49k tokens
            assert row["rollout/teacher_share"] == 0
            assert row["time/write_s"] > 0
            if loss == "reverse_kl" and not row["kl/clipped_share"]:
                weight = row["importance/mean_weight"]
                assert weight == pytest.approx(1, abs=1e-3)
                assert row["train/loss"] == pytest.approx(row["kl/train_nats"] + 0.5 * row["train/sft_nats"], rel=1e-3)


def test_a_share_of_the_replies_is_the_teachers(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(rollout_records, "RECORDED", 999)
    mixed = ["--mixed.on-policy-share=0.5", "--sampling.n=2", "--optim.batch=4"]
    assert main([*command, f"--run-dir={tmp_path / 'a'}", *mixed]) == 0
    rows, replies = metrics(tmp_path / "a")[1:], lines(tmp_path / "a/rollouts.jsonl")
    for row in rows:
        assert 0 < row["rollout/teacher_share"] < 1
        assert abs(row["kl/sampler_learner_nats"]) < 1e-4
        assert "train/sft_nats" not in row
        own = [reply for reply in replies if reply["step"] == row["step"] and reply["origin"] == "sampled"]
        theirs = [reply for reply in replies if reply["step"] == row["step"] and reply["origin"] == "teacher"]
        assert len(theirs) / (len(theirs) + len(own) / 2) == pytest.approx(row["rollout/teacher_share"])
        assert all(len(reply["kl_nats"]) == len(reply["tokens"]) for reply in theirs)
        assert row["rollout/length_tokens"] == sum(len(reply["tokens"]) for reply in own) / len(own)
    assert main([*command, f"--run-dir={tmp_path / 'b'}", *mixed]) == 0
    assert [untimed(row) for row in metrics(tmp_path / "b")[1:]] == [untimed(row) for row in rows]


def test_a_teacher_with_another_tokenizer_writes_in_the_students_tokens(command, split_teacher, tmp_path) -> None:
    mixed = ["--mixed.on-policy-share=0.5", "--mixed.sft-weight=0.5", "--optim.batch=4"]
    assert main([*command, f"--run-dir={tmp_path / 'a'}", f"--teacher={split_teacher}", *mixed]) == 0
    for row in metrics(tmp_path / "a")[1:]:
        assert 0 < row["rollout/teacher_share"] < 1
        assert row["align/one_to_one_share"] < 1
        assert row["train/sft_nats"] > 5
        assert row["kl/train_nats"] > 0


def test_a_run_of_the_teachers_replies_alone_samples_nothing(command, tmp_path) -> None:
    assert main([*command, f"--run-dir={tmp_path / 'a'}", "--mixed.on-policy-share=0", "--mixed.sft-weight=1"]) == 0
    for row in metrics(tmp_path / "a")[1:]:
        assert row["rollout/teacher_share"] == 1
        assert "rollout/repetition_share" not in row
        assert row["kl/train_nats"] > 0
        assert row["train/sft_nats"] > 0


def test_every_scheme_of_weights_is_one_setting(command, tmp_path) -> None:
    def one_step(name: str, *more: str) -> dict[str, Any]:
        assert main([*command, f"--run-dir={tmp_path / name}", "--optim.steps=1", *more]) == 0
        return metrics(tmp_path / name)[1]

    plain = one_step("plain")
    early, divergence, entity = (
        one_step(scheme, "--weighting.gain=3", f"--weighting.scheme={scheme}")
        for scheme in ("early", "divergence", "entity")
    )
    share = sum(1 + 2 * 2 ** (-token / 16) for token in range(6)) / 6  # six tokens of each reply: 1 + 2 2^(-t/16)
    assert early["train/tokens"] == pytest.approx(plain["train/tokens"] * share)
    assert divergence["kl/train_nats"] == pytest.approx(plain["kl/train_nats"], rel=1e-5)
    assert divergence["train/tokens"] == plain["train/tokens"]
    assert 1.2 < divergence["train/loss"] / plain["train/loss"] < 3
    assert plain["train/tokens"] < entity["train/tokens"] < 3 * plain["train/tokens"]


def test_the_cap_clips_what_is_learned_and_not_what_is_told(command, tmp_path) -> None:
    for name, cap in (("a", "1"), ("b", "none")):
        assert main([*command, f"--run-dir={tmp_path / name}", "--optim.steps=1", f"--kl-cap-nats={cap}"]) == 0
    capped, free = metrics(tmp_path / "a"), metrics(tmp_path / "b")
    assert capped[1]["kl/train_nats"] == pytest.approx(free[1]["kl/train_nats"])
    assert capped[1]["kl/clipped_share"] > 0.5
    assert "kl/clipped_share" not in free[1]
    assert capped[1]["train/loss"] < free[1]["train/loss"]
    assert untimed(capped[0]) == untimed(free[0])  # held out, before anything is learned


def test_the_guard_stops_a_run_and_nothing_is_lost(command, tmp_path, monkeypatch, capsys, caplog) -> None:
    """Every reply is a loop from step 2 on. The limit may be another one where the run goes on."""
    monkeypatch.setattr(rollout_records, "repetition_share", lambda text: 1.0)
    guard = ["--guard.patience=2", "--guard.repetition-stop=0.8", "--checkpoints.every-steps=50"]
    run = [*command, f"--run-dir={tmp_path / 'a'}", "--optim.steps=4"]
    assert main([*run, *guard]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step 2: 100% of the words" in error
    assert f"--resume goes on from {tmp_path}/a/state/step-000002" in error
    assert [row["step"] for row in metrics(tmp_path / "a")] == [0, 1, 2]
    with caplog.at_level(logging.WARNING, logger="rlspeech"):
        logging.getLogger("rlspeech").propagate = True
        assert main([*run, "--guard.patience=2", "--resume"]) == 0
    assert [row["step"] for row in metrics(tmp_path / "a")] == [0, 1, 2, 3, 4]
    monkeypatch.undo()
    assert main([*command, f"--run-dir={tmp_path / 'straight'}", "--optim.steps=4"]) == 0
    straight = [untimed(row) | {"rollout/repetition_share": 1.0} for row in metrics(tmp_path / "straight")[1:]]
    assert [untimed(row) for row in metrics(tmp_path / "a")[1:]] == straight


def test_settings_that_cannot_act_are_refused_in_one_line(command, tmp_path, capsys) -> None:
    for more, expected in (
        (["--loss=k1", "--mixed.on-policy-share=0.5"], "mixed.on_policy_share = 0.5"),
        (["--weighting.gain=3"], "--weighting.gain: acts with scheme"),
        (["--weighting.scheme=entity", "--weighting.half-life-tokens=3"], "acts with scheme = early alone"),
        (["--guard.repetition-stop=0.1"], "must not be below repetition_warn"),
        (["--mixed.on-policy-share=0", "--guard.repetition-stop=0.5"], "the student writes no replies to watch"),
    ):
        assert main([*command, f"--run-dir={tmp_path / 'a'}", *more]) == 2
        error = capsys.readouterr().err.strip()
        assert expected in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "a").exists()
