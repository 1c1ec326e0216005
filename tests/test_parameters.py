"""`rlspeech plan --parameters`: what learns in which stage, and what it weighs, by numbers worked by hand."""

from pathlib import Path

import families.phi4mm as small
import pytest
from phi4mm_hub import CONFIG
from test_phi4mm_layout import IDS

from rlspeech.cli import main
from rlspeech.config import SftConfig
from rlspeech.recipe import find_recipe, load
from rlspeech.stages.parameters import STAGES, count
from rlspeech.students._phi4mm_config import native_config
from rlspeech.students.phi4mm import Student


def test_the_published_sizes_are_those_of_its_config() -> None:
    model, published = (
        Student.outline().model,
        native_config(CONFIG, IDS),
    )
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    for name in (*names, "vocab_size", "tie_word_embeddings"):
        assert getattr(model.config, name) == getattr(published, name), name
    ours, theirs = model.config.audio_config.to_dict(), published.audio_config.to_dict()
    for name in ("hidden_size", "intermediate_size", "num_blocks", "num_attention_heads", "nemo_conv_channels"):
        assert ours[name] == theirs[name], name


def test_stages_of_phi4mm_learn_what_its_paper_says_and_weigh_what_is_worked_by_hand() -> None:
    """32 layers of 3,072: queries, keys and values 5,120; gate and up 16,384; down from 8,192. Vocabulary 200,064."""
    stages = count(load(SftConfig, find_recipe("phi4mm/sft"), {}))
    adapter = 32 * 320 * ((3072 + 5120) + (3072 + 3072) + (3072 + 16_384) + (8192 + 3072))
    projector = (1024 * 3072 + 3072) + (3072 * 3072 + 3072)
    layer = 3072 * (5120 + 3072 + 16_384) + 8192 * 3072 + 2 * 3072
    sft = stages["sft"]
    assert adapter == 461_373_440
    assert dict(sft.learns) == dict.fromkeys(sft.held, 0) | {"adapter": adapter, "projector": projector}
    assert sft.held["language model"] == 32 * layer + 3072
    assert sft.held["embedding"] == 200_064 * 3072
    assert 430e6 < sft.held["encoder"] < 470e6
    align = stages["align"]
    learns = {part for part, number in align.learns.items() if number}
    assert learns == {"encoder", "projector"}
    assert align.learns["encoder"] == align.held["encoder"]
    assert all(stages[name].learns == sft.learns for name in STAGES[2:])
    assert sft.memory_gib["optimizer"] == pytest.approx(2 * 2 * (adapter + projector) / 2**30)


def test_the_table_is_printed_behind_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = small.add_adapter(small.write(tmp_path / "student"))
    lora = ["--lora.rank=4", "--lora.alpha=8", f"--run-dir={tmp_path / 'run'}"]
    assert (
        main(
            ["plan", "sft", f"--student={folder}", "--data.train=none.jsonl", "--optim.steps=1", *lora, "--parameters"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "Plan of sft" in out
    assert "Parameters, in millions" in out
    assert not (tmp_path / "run").exists()


def test_sizes_that_nothing_tells_are_asked_for_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--student=Qwen/Qwen2-Audio-7B-Instruct", "--data.train=none.jsonl", "--optim.steps=1", "--run-dir=x"]
    assert main(["plan", "sft", *flags, "--parameters"]) == 2
    assert "--parameters needs its config.json" in capsys.readouterr().err
