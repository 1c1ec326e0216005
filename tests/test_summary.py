"""The summary of a job: gap closed by hand, the order of the road, what is missing, and what is damaged."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlspeech.config import DataConfig, EvaluateConfig, OptimConfig, PipelineConfig, SftConfig
from rlspeech.errors import UserError
from rlspeech.reporting.page import job_view
from rlspeech.reporting.read_runs import SetScores, read_jobs
from rlspeech.reporting.summary import Summary, gap_closed, print_table, summarise, write_summary
from rlspeech.run_dir import RunDir

DATA = DataConfig(train=Path("train.jsonl"))


def scores(student: float | None, teacher: float | None = None, **others: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"student": {"fuzzy": student, **others}}
    return found if teacher is None else {**found, "teacher": {"fuzzy": teacher}}


def evaluated(job: Path, after: str, sets: Mapping[str, Any], samples: Any = ()) -> Path:
    """An evaluation's folder, written as `rlspeech evaluate` writes it."""
    folder = job / f"evaluate-{after}"
    run = RunDir.open(folder, EvaluateConfig(student="tiny", run_dir=folder, data=DATA, after=after), resume=False)
    run.write_json("evaluation.json", {"student": "tiny", "after": after, "sets": sets, "samples": list(samples)})
    run.finish({"stage": "evaluate"})
    run.close()
    return folder


def learned(folder: Path) -> Path:
    config = SftConfig(student="tiny", run_dir=folder, data=DATA, optim=OptimConfig(steps=2))
    run = RunDir.open(folder, config, resume=False)
    run.append("metrics.jsonl", {"step": 1, "train/loss": 2.0})
    run.close()
    return folder


def printed(summary: Summary) -> str:
    file = io.StringIO()
    print_table(summary, Console(file=file))
    return file.getvalue()


def closed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float | None, str]:
    first, then = ({name: SetScores(**found) for name, found in sets.items()} for sets in (before, after))
    return gap_closed(first, then)


def test_half_of_a_gap_of_60_points_is_closed_by_30() -> None:
    share, why = closed({"a": scores(0.2, 0.8)}, {"a": scores(0.5, 0.8)})
    assert share == pytest.approx(1 - 0.3 / 0.6)
    assert why == ""


def test_the_gap_is_the_mean_over_the_sets() -> None:
    """Gaps 0.6 and 0.2, mean 0.4; then 0.3 and 0.0, mean 0.15."""
    before = {"a": scores(0.2, 0.8), "b": scores(0.4, 0.6)}
    after = {"a": scores(0.5, 0.8), "b": scores(0.6, 0.6)}
    assert closed(before, after)[0] == pytest.approx(1 - 0.15 / 0.4)


def test_a_set_that_one_evaluation_lacks_does_not_count() -> None:
    before = {"a": scores(0.2, 0.8), "b": scores(0.0, 1.0), "c": scores(None, 1.0)}
    after = {"a": scores(0.5, 0.8), "c": scores(0.9, 1.0), "d": scores(0.9, 1.0)}
    assert closed(before, after)[0] == pytest.approx(0.5)


def test_a_gap_that_grew_is_closed_by_less_than_nothing() -> None:
    assert closed({"a": scores(0.4, 0.8)}, {"a": scores(0.2, 0.8)})[0] == pytest.approx(-0.5)


def test_a_student_better_than_its_teacher_closes_more_than_all() -> None:
    assert closed({"a": scores(0.4, 0.8)}, {"a": scores(1.0, 0.8)})[0] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (scores(0.8, 0.8), scores(0.9, 0.8), "no gap: the student was as good as the teacher"),
        (scores(0.9, 0.8), scores(0.9, 0.8), "no gap: the student was as good as the teacher"),
        (scores(0.2), scores(0.9), "no teacher was evaluated"),
        (scores(None, 0.8), scores(0.9, 0.8), "no accuracies to compare"),
    ],
)
def test_where_no_gap_can_be_closed_the_reason_is_told(before: Any, after: Any, why: str) -> None:
    share, reason = closed({"a": before}, {"a": after})
    assert share is None
    assert reason.startswith(why)


def test_evaluations_stand_in_the_order_of_the_road(tmp_path: Path) -> None:
    """By name, evaluate-distill would be before evaluate-sft and evaluate-start the last."""
    for after in ("distill", "start", "sft", "align"):
        evaluated(tmp_path, after, {"a": scores(0.1, 0.9)})
    assert [row.after for row in summarise(tmp_path).rows] == ["start", "align", "sft", "distill"]


def test_an_evaluation_made_anew_stays_behind_its_stage(tmp_path: Path) -> None:
    for verb, started in (("sft", "2026-01-02"), ("mine", "2026-01-01")):
        folder = tmp_path / verb
        folder.mkdir()
        (folder / "config.toml").write_text(f'stage = "{verb}"\n')
        (folder / "environment.json").write_text(json.dumps({"started": f"{started}T00:00:00+00:00"}))
        evaluated(tmp_path, verb, {})
    (job,) = read_jobs(tmp_path)
    assert [stage.verb for stage in job.stages] == ["mine", "sft"]
    assert [evaluation.after for evaluation in job.evaluations] == ["mine", "sft"]


def test_rows_hold_means_over_sets_and_errors_of_each(tmp_path: Path) -> None:
    sets = {
        "test_voice": scores(0.5, 0.9, wer=0.1, exact=0.25, kl_nats=0.4, repetition=0.0),
        "test_text": {**scores(0.7, 0.9, wer=0.3, exact=0.35, kl_nats=None), "cascade": {"fuzzy": 0.8}},
    }
    evaluated(tmp_path, "start", sets)
    summary = summarise(tmp_path)
    (row,) = summary.rows
    assert summary.sets == ("test_voice", "test_text")
    assert row.wer == {"test_voice": 0.1, "test_text": 0.3}
    assert (row.fuzzy, row.exact) == (pytest.approx(0.6), pytest.approx(0.3))
    assert (row.kl_nats, row.repetition, row.cascade) == (0.4, 0.0, 0.8)
    assert row.teacher == pytest.approx(0.9)


def test_the_first_evaluation_has_closed_nothing_whatever_evaluation_is_missing(tmp_path: Path) -> None:
    evaluated(tmp_path, "align", {"a": scores(0.2, 0.8)})
    evaluated(tmp_path, "distill", {"a": scores(0.65, 0.8)})
    assert [row.gap_closed for row in summarise(tmp_path).rows] == [0.0, pytest.approx(0.75)]


def test_an_evaluation_folder_by_itself_is_a_summary_of_one_row(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, "sft", {"a": scores(0.2)})
    assert [(row.after, row.fuzzy, row.teacher) for row in summarise(folder).rows] == [("sft", 0.2, None)]


def test_the_table_fits_100_columns_of_a_log_and_has_no_escapes(tmp_path: Path) -> None:
    first = {name: scores(0.123, 1.0, wer=1.234, kl_nats=2.3456, exact=0.0) for name in ("test_voice", "test_text")}
    evaluated(tmp_path, "start", first)
    evaluated(tmp_path, "distill", {name: {**found, "student": {"fuzzy": 1.0}} for name, found in first.items()})
    text = printed(summarise(tmp_path))
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    start, distill = (line.split() for line in text.splitlines() if re.match(" *(start|distill) ", line))
    assert start == ["start", "123.4%", "123.4%", "12.3%", "0.0%", "2.346", "–", "–", "100.0%", "0%"]  # noqa: RUF001
    assert distill[-1] == "100%"


def test_each_road_has_its_table_and_nothing_is_cut_in_100_columns(tmp_path: Path) -> None:
    """Sets of their own are rows of their own: a column that a road has no value in is left out."""
    evaluated(tmp_path, "start", {"test_voice": scores(0.0, 0.6, wer=1.69), "test_text": scores(0.0, 0.6, wer=1.4)})
    evaluated(tmp_path, "sft_calls", {"test_calls_10": scores(None, wer=0.276, u_wer=0.111, b_wer=0.785)})
    evaluated(tmp_path, "rlbr", {"test_calls_10": scores(None, wer=0.163, u_wer=0.017, b_wer=0.613)})
    shown = printed(summarise(tmp_path)).splitlines()
    heads = [line.split() for line in shown if line.split()[:1] == ["after"]]
    assert [head[:3] for head in heads] == [["after", "WER", "voice"], ["after", "WER", "test_calls_10"]]
    assert heads[1][3:] == ["U-WER", "B-WER"]
    assert [line.split() for line in shown if "rlbr" in line] == [["rlbr", "16.3%", "1.7%", "61.3%"]]
    assert not any("…" in line for line in shown)
    view = job_view(read_jobs(tmp_path)[0], "run-1", samples=0)
    assert [[line.name for line in one.lines] for one in view.tables] == [["start", "teacher"], ["sft_calls", "rlbr"]]
    assert [[(tile.name, tile.now, tile.then) for tile in tiles] for tiles in view.tiles][1] == [
        ("Word errors", "16.3%", "27.6%"),
        ("Errors of rare words", "61.3%", "78.5%"),
    ]


def test_the_table_says_why_no_gap_is_closed_and_shows_names_as_they_are(tmp_path: Path) -> None:
    evaluated(tmp_path, "[bold]x[/bold]", {f"[red]{index}": scores(0.5, wer=0.1) for index in range(5)})
    text = printed(summarise(tmp_path))
    assert "no teacher was evaluated" in text
    assert "[bold]x[/bold]" in text
    assert "WER mean" in text


def test_a_job_without_evaluations_says_so(tmp_path: Path) -> None:
    learned(tmp_path / "job" / "sft")
    assert printed(summarise(tmp_path / "job")) == "job: no evaluation, so no held-out numbers\n"


def test_summary_json_holds_the_rows_and_is_replaced_whole(tmp_path: Path) -> None:
    evaluated(tmp_path, "start", {"a": scores(0.2, 0.8, wer=0.5)})
    file = tmp_path / "summary.json"
    file.write_text("old")
    write_summary(summarise(tmp_path), file)
    (row,) = json.loads(file.read_text())["rows"]
    assert (row["after"], row["fuzzy"], row["teacher"], row["wer"]) == ("start", 0.2, 0.8, {"a": 0.5})
    assert [path.name for path in tmp_path.glob(".summary*")] == []


def test_stage_folders_by_verb_are_one_job_and_others_are_runs_by_themselves(tmp_path: Path) -> None:
    learned(tmp_path / "sft")
    evaluated(tmp_path, "start", {})
    learned(tmp_path / "try-2")
    learned(tmp_path / "night" / "sft")
    (tmp_path / "data").mkdir()
    found = {job.name: (len(job.stages), len(job.evaluations)) for job in read_jobs(tmp_path)}
    assert found == {tmp_path.name: (1, 1), "try-2": (1, 0), "night": (1, 0)}
    with pytest.raises(UserError, match="holds 3 runs; name one of them: "):
        summarise(tmp_path)


def test_a_pipeline_is_one_job_and_its_cut_off_evaluation_is_known(tmp_path: Path) -> None:
    run = RunDir.open(tmp_path / "job", PipelineConfig(run_dir=tmp_path / "job", stages=["tiny/sft"]), resume=False)
    learned(tmp_path / "job" / "sft")
    (evaluated(tmp_path / "job", "sft", {}) / "evaluation.json").unlink()
    run.close()
    for folder in (tmp_path, tmp_path / "job"):
        (job,) = read_jobs(folder)
        assert (job.name, [path.name for path in job.unfinished]) == ("job", ["evaluate-sft"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "metrics.jsonl",
            '{"step": 1}\n{"step": \n{"step": 3}\n',
            r"metrics\.jsonl:2: damaged JSON: .*; delete the line",
        ),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl:1: not a JSON object"),
        ("rollouts.jsonl", '{"step": 1}\n', r"rollouts\.jsonl: id: field required"),
        ("done.json", '{\n"a": 1,,\n}', r"done\.json:2: damaged JSON"),
        ("environment.json", "[]", r"environment\.json:1: not a JSON object"),
        ("config.toml", "stage = \n", r"config\.toml: damaged TOML: .*line 1"),
        ("evaluation.json", '{"sets":\n {"a":\n}', r"evaluation\.json:3: damaged JSON"),
        ("evaluation.json", '{"sets": {"a": {"student": {"wer": "x"}}}}', r"evaluation\.json: sets\.a\.student\.wer: "),
        ("metrics.jsonl", b"{}\n\xff\n", r"metrics\.jsonl:2: not UTF-8"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    folder = learned(tmp_path / "sft")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        summarise(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_last_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    folder = learned(tmp_path / "sft")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/lo')
    (job,) = read_jobs(tmp_path)
    assert [record["step"] for record in job.stages[0].metrics] == [1]


def test_not_a_number_is_a_number_that_is_missing(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, "start", {})
    (folder / "evaluation.json").write_text('{"sets": {"a": {"student": {"wer": NaN, "fuzzy": Infinity}}}}')
    assert [(row.wer, row.fuzzy) for row in summarise(tmp_path).rows] == [({"a": None}, None)]


@pytest.mark.parametrize(("name", "message"), [("gone", "no such folder"), ("file", "a file"), (".", "holds no run")])
def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        summarise(tmp_path / name)
