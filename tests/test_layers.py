"""The walls of the house: who may import whom, and how long a file and a function may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("rlspeech", "reward_models", "data_synth")

BASE = {"errors", "types"}
CONFIGS = {"config", "config_dpo", "config_engines", "config_objective", "config_rewards", "config_rlbr"}
BESIDE = CONFIGS | {"cache", "sections", "plugins", "run_dir", "catalog", "recipe", "verbs"}
PARTS = {"students", "losses", "data", "reward_models", "data_synth"}
# Layer: the other layers it may import. A layer's own files are judged by SIBLINGS.
ARROWS = {
    "rlspeech": set(),
    "errors": set(),
    "types": {"errors"},
    "protocols": BASE,
    "maths": BASE,
    "embedded": BASE | {"cache"},
    **{name: BASE | (BESIDE - {name}) for name in BESIDE},
    "catalog": BASE | (BESIDE - {"catalog"}) | {"embedded"},  # assembles the tiny pair when it is asked for
    **{name: BASE | {"protocols", "maths", "embedded"} for name in PARTS},
    "data": BASE | {"protocols", "maths", "embedded", "cache"},  # sound taken out of data sets is kept there
    "reporting": BASE | {"run_dir", "config", "maths", "data"},
    "engines": BASE | BESIDE | PARTS | {"protocols", "maths", "embedded"},
    "stages": BASE | BESIDE | PARTS | {"protocols", "maths", "embedded", "engines", "reporting"},
    "cli": BASE | BESIDE | {"stages"},
    "__main__": {"cli"},
}
# Components that are each one file: a name is a file, so none may lean on another.
SIBLINGS = {"students", "losses", "reward_models", "data_synth"}
SHARED = re.compile(r"rlspeech\.students\._\w+\.")  # what families share; no name stands for such a file
HEAVY = {"vllm", "ray", "deepspeed", "trl", "peft"}
QUICK = BASE | BESIDE | {"cli", "__main__"}  # what `rlspeech --help` imports
TENSORS = {"torch", "transformers", "accelerate", "datasets"} | HEAVY


class Import(NamedTuple):
    line: int
    module: str  # dotted, absolute
    in_function: bool
    for_types_only: bool


def modules() -> list[Path]:
    return sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))


def layer_of(dotted: str) -> str:
    """The layer of a module of ours: `rlspeech.maths.distill` is in `maths`."""
    parts = dotted.removeprefix("rlspeech._shipped.").split(".")
    if parts[0] == "rlspeech":
        return parts[1] if len(parts) > 1 else "rlspeech"
    return parts[0]


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


def imports_of(tree: ast.AST, *, in_function: bool = False, for_types_only: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(node.lineno, name.name, in_function, for_types_only)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                yield Import(
                    node.lineno, "." * node.level + f"{node.module or ''}.{name.name}", in_function, for_types_only
                )
        else:
            yield from imports_of(
                node,
                in_function=in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda),
                for_types_only=for_types_only
                or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"),
            )


def wrong_imports(source: str, module: str) -> list[str]:
    """What the arrows forbid in the source of `module` (dotted), a line for each."""
    layer = layer_of(module)
    if layer not in ARROWS:
        return [f"{module}: {layer!r} is no layer; known: {', '.join(ARROWS)}"]
    found = []
    for imported in imports_of(ast.parse(source)):
        where = f"{module}:{imported.line} imports {imported.module}"
        top = imported.module.split(".")[0]
        if imported.module.startswith("."):
            found.append(f"{where}: relative")
        elif top in FOLDERS:
            found += [f"{where}: {why}" for why in wrong_arrow(module, imported.module)]
        elif top in HEAVY and not imported.for_types_only:
            if layer != "engines" and (layer, top) != ("students", "peft"):
                found.append(f"{where}: {top} lives in rlspeech/engines (peft also in students)")
            elif not imported.in_function:
                found.append(f"{where}: inside the function that needs it")
        slow = top in TENSORS or (top in FOLDERS and layer_of(imported.module) not in QUICK | {"rlspeech"})
        if layer in QUICK and slow and not imported.in_function and not imported.for_types_only:
            found.append(f"{where}: `rlspeech --help` would wait for it")
    return found


def wrong_arrow(module: str, imported: str) -> Iterator[str]:
    mine, other = layer_of(module), layer_of(imported)
    if other == "rlspeech":
        return
    if mine != other:
        if other not in ARROWS[mine]:
            yield f"no arrow from {mine} to {other}"
    elif mine in SIBLINGS and not imported.startswith(f"{module}.") and not SHARED.match(imported):
        yield f"siblings of {mine} never import one another"


def too_long(source: str, name: str) -> list[str]:
    """Files over 400 lines and functions over 60, signature and docstring included."""
    lines = source.count("\n")
    found = [f"{name}: {lines} lines, more than 400"] if lines > 400 else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > 60:
                found.append(f"{name}:{node.lineno} {node.name}: {length} lines, more than 60")
    return found


def test_every_import_follows_the_arrows() -> None:
    assert [wrong for path in modules() for wrong in wrong_imports(path.read_text(), dotted_name(path))] == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("rlspeech.maths.distill", "from rlspeech.engines.learner import Learner", "no arrow from maths to engines"),
        ("rlspeech.types", "def f():\n    import rlspeech.maths.edits", "no arrow from types to maths"),
        ("rlspeech.cli", "def f():\n    import rlspeech.engines.learner", "no arrow from cli to engines"),
        ("rlspeech.engines.learner", "from rlspeech.stages import sft", "no arrow from engines to stages"),
        ("rlspeech.losses.jsd", "from rlspeech.losses.k1 import Loss", "siblings of losses"),
        ("reward_models.wer", "from reward_models import bias", "siblings of reward_models"),
        ("rlspeech.students.voxtral", "from rlspeech.students.tiny import Student", "siblings of students"),
        ("data_synth.exchanges", "from reward_models.wer import Reward", "no arrow from data_synth to reward_models"),
        ("rlspeech.maths.edits", "from . import text", "relative"),
        ("rlspeech.stages.sft", "def f():\n    import vllm", "vllm lives in rlspeech/engines"),
        ("rlspeech.engines.peers", "import ray", "inside the function"),
        (
            "rlspeech.engines.peers",
            "try:\n    from deepspeed.zero import Init\nexcept ImportError:\n    pass",
            "inside",
        ),
        ("rlspeech.students.tiny", "from peft import LoraConfig", "inside the function"),
        ("rlspeech.students.tiny", "def f():\n    import trl", "trl lives in rlspeech/engines"),
        ("rlspeech.config", "import torch", "would wait for it"),
        ("rlspeech.cli", "from transformers import AutoConfig", "would wait for it"),
        ("rlspeech.cli", "from rlspeech.stages.sft import run", "would wait for it"),
        ("rlspeech.catalog", "from rlspeech.embedded.pair import student_folder", "would wait for it"),
        ("rlspeech.kitchen", "import os", "is no layer"),
    ],
)
def test_a_broken_arrow_is_seen(module: str, source: str, reason: str) -> None:
    (wrong,) = wrong_imports(source, module)
    assert reason in wrong


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rlspeech.students.tiny", "def f():\n    from peft import LoraConfig"),
        ("rlspeech.engines.peers", "def f():\n    import ray"),
        ("rlspeech.types", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("rlspeech.losses.jsd", "import torch\nfrom rlspeech.maths.distill import jsd"),
        ("rlspeech.data.mixing", "from rlspeech.data.manifest import read"),
        ("rlspeech.students.tiny", "from rlspeech.students._base import Family"),
    ],
)
def test_what_the_arrows_allow_passes(module: str, source: str) -> None:
    assert wrong_imports(source, module) == []


def test_files_stay_under_400_lines_and_functions_under_60() -> None:
    files = [
        *modules(),
        *sorted((REPOSITORY / "tests").glob("*.py")),
        *sorted((REPOSITORY / "benchmarks").glob("*.py")),
    ]
    assert [long for path in files for long in too_long(path.read_text(), str(path.relative_to(REPOSITORY)))] == []


def test_a_file_of_401_lines_and_a_function_of_61_are_seen() -> None:
    assert too_long("x = 1\n" * 401, "a.py") == ["a.py: 401 lines, more than 400"]
    assert too_long("x = 1\n" * 400, "a.py") == []
    assert too_long("def f():\n" + "    x = 1\n" * 60, "a.py") == ["a.py:1 f: 61 lines, more than 60"]
    assert too_long("def f():\n" + "    x = 1\n" * 59, "a.py") == []


def test_nothing_is_left_to_do() -> None:
    unfinished = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    texts = [
        path
        for name in ("rlspeech", "reward_models", "data_synth", "recipes", "tests", "docs", "slurm", "benchmarks")
        for path in sorted((REPOSITORY / name).rglob("*"))
        if path.suffix in {".py", ".toml", ".md", ".sh", ".html"}
    ]
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if unfinished.search(line)
    ]
    assert found == []


def test_packages_are_empty_files() -> None:
    """Importing a package does nothing: no registration, no re-export."""
    assert [dotted_name(path) for path in modules() if path.name == "__init__.py" and path.read_text().strip()] == []
