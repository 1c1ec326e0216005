"""What `rlspeech doctor` says of this machine, and of machines with other memory."""

import io
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console

from rlspeech.catalog import entries
from rlspeech.config import DistillConfig, PipelineConfig, SynthConfig
from rlspeech.recipe import shipped_recipes
from rlspeech.stages.doctor import (
    Check,
    doctor,
    gpu_checks,
    installed_version,
    loading_verdict,
    model_checks,
    nearest_folder,
    render,
    verdict,
)
from rlspeech.stages.plan import Machine

LAPTOP = Machine(memory_gib=24.0, gpus_gib=())
SERVER = Machine(memory_gib=128.0, gpus_gib=(141.0,))


def distill(tmp_path: Path) -> DistillConfig:
    settings = {"student": "tiny", "teacher": "tiny-llm", "run_dir": tmp_path, "optim": {"steps": 1}}
    return DistillConfig.model_validate(settings | {"data": {"train": tmp_path / "not-yet-made.jsonl"}})


def printed(checks: list[Check]) -> str:
    console = Console(file=io.StringIO(), width=250, highlight=False)
    render(checks, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_every_model_and_every_recipe_has_its_line() -> None:
    checks = doctor()
    assert [check.name for check in checks if check.area == "models"] == list(entries())
    assert [check.name.split()[1] for check in checks if check.area == "stages"] == shipped_recipes()


def test_what_is_installed_is_told_with_its_version() -> None:
    found = {check.name: check for check in doctor() if check.area == "packages"}
    assert found["transformers"].ok
    assert found["transformers"].value.startswith(version("transformers"))
    assert installed_version("no-such-package-of-anyone") is None


def test_the_tiny_pair_distills_on_a_laptop_though_its_data_is_not_made(tmp_path: Path) -> None:
    ok, why = verdict(distill(tmp_path), LAPTOP)
    assert ok is True, why


def test_without_memory_the_reason_is_memory(tmp_path: Path) -> None:
    ok, why = verdict(distill(tmp_path), Machine(memory_gib=0.25, gpus_gib=()))
    assert ok is False
    assert "GiB" in why


def test_70_billion_bfloat16_weights_need_131_gib() -> None:
    ok, why = loading_verdict(["llama-70b"], LAPTOP)  # 70.55e9 x 2 bytes / 2^30 = 131.4
    assert (ok, why) == (False, "needs about 131 GiB, of which this machine has 24 on one device")
    ok, why = loading_verdict(["llama-70b"], SERVER)
    assert ok is not False
    assert why.startswith("needs about 131.4 GiB")


def test_two_models_must_fit_together() -> None:
    assert loading_verdict(["phi4mm"], Machine(12.0, ()))[0] is not False  # 5.58e9 x 2 bytes = 10.4 GiB
    assert loading_verdict(["phi4mm", "phi4-mini"], Machine(12.0, ()))[0] is False  # and 7.1 GiB


def test_a_pipeline_runs_where_all_of_its_recipes_do(tmp_path: Path) -> None:
    config = PipelineConfig(run_dir=tmp_path, stages=["tiny/synth", "tiny/sft"])
    assert verdict(config, LAPTOP) == (True, "can run: tiny/synth, tiny/sft")
    ok, why = verdict(config, Machine(memory_gib=0.25, gpus_gib=()))
    assert ok is False
    assert why.startswith("tiny/sft: ")
    ok, why = verdict(config.model_copy(update={"evaluate": Path("no/such")}), LAPTOP)
    assert ok is False
    assert why.startswith("no/such: ")


def test_speech_is_synthesised_anywhere_the_voices_are_installed(tmp_path: Path) -> None:
    assert verdict(SynthConfig(out=tmp_path, sets={"train": 1}), LAPTOP) == (True, "can run")


def test_no_gpu_is_information_and_no_fault() -> None:
    assert list(gpu_checks(LAPTOP)) == [Check("machine", "GPU", "none")]


def test_a_gpu_that_this_torch_cannot_use_is_a_fault() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch can use the GPU of this machine")
    (check,) = gpu_checks(SERVER)
    assert (check.name, check.ok) == ("GPU 0", False)
    assert f"141 GiB, which torch {torch.__version__} cannot use" in check.value


def test_the_cache_decides_what_is_assembled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSPEECH_CACHE", str(tmp_path))
    assert "assembled at first use" in {check.name: check.value for check in model_checks()}["tiny"]
    (tmp_path / "models" / "tiny-1").mkdir(parents=True)
    assert "in the cache" in {check.name: check.value for check in model_checks()}["tiny"]


def test_the_disk_of_a_cache_that_is_not_there_yet_is_that_of_the_folder_above(tmp_path: Path) -> None:
    assert nearest_folder(tmp_path / "a" / "b") == tmp_path


def test_a_line_says_yes_no_or_neither() -> None:
    lines = [Check("stages", "align", "well", True), Check("stages", "sft", "ill", False), Check("models", "x", "far")]
    words = [line.split() for line in printed(lines).splitlines()]
    assert ["yes", "align", "well"] in words
    assert ["no", "sft", "ill"] in words
    assert ["x", "far"] in words


def test_the_command_reports_without_importing_torch_where_there_is_no_gpu() -> None:
    code = """
import sys
from rlspeech.stages import doctor
assert doctor.main() == 0
assert doctor.machine().gpus_gib or "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    assert "What could run here" in done.stdout
