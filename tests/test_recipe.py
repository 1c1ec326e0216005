import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlspeech.config import DistillConfig, LoraConfig, PipelineConfig, ReportConfig, RlbrConfig, SftConfig, SynthConfig
from rlspeech.errors import UserError
from rlspeech.recipe import (
    CONFIGS,
    default_recipe,
    dump_toml,
    find_recipe,
    load,
    settings_of,
    shipped_recipes,
    stage_of,
    verb_of,
)

SMALL = """
student = "tiny"
teacher = "tiny-llm"
run_dir = "runs/x"
[data]
train = "a.jsonl"
[optim]
steps = 3
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "a.toml"
        path.write_text(text)
        return path

    return write


def mistake(path, overrides=None, config=DistillConfig) -> str:
    with pytest.raises(UserError) as caught:
        load(config, path, overrides or {})
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}")


def test_flags_go_over_the_recipe(recipe):
    config = load(DistillConfig, recipe(SMALL + "lr = 1e-3\nbatch = 4\n"), {"optim.lr": "2e-4", "seed": "7"})
    assert (config.optim.lr, config.optim.batch, config.seed) == (2e-4, 4, 7)


def test_flags_are_read_as_the_type_of_their_setting(recipe):
    flags = {
        "lora": "none",
        "data.skip-bad": "true",
        "data.kinds": "who, when",
        "data.tests.test-voice": "x.jsonl",
        "loss_options.beta": "0.5",
        "optim.projector-lr": "none",
        "student": "none",
        "run_dir": "3",
    }
    config = load(DistillConfig, recipe(SMALL), flags)
    assert config.lora is None
    assert config.data.skip_bad is True
    assert config.data.kinds == ["who", "when"]
    assert config.data.tests == {"test-voice": Path("x.jsonl")}
    assert config.loss_options == {"beta": 0.5}
    assert config.optim.projector_lr is None
    assert config.student == "none"  # a student cannot be None, so this is its name
    assert config.run_dir == Path("3")


def test_a_list_flag_takes_toml_too():
    config = load(PipelineConfig, None, {"run_dir": "x", "stages": '["a,b", "c"]'})
    assert config.stages == ["a,b", "c"]
    assert load(SynthConfig, None, {"out": "x", "sets": "{a = 2}", "snr_db": "1,2.5"}).snr_db == (1.0, 2.5)


def test_the_word_none_in_a_recipe_is_none(recipe):
    assert load(DistillConfig, recipe('lora = "none"' + SMALL), {}).lora is None


def test_a_flag_of_a_section_that_is_off_turns_it_on(recipe):
    config = load(DistillConfig, recipe('lora = "none"' + SMALL), {"lora.rank": "4"})
    assert config.lora == LoraConfig(rank=4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SMALL + "lrr = 1", " [optim]: unknown key 'lrr'; did you mean 'lr'?"),
        ("studnet = 1", ": unknown key 'studnet'; did you mean 'student'?"),
        (SMALL + "lr = -1", " [optim] lr: must be greater than 0, got -1"),
        (SMALL + "lr = 'x'", " [optim] lr: must be a number, got 'x'"),
        (SMALL + "lr = inf", " [optim] lr: must be a finite number, got inf"),
        (SMALL + "lr = true", " [optim] lr: must be a number, got true"),
        (SMALL + "batch = true", " [optim] batch: must be a whole number, got true"),
        (SMALL + "batch = 1.5", " [optim] batch: must be a whole number, got 1.5"),
        (SMALL + "batch = '8'", " [optim] batch: must be a whole number, got '8'"),
        (SMALL + "schedule = 'x'", " [optim] schedule: must be 'linear', 'cosine' or 'constant', got 'x'"),
        (SMALL + "[loss_options]\nbeta = [1]", " [loss_options] beta: must be a number, got [1]"),
        ("seed = -1" + SMALL, " seed: must be at least 0, got -1"),
        ("optim = 3", " optim: must be a table, got 3"),
        ("stage = 'sft'" + SMALL, ": a recipe of 'sft', given to 'distill'"),
        ("a = 1\nb = = 2", ":2: not TOML: Invalid value"),
        ("a = [", ":end: not TOML: Invalid value"),
    ],
)
def test_a_mistake_in_a_recipe_is_one_line_naming_its_place(recipe, text, expected):
    message = mistake(recipe(text))
    assert message.removesuffix(" (at end of document)") == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"optim.lrr": "1"}, "--optim.lrr: unknown flag; did you mean '--optim.lr'?"),
        ({"lr": "1"}, "--lr: unknown flag; did you mean '--optim.lr'?"),
        ({"zebra": "1"}, "--zebra: unknown flag; --help lists them"),
        ({"student.x": "1"}, "--student.x: unknown flag; did you mean '--student'?"),
        ({"optim.lr": "-1"}, "--optim.lr: must be greater than 0, got -1"),
        ({"optim.steps": "1e3"}, "--optim.steps: must be a whole number, got 1e3"),
        ({"data.skip-bad": "yes"}, "--data.skip-bad: must be true or false, got yes"),
        ({"optim": "3"}, "--optim: must be a table, got 3"),
    ],
)
def test_a_mistake_in_a_flag_is_one_line_naming_the_flag(recipe, flags, expected):
    assert mistake(recipe(SMALL), flags) == expected


def test_a_missing_setting_says_how_to_set_it(recipe):
    line = "student is required: set it in the recipe or by --student"
    assert mistake(recipe(SMALL.replace('student = "tiny"', ""))) == line
    assert mistake(None, {}, ReportConfig) == "run_dir is required: set it in the recipe or by --run-dir"


def test_a_recipe_that_is_not_utf8_is_refused_in_one_line(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"a = '\xff'")
    assert mistake(path) == ": not UTF-8 text"


def test_a_recipe_that_is_not_there_names_a_near_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'phi4mm/distill'?" in mistake("phi4mm/distil")
    assert mistake(".") == ": a folder; a recipe is a .toml file"


def test_a_shipped_recipe_is_found_by_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["phi4mm/sft", "phi4mm/sft.toml", "recipes/phi4mm/sft", "recipes/phi4mm/sft.toml"]
    assert len({find_recipe(name).resolve() for name in names}) == 1
    mine = tmp_path / "recipes" / "phi4mm" / "sft.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("stage = 'sft'")
    assert find_recipe("recipes/phi4mm/sft").resolve() == mine  # a file here goes before a shipped one


def test_the_recipe_of_a_short_name_is_the_default():
    path = default_recipe("distill", {"student": "phi4mm"})
    assert path is not None
    assert path.parts[-2:] == ("phi4mm", "distill.toml")
    assert default_recipe("distill", {"student": "/some/folder"}) is None
    assert default_recipe("report", {}) is None
    with pytest.raises(UserError, match="give a recipe or --student"):
        default_recipe("sft", {})


def test_a_recipe_names_its_verb(recipe):
    assert stage_of(recipe("stage = 'sft'")) == "sft"
    with pytest.raises(UserError, match="must name the verb of this recipe; did you mean 'distill'"):
        stage_of(recipe("stage = 'distil'"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_valid_and_is_written_back_equal(name, recipe):
    config_type = CONFIGS[stage_of(name)]
    config = load(config_type, name, {})
    assert load(config_type, recipe(dump_toml(config)), {}) == config


def test_every_setting_is_described():
    for config in CONFIGS.values():
        for name, field in settings_of(config):
            assert field.description, name


def test_a_dumped_recipe_keeps_what_is_off(recipe):
    config = load(DistillConfig, recipe(SMALL), {"lora": "none"})
    assert load(DistillConfig, recipe(dump_toml(config)), {}) == config


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
NUMBERS = st.floats(1e-12, 1e12)


def test_tables_of_tables_are_written_back_equal(tmp_path: Path) -> None:
    """Teachers and rewards under names of the user's, one of which TOML has to quote."""
    recipe = tmp_path / "a.toml"
    flags = {
        "teacher": "tiny-llm",
        "teachers": '{"zh 2" = {model = "llama-70b", weight = 2.0}, en = {model = "m", reading = {top_k = 3}}}',
    }
    config = load(DistillConfig, "tiny/distill", flags)
    recipe.write_text(dump_toml(config))
    assert load(DistillConfig, recipe, {}) == config
    assert config.teachers["zh 2"].reading is None


@settings(deadline=None)  # a busy machine takes its time
@given(
    student=TEXT, tests=st.dictionaries(TEXT, st.just("x.jsonl")), lr=NUMBERS, options=st.dictionaries(TEXT, NUMBERS)
)
def test_any_config_is_written_back_equal(tmp_path_factory, student, tests, lr, options):
    settings = {
        "student": student,
        "run_dir": "x",
        "data": {"train": "a", "tests": tests, "kinds": [student]},
        "optim": {"steps": 1, "lr": lr},
        "teacher": "t",
        "loss_options": options,
    }
    config = DistillConfig.model_validate_json(json.dumps(settings))
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(dump_toml(config), encoding="utf-8")
    assert load(DistillConfig, path, {}) == config


def test_each_verb_has_one_config():
    assert {verb_of(config) for config in CONFIGS.values()} == set(CONFIGS)
    assert verb_of(SftConfig) == "sft"


def test_a_field_of_one_of_a_table_of_sections_is_a_flag() -> None:
    given = {"run_dir": "r", "data.train": "t.jsonl", "rewards.my-own.reward": "wer", "rewards.biasing.weight": "2"}
    config = load(RlbrConfig, "tiny/rlbr", given | {"rewards.biasing.options.biasing": "3"})
    assert {name: (one.reward, one.weight) for name, one in config.rewards.items()} == {
        "biasing": ("biasing", 2.0),
        "my-own": ("wer", 1.0),
    }
    assert config.rewards["biasing"].options == {"biasing": 3}
    with pytest.raises(UserError, match=r"--rewards.biasing.\*: --wait: unknown flag"):
        load(RlbrConfig, "tiny/rlbr", {"rewards.biasing.wait": "2"})
