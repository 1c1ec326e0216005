"""Every command of the README and the docs runs: shortened, on small models, or as what `make` would run."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from rlspeech.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(
        f"docs/{name}.md"
        for name in (
            "quickstart",
            "data",
            "cluster",
            "teachers",
            "distillation",
            "rlbr",
            "rewards",
            "students",
            "dpo",
            "detectors",
        )
    ),
)
FENCE = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in FENCE.findall((REPOSITORY / page).read_text()):
            found += [line.split(" #")[0].strip() for line in block.splitlines() if line.strip()]
    return list(dict.fromkeys(found))


def test_the_two_commands_come_first() -> None:
    assert commands()[:2] == ["make quickstart", "make test"]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make")])
def test_make_commands_have_a_rule(command: str) -> None:
    """The rules themselves run in CI (`make test`) and in tests/test_stages.py (the road of `make quickstart`)."""
    words = shlex.split(command)
    listed = subprocess.run(["make", "-n", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    expected = {"quickstart": "pipeline recipes/tiny/quickstart.toml", "test": "tests/halves.py"}.get(words[1], "")
    assert expected in listed.stdout


@pytest.fixture
def shortened(small_student, small_teacher, spoken, tmp_path, monkeypatch):
    """What is added to a command so that it takes seconds; the last of two equal flags counts."""
    monkeypatch.chdir(tmp_path)
    tests = [f"--data.tests.{name}={spoken / name}.jsonl" for name in ("test_voice", "test_text")]
    learn = [f"--data.train={spoken}/train.jsonl", *tests, "--optim.steps=1", "--optim.batch=1"]
    small = [f"--student={small_student}", f"--teacher={small_teacher}", "--sampling.max-tokens=2"]
    return {
        "doctor": [],
        "synth": ["--sets={train = 2}"],
        "distill": [*learn, *small, "--held-out.samples=1"],
        "sft": [*learn, f"--student={small_student}"],
        "align": [*learn, f"--student={small_student}", "--frames.steps=1"],
        "rlbr": [*learn, f"--student={small_student}", "--sampling.n=2", "--sampling.max-tokens=2", "--lists=none"],
        "pairs": [f"--data.train={spoken}/train.jsonl", *small[:2], "--recordings=2", "--replies.max-tokens=8"],
        "dpo": [*learn, small[0], "--online", "--sampling.n=2", "--sampling.max-tokens=2", "--held-out.samples=1"],
        "evaluate": [*tests, f"--teacher={small_teacher}", f"--student={small_student}", "--evaluation.samples=1"],
    }


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("rlspeech")])
def test_rlspeech_commands_run(command: str, shortened, spoken, small_student, small_teacher, tmp_path) -> None:
    verb, *rest = shlex.split(command)[1:]
    if verb in ("report", "pipeline"):
        folder = rest[rest.index("--run-dir") + 1] if "--run-dir" in rest else "runs/tiny/quickstart"
        make_run(tmp_path / folder, spoken, small_student)
        assert main([verb, *rest, *(["--resume"] if verb == "pipeline" else [])]) == 0
        return
    if verb == "serve":  # it runs until it is stopped: tests/test_serve.py
        rest.append("--dry-run")
    if "--dry-run" in rest or verb == "plan":
        assert main([verb, *rest]) == 0
        return
    if verb in ("score", "reward"):
        write_records(tmp_path)
        assert main([verb, *rest]) == 0
        return
    if "--self-test" in rest:
        given = [f"--student={small_teacher}", f"--teacher={small_teacher}", f"--data.train={spoken}/train.jsonl"]
        assert main([verb, *rest, *given]) == 0
        return
    recipe = [f"tiny/{verb}"] if rest and rest[0].startswith("-") else []  # what the student's short name stands for
    assert main([verb, *recipe, *rest, *shortened[verb]]) == 0


def make_run(folder: Path, spoken: Path, student: Path) -> None:
    """A run folder with something to report on."""
    flags = [f"--data.train={spoken}/train.jsonl", "--data.tests", "{}", f"--student={student}", "--optim.steps=1"]
    assert main(["sft", "tiny/sft", *flags, f"--run-dir={folder}/sft", "--quiet"]) == 0


def write_records(folder: Path) -> None:
    """What docs/rlbr.md scores and docs/rewards.md tries its own example of a reward on."""
    (folder / "test-clean.biasing_100.tsv").write_text('a\tcall bo now\t["bo"]\t["bo", "ann"]\n')
    (folder / "mine.tsv").write_text("a\tcall bow now\n")
    [example] = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/rewards.md").read_text(), re.DOTALL)
    (folder / "mine.py").write_text(example)
    rollouts = folder / "runs/tiny-calls/rlbr/rollouts.jsonl"
    rollouts.parent.mkdir(parents=True)
    row = {"step": 1, "id": "a", "instruction": "?", "reference": "call Bo", "reply": "call Bob now"}
    rollouts.write_text(json.dumps(row) + "\n")
