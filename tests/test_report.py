"""The report page: what it shows, that foreign text stays text, and that it asks nothing of any network."""

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from rlspeech.cli import main
from rlspeech.config import DataConfig, DistillConfig, EvaluateConfig, OptimConfig, PipelineConfig, ReportConfig
from rlspeech.data.audio import write
from rlspeech.errors import UserError
from rlspeech.reporting.page import page
from rlspeech.reporting.read_runs import Reply, read_jobs
from rlspeech.reporting.samples import chosen, tokens_of
from rlspeech.run_dir import RunDir
from rlspeech.stages.report import run
from rlspeech.types import Waveform

DATA = DataConfig(train=Path("train.jsonl"))
EVIL = "<script>alert('x')</script>"
QUOTE = '"><img src=x onerror=alert(1)>'
VOID = {"meta", "br", "img", "link"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str]
    inside: list["Node | str"] = field(default_factory=list)

    def all(self, tag: str, wanted: str = "") -> list["Node"]:
        """Descendants with a tag and a class, in order."""
        return [
            node
            for node in self.walk()
            if node.tag == tag and (not wanted or wanted in node.attributes.get("class", "").split())
        ]

    def walk(self) -> Iterator["Node"]:
        for node in self.inside:
            if isinstance(node, Node):
                yield node
                yield from node.walk()

    @property
    def text(self) -> str:
        return " ".join("".join(node if isinstance(node, str) else f" {node.text} " for node in self.inside).split())


class Tree(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Node("root", {})
        self.open = [self.root]
        self.feed(html)
        assert self.open == [self.root], f"not closed: {[node.tag for node in self.open]}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].inside.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.open[-1].inside.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, tag

    def handle_data(self, data: str) -> None:
        self.open[-1].inside.append(data)


def shown(folder: Path, samples: int = 12) -> Node:
    return Tree(page(read_jobs(folder), samples=samples)).root


def asked(after: str, *, reply: str, kls: Sequence[float | None] = (0.01, 3.0), **others: Any) -> dict[str, Any]:
    sample = {"id": "a/who", "set": "voice", "kind": "who", "key": "Anna", "audio": "../a.wav", "instruction": "Who?"}
    rest = {"transcript": "Anna sings.", "reference": "Anna.", "finish": "stop", "teacher_reply": "Anna does."}
    return {**sample, **rest, "reply": reply, "tokens": reply.split(), "kl_nats": list(kls), **others}


def evaluated(job: Path, after: str, student: dict[str, Any], samples: Sequence[dict[str, Any]] = ()) -> None:
    folder = job / f"evaluate-{after}"
    settings = EvaluateConfig(student="tiny", teacher="tiny-llm", run_dir=folder, data=DATA, after=after)
    run = RunDir.open(folder, settings, resume=False)
    sets = {"voice": {"student": student, "teacher": {"fuzzy": 0.9}, "cascade": {"fuzzy": 0.7}}}
    record = {"student": "tiny", "teacher": "tiny-llm", "after": after, "sets": sets, "samples": list(samples)}
    run.write_json("evaluation.json", record)
    run.close()


def distilled(job: Path, steps: int = 3, *, finished: bool = True) -> Path:
    folder = job / "distill"
    optim = OptimConfig(steps=3, lr=4e-4)
    config = DistillConfig(student="tiny", teacher="tiny-llm", run_dir=folder, data=DATA, optim=optim)
    run = RunDir.open(folder, config, resume=False)
    run.append("metrics.jsonl", {"step": 0, "kl/voice_nats": 1.5})
    for step in range(1, steps + 1):
        run.append("metrics.jsonl", {"step": step, "train/loss": 1 / step, "kl/train_nats": None if step == 2 else 0.5})
        reply = {"id": f"r{step}", "reply": "A b", "tokens": ["A", " b"], "kl_nats": [0.1, 2.5], "finish": "length"}
        run.append(
            "rollouts.jsonl", {"step": step, "instruction": "Say.", "transcript": "t", "reference": "r", **reply}
        )
    if finished:
        run.finish({"stage": "distill"})
    run.close()
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    pipeline = PipelineConfig(run_dir=folder, stages=["tiny/distill"], seed=17)
    RunDir.open(folder, pipeline, resume=False).close()
    write(folder / "a.wav", Waveform(np.sin(np.arange(8000) / 9).astype(np.float32), 16000))
    kinds = {"who": 0.25, "list": 0.75}
    evaluated(
        folder,
        "start",
        {"wer": 1.2, "fuzzy": 0.1, "kl_nats": 2.0, "by_kind": {"who": 0.1}},
        [asked("start", reply="I")],
    )
    after = {"wer": 0.25, "fuzzy": 0.5, "kl_nats": 0.5, "by_kind": kinds}
    evaluated(folder, "distill", after, [asked("distill", reply="Anna does.")])
    distilled(folder)
    return folder


def test_the_header_tells_student_teacher_seed_machine_and_command(job: Path) -> None:
    head = shown(job).all("header", "head")[0].text
    for told in ("job", "Student tiny", "Teacher tiny-llm", "Seed 17", "Started 20", "Python 3.1", "cores", "Revision"):
        assert told in head


def test_the_table_has_every_evaluation_the_cascade_and_the_teacher_with_the_best_marked(job: Path) -> None:
    table = shown(job).all("table")[0]
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")}
    assert list(rows) == ["start", "distill", "cascade (after distill)", "teacher"]
    dash = "\N{EN DASH}"
    assert rows["start"] == ["120.0%", "10.0%", dash, "2.000", dash, "0%"]
    assert rows["distill"] == ["★ best: 25.0%", "★ best: 50.0%", dash, "★ best: 0.500", dash, "★ best: 50%"]
    assert rows["teacher"][1] == "90.0%"
    assert [cell.text for cell in table.all("td", "best")] == [cell for cell in rows["distill"] if cell != dash]


def test_one_evaluation_is_the_best_of_nothing_and_has_no_gap_at_the_top(job: Path) -> None:
    root = shown(job / "evaluate-start")
    assert root.all("td", "best") == []
    assert [tile.all("span")[0].text for tile in root.all("div", "tile")] == [
        "Word errors",
        "Right answers",
        "KL to the teacher",
    ]
    assert [tile.all("strong")[0].text for tile in shown(job).all("div", "tile")] == ["25.0%", "50.0%", "0.500", "50%"]


def test_accuracy_by_kind_is_a_table_of_its_own(job: Path) -> None:
    table = shown(job).all("table")[1]
    rows = {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tbody")[0].all("tr")}
    assert rows == {"list": ["\N{EN DASH}", "75%"], "who": ["10%", "25%"]}


def test_curves_show_first_and_last_values_and_skip_what_is_missing(job: Path) -> None:
    charts = {chart.all("b")[0].text: chart for chart in shown(job).all("figure", "chart")}
    assert set(charts) == {"Loss", "KL to the teacher"}
    assert [line.text for line in charts["Loss"].all("li")] == ["1 → 0.333"]
    assert [line.text for line in charts["KL to the teacher"].all("li")] == ["train 0.5 → 0.5", "voice 1.5 → 1.5"]
    told = charts["KL to the teacher"].all("svg")[0].attributes["aria-label"]
    assert told == "KL to the teacher (nats per token): train from 0.5 to 0.5; voice from 1.5 to 1.5"


def test_a_sample_has_its_sound_and_the_reply_of_every_evaluation_judged(job: Path) -> None:
    (card,) = shown(job).all("div", "cards")[0].all("article")
    for told in ("who", "voice", "Who?", "Anna sings.", "Anna."):
        assert told in card.text
    replies = [tuple(cell.text for cell in row.all("td")) for row in card.all("tbody")[0].all("tr")]
    names = [row.all("th")[0].text for row in card.all("tbody")[0].all("tr")]
    assert names == ["start", "distill", "teacher"]
    assert replies == [("I", "✗ not right"), ("Anna does.", "✓ right"), ("Anna does.", "✓ right")]
    sound = card.all("audio")[0].attributes
    assert "controls" in sound
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(sound["src"].removeprefix("data:audio/wav;base64,"))))
    assert (len(samples), rate_hz) == (8000, 16000)


def test_tokens_of_the_last_reply_tell_their_kl_by_level_and_in_nats(job: Path) -> None:
    (card,) = shown(job).all("div", "cards")[0].all("article")
    (tokens,) = card.all("span", "tokens")
    found = [(token.text, token.attributes["class"], token.attributes["title"]) for token in tokens.all("span")]
    assert found == [("Anna", "k0", "0.010 nats"), ("does.", "k5", "3.000 nats")]
    assert len(shown(job).all("p", "scale")[0].all("span", "tokens")[0].all("span")) == 6


def test_tokens_and_kl_of_unequal_lengths_are_shown_as_far_as_they_go() -> None:
    fewer = tokens_of(Reply(id="a", tokens=["x", "y", "z"], kl_nats=[0.1, None]))
    assert [(token.text, token.level) for token in fewer] == [("x", 1), ("y", None), ("z", None)]
    assert [token.text for token in tokens_of(Reply(id="a", tokens=["x"], kl_nats=[0.1, 0.2]))] == ["x"]


def test_rollouts_are_those_of_the_first_and_the_last_step(job: Path) -> None:
    (rollouts,) = shown(job).all("div", "rollouts")
    assert [(node.all("h5")[0].text, node.all("code")[0].text) for node in rollouts.all("div")] == [
        ("step 1", "r1"),
        ("step 3", "r3"),
    ]
    assert "cut at the limit" in rollouts.text
    assert [token.attributes["title"] for token in rollouts.all("span", "k5")] == ["2.500 nats"] * 2


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    evil = dict.fromkeys(("instruction", "transcript", "reference", "teacher_reply", "kind", "set", "id"), EVIL + QUOTE)
    sample = asked("x", reply=EVIL, **{**evil, "audio": QUOTE, "tokens": [EVIL, QUOTE], "kl_nats": [1.0, 2.0]})
    evaluated(
        tmp_path / EVIL.replace("/", "|"), EVIL.replace("/", "|"), {"fuzzy": 0.5, "by_kind": {EVIL: 0.5}}, [sample]
    )
    folder = distilled(tmp_path / EVIL.replace("/", "|"))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, f"{EVIL}/a": 1.0, f"kl/{QUOTE}_nats": 1.0}) + "\n")
    (folder / "config.toml").write_text(f'stage = "distill"\nstudent = "{EVIL}"\n')
    root = shown(tmp_path)
    assert root.all("script") == []
    assert root.all("img") == []
    assert [node for node in root.walk() if any(name.startswith("on") for name in node.attributes)] == []
    card = root.all("div", "cards")[0].all("article")[0].text
    assert card.count(EVIL) >= 5
    assert QUOTE in card


def test_the_page_asks_nothing_of_a_network(job: Path) -> None:
    html = page(read_jobs(job), samples=12)
    root = Tree(html).root
    places = ("src", "href", "srcset", "poster", "action", "data", "xlink:href", "background")
    for node in root.walk():
        for name in places:
            assert node.attributes.get(name, "#").startswith(("#", "data:")), (node.tag, node.attributes)
    assert not re.search(r"https?:|@import|url\(|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=]*", "", html))
    assert [node.tag for node in root.walk() if node.tag in ("link", "script", "iframe", "object", "base")] == []
    (policy,) = [node for node in root.all("meta") if node.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_every_heading_of_a_table_says_what_it_heads(job: Path) -> None:
    headings = shown(job).all("th")
    assert len(headings) > 20
    assert {heading.attributes.get("scope") for heading in headings} == {"col", "row", "colgroup"}


def test_a_long_recording_is_cut_at_20_s_and_a_missing_one_is_told(job: Path) -> None:
    write(job / "long.wav", Waveform(np.full(21 * 8000, 0.1, dtype=np.float32), 8000))
    samples = [
        asked("x", reply="a", id="long", audio="../long.wav"),
        asked("x", reply="b", id="gone", audio="../gone.wav"),
        asked("x", reply="c", id="none", audio=None),
    ]
    evaluated(job, "later", {"fuzzy": 0.5}, samples)
    cards = {card.all("code")[0].text: card for card in shown(job).all("div", "cards")[0].all("article")}
    assert "first 20 of 21.0 s" in cards["long"].text
    sound = base64.b64decode(cards["long"].all("audio")[0].attributes["src"].partition(",")[2])
    assert soundfile.info(io.BytesIO(sound)).duration == pytest.approx(20.0)
    assert "No sound: audio missing" in cards["gone"].text
    assert "No sound: no recording is named" in cards["none"].text
    assert cards["gone"].all("audio") == []
    assert "not asked" in cards["gone"].text  # by the earlier evaluations


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    folder = distilled(tmp_path / "job", steps=1, finished=False)
    told = shown(folder).text
    assert "No evaluation was run" in told
    assert "not finished: 1 of 3 steps" in told
    for name in ("metrics.jsonl", "rollouts.jsonl", "environment.json"):
        (folder / name).unlink()
    told = shown(folder).text
    assert "No step was recorded in metrics.jsonl" in told
    assert "No rollout was written down" in told
    assert "Started unknown" in told


def test_an_evaluation_by_itself_has_a_page_without_curves(job: Path) -> None:
    root = shown(job / "evaluate-start")
    assert "No learning stage is in this folder" in root.text
    assert root.all("figure") == []
    assert len(root.all("audio")) == 1


def test_runs_of_a_folder_are_on_one_page_with_a_line_each(job: Path) -> None:
    distilled(job.parent / "other" / "deep")
    root = shown(job.parent)
    rows = [row.all("th")[0].text for row in root.all("table")[0].all("tbody")[0].all("tr")]
    assert rows == ["job", "deep"]
    targets = [link.attributes["href"].removeprefix("#") for link in root.all("a")]
    assert targets == [section.attributes["id"] for section in root.all("section", "job")]
    assert len(targets) == 2


def test_samples_cover_every_kind_then_every_set_and_new_recordings_first() -> None:
    replies = [
        Reply(id=f"{name}-{index}/{kind}", set=name, kind=kind, audio=f"{name}-{index}")
        for name in ("voice", "text")
        for index in range(3)
        for kind in ("who", "when", "list")
    ]
    first = chosen(replies, 3)
    assert {sample.kind for sample in first} == {"who", "when", "list"}
    assert {sample.set for sample in first} == {"voice", "text"}
    six = chosen(replies, 6)
    assert len({(sample.set, sample.kind) for sample in six}) == 6
    assert len({sample.audio for sample in six}) == 6
    assert len({sample.id for sample in chosen(replies, 99)}) == 18


def test_the_command_writes_one_file_and_the_summary_beside_it(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--run-dir", str(job)]) == 0
    assert "held-out numbers" in capsys.readouterr().out
    assert Tree((job / "report.html").read_text(encoding="utf-8")).root.all("h1")[0].text == "job"
    assert json.loads((job / "summary.json").read_text())["rows"][1]["fuzzy"] == 0.5
    run(ReportConfig(run_dir=job / "evaluate-start", out=tmp_path / "new" / "page.html", samples=1))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert not (job / "evaluate-start" / "summary.json").exists()


def test_a_page_that_cannot_be_written_is_one_line(job: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another --out"):
        run(ReportConfig(run_dir=job, out=job / "distill"))
    assert [path.name for path in job.glob(".distill*")] == []
    assert main(["report", "--run-dir", str(job / "nowhere")]) == 2
