import os
import pickle
import shutil
import subprocess
import sys
import types

import pytest

from rlspeech.errors import UserError
from rlspeech.plugins import find_class, load_class, shipped, shipped_names

REWARD = """
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

@dataclass(frozen=True)
class Reward:
    cap: float = 1.0
    n: int = 2
    sides: tuple[float, float] = (0.0, 1.0)
    file: Path | None = None

    def __post_init__(self):
        if self.cap <= 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    def __call__(self, rollouts):
        return [self.cap for _ in rollouts]

class Other:
    pass
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(REWARD)
    return path


def mistake(name, options=None, kind="reward_models") -> str:
    with pytest.raises(UserError) as caught:
        load_class(kind, str(name), "Reward", options or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_shipped_file_is_found_by_its_bare_name():
    assert "exchanges" in shipped_names("data_synth")
    assert find_class("data_synth", "exchanges", "Synth").__name__ == "Synth"
    assert type(load_class("losses", "jsd", "Loss", {"beta": 0.25})).__module__ == "rlspeech.losses.jsd"


@pytest.mark.parametrize("kind", ["losses", "data_synth", "reward_models"])
def test_every_shipped_component_loads(kind):
    class_name = {"losses": "Loss", "data_synth": "Synth", "reward_models": "Reward"}[kind]
    for name in shipped_names(kind):
        assert load_class(kind, name, class_name, {})


def test_a_path_is_the_users_own_file(mine):
    reward = load_class("reward_models", str(mine), "Reward", {"cap": 2.0})
    assert reward([1, 2]) == [2.0, 2.0]
    assert find_class("reward_models", f"{mine}:Other", "Reward").__name__ == "Other"


def test_objects_of_a_file_can_be_pickled_and_compared(mine):
    reward = load_class("reward_models", str(mine), "Reward", {"cap": 2.0})
    assert pickle.loads(pickle.dumps(reward)) == reward
    assert load_class("reward_models", str(mine), "Reward", {"cap": 2}) == reward  # one class, loaded once


def test_options_take_the_type_of_their_field(mine):
    reward = load_class("reward_models", str(mine), "Reward", {"n": 4.0, "sides": [1, 2], "file": "x"})
    assert (reward.n, reward.sides, reward.file.name) == (4, (1.0, 2.0), "x")
    assert type(reward.n) is int


def test_a_wrong_option_is_one_line_naming_file_and_option(mine):
    where = f"{mine}: Reward: "
    assert mistake(mine, {"capp": 1}) == where + "unknown option 'capp'; did you mean 'cap'?"
    assert mistake(mine, {"cap": "x"}).startswith(where + "option 'cap' should be a valid number")
    assert mistake(mine, {"n": 1.5}).startswith(where + "option 'n' should be a valid integer")
    assert mistake(mine, {"cap": -1}) == where + "cap must be positive, got -1.0"


def test_a_required_option_is_asked_for(tmp_path):
    path = tmp_path / "needs.py"
    path.write_text("from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Reward:\n    cap: float\n")
    assert mistake(path) == f"{path}: Reward: option 'cap' is required"


def test_an_unknown_name_offers_a_near_one(mine):
    assert mistake("exchange", kind="data_synth").endswith("; did you mean 'exchanges'?")
    assert mistake(mine.with_name("mime.py")) == f"{mine.with_name('mime.py')}: no such file; did you mean 'mine.py'?"
    assert mistake(f"{mine}:Rewards") == f"{mine}: no class 'Rewards'; did you mean 'Reward'?"
    assert mistake("no_such_pkg.rewards:Wer") == "reward_models: no module 'no_such_pkg.rewards' is installed"


def test_a_file_that_is_not_python_is_named_with_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 1\nclass Reward(\n")
    assert mistake(path).startswith(f"{path}:2: ")


def test_an_error_inside_the_users_file_keeps_its_traceback(tmp_path):
    path = tmp_path / "fails.py"
    path.write_text("import no_such_package_at_all\n")
    with pytest.raises(ModuleNotFoundError):
        load_class("reward_models", str(path), "Reward", {})


def test_a_dotted_name_is_an_installed_module(mine, monkeypatch):
    module = types.ModuleType("some_pkg.rewards")
    exec(REWARD, module.__dict__)
    monkeypatch.setitem(sys.modules, "some_pkg", types.ModuleType("some_pkg"))
    monkeypatch.setitem(sys.modules, "some_pkg.rewards", module)
    assert find_class("reward_models", "some_pkg.rewards:Other", "Reward") is module.Other
    assert find_class("reward_models", "some_pkg.rewards", "Reward") is module.Reward


def test_an_entry_point_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "their_rewards.py").write_text(REWARD)
    info = tmp_path / "their_rewards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-rewards\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[rlspeech.rewards]\ntheirs = their_rewards:Reward\nwhole = their_rewards\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_class("reward_models", "theirs", "Reward", {"cap": 3}).cap == 3
    assert find_class("reward_models", "whole", "Reward").__name__ == "Reward"
    assert mistake("their").endswith("; did you mean 'theirs'?")


def test_the_same_names_work_in_a_wheel(tmp_path):
    """The layout of an installed wheel: what ships lies in rlspeech/_shipped, nothing beside the package."""
    root = tmp_path / "site"
    shutil.copytree(shipped("losses").parent, root / "rlspeech", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("data_synth", "recipes"):
        shutil.copytree(shipped(folder), root / "rlspeech" / "_shipped" / folder)
    code = (
        "from rlspeech.plugins import find_class, shipped\n"
        "from rlspeech.recipe import find_recipe\n"
        "print(shipped('data_synth'), find_recipe('phi4mm/sft'), find_class('data_synth', 'exchanges', 'Synth'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(root)},
    )
    inside = root / "rlspeech" / "_shipped"
    cls = "<class 'rlspeech._shipped.data_synth.exchanges.Synth'>"
    assert done.stdout.split(" ", 2) == [
        str(inside / "data_synth"),
        str(inside / "recipes" / "phi4mm" / "sft.toml"),
        cls + "\n",
    ]
    assert find_class("data_synth", "exchanges", "Synth").__module__ == "rlspeech._shipped.data_synth.exchanges"
