import logging
import os
import subprocess
import sys
import types

import pytest

from rlspeech.cli import EVERYTHING, VERBS, main
from rlspeech.recipe import CONFIGS, flag_name, settings_of

RUN = ["--run-dir", "runs/x", "--data.train", "a.jsonl", "--optim.steps", "3"]


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "rlspeech", *words], capture_output=True, text=True)


@pytest.fixture
def stage(monkeypatch):
    """A stage that only keeps what it was called with."""
    calls = []

    def put(verb: str) -> list:
        module = types.ModuleType(f"rlspeech.stages.{verb}")
        module.run = lambda config, **more: calls.append((config, more))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return calls

    yield put
    logging.getLogger("rlspeech").handlers.clear()
    logging.getLogger("rlspeech").propagate = True


def error(capsys, *words: str) -> str:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.removeprefix("rlspeech: error: ").rstrip("\n")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from rlspeech.cli import main; main(['--help'])\n"
        "print([m for m in ('torch', 'transformers', 'numpy', 'rich', 'ray', 'vllm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_verb(capsys):
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {verb} " in out for verb in EVERYTHING)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_every_setting_and_two_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(f" {flag_name(name)}" in out for name, _ in settings_of(CONFIGS[verb]))
    assert out.count(f"  rlspeech {verb} ") == 2
    assert "--dry-run" in out
    assert ("--resume" in out) == VERBS[verb].resumes


def test_there_is_a_verb_for_every_config():
    assert set(VERBS) == set(CONFIGS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("distil", "distil: unknown verb; did you mean 'distill'?"),
        ("--dry-run distill", "--dry-run: unknown flag before the verb"),
        ("distill --student tiny --optim.lrr 1", "--optim.lrr: unknown flag; did you mean '--optim.lr'?"),
        ("distill --student tiny --optim.lrr=1", "--optim.lrr: unknown flag; did you mean '--optim.lr'?"),
        ("sft --student tiny --teacher x", "--teacher: no flag of 'sft', but of distill, pairs, evaluate"),
        ("sft phi4mm/sft -x", "-x: unknown flag; --help lists them"),
        ("sft --dryrun", "--dryrun: unknown flag; did you mean '--dry-run'?"),
        (
            "evaluate --resume",
            "--resume: no flag of 'evaluate', but of align, sft, distill, pairs, dpo, rlbr, pipeline",
        ),
        ("distill --seed", "--seed: expected one argument"),
        ("distill", "distill: give a recipe or --student, such as `rlspeech distill --student tiny`"),
        ("distill a b", "distill: one recipe at most, got also b"),
        ("distill phi4mm/distill --optim.lr=-1e-4", "--optim.lr: must be greater than 0, got -1e-4"),
        ("distill phi4mm/distill --optim.lr -1e-4", "--optim.lr: must be greater than 0, got -1e-4"),
        ("distill phi4mm/sft", "recipes/phi4mm/sft.toml: a recipe of 'sft', given to 'distill'"),
        ("report", "run_dir is required: set it in the recipe or by --run-dir"),
        ("plan evaluate", "plan evaluate: no plan for this; known: align, distill, dpo, rlbr, sft"),
        ("doctor now", "doctor: takes no arguments, got now"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(words, expected, capsys):
    assert expected in error(capsys, *words.split())


def test_a_stage_gets_its_settings(stage):
    calls = stage("sft")
    assert main(["sft", "--student", "t", *RUN, "--data.skip-bad", "--lora", "none", "--data.tests.a-b", "x"]) == 0
    [(config, more)] = calls
    assert more == {"resume": False}
    assert config.data.skip_bad is True
    assert config.lora is None
    assert [*config.data.tests] == ["a-b"]


def test_flags_may_stand_before_and_after_the_recipe(stage):
    calls = stage("distill")
    assert main(["distill", "--seed", "3", "phi4mm/distill", "--resume", "--teacher", "llama-70b"]) == 0
    [(config, more)] = calls
    assert (config.seed, config.teacher, config.lora.rank, more) == (3, "llama-70b", 320, {"resume": True})


def test_both_spellings_of_a_flag_are_one(stage):
    calls = stage("sft")
    words = ["sft", "--student", "t", "--run_dir", "x", *RUN[2:], "--optim.projector_lr", "0.5"]
    assert main(words) == 0
    assert calls[0][0].optim.projector_lr == 0.5


def test_a_stage_that_does_not_resume_gets_its_settings_alone(stage):
    calls = stage("report")
    assert main(["report", "--run-dir", "x"]) == 0
    assert calls[0][1] == {}


def test_a_dry_run_plans_and_runs_nothing(stage):
    calls = stage("plan")
    ran = stage("sft")
    assert main(["sft", "phi4mm/sft", "--dry-run"]) == 0
    assert main(["plan", "sft", "phi4mm/sft"]) == 0
    assert ran is calls
    assert [more for _, more in calls] == [{}, {}]  # plan.run takes no `resume`


def test_an_interrupt_is_one_line_and_status_130(monkeypatch, capsys):
    module = types.ModuleType("rlspeech.stages.report")

    def run(config):
        raise KeyboardInterrupt

    module.run = run
    monkeypatch.setitem(sys.modules, "rlspeech.stages.report", module)
    assert main(["report", "--run-dir", "x", "--quiet"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_has_gone_is_status_141_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "rlspeech", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_that_is_not_of_the_output_is_not_taken_for_it(monkeypatch, capfd):
    module = types.ModuleType("rlspeech.stages.report")

    def run(config):
        raise BrokenPipeError("of a worker")

    module.run = run
    monkeypatch.setitem(sys.modules, "rlspeech.stages.report", module)
    with pytest.raises(BrokenPipeError, match="of a worker"):
        main(["report", "--run-dir", "x", "--quiet"])
    print("still open", file=sys.stderr)
    assert capfd.readouterr().err == "still open\n"


def test_python_m_rlspeech_is_the_command():
    done = command("distil")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "rlspeech: error: distil: unknown verb; did you mean 'distill'?\n"
