"""What of a model's folder every student family refuses, in one line, and what it passes over."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from families.common import Folder
from safetensors.torch import load_file, save_file

from rlspeech.engines.loading import StudentPlace
from rlspeech.errors import UserError


def test_missing_and_unexpected_tensors_are_listed(folders: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(), tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("layers.1.self_attn.o_proj.weight"))
    cut = next(name for name in tensors if name.endswith("layers.0.self_attn.o_proj.weight"))
    tensors["stray.weight"] = tensors.pop(lost)
    tensors[cut] = tensors[cut][:, 1:].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        StudentPlace.of(str(folder)).load()
    line = str(caught.value)
    assert "missing: 1 (" in line
    assert lost.split(".layers.")[1] in line
    assert "unexpected: 1 (stray.weight)" in line
    assert "of another shape: 1 (" in line
    assert "\n" not in line


def test_an_expert_without_a_matrix_is_seen(folders: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(), tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    lost = next((name for name in tensors if name.endswith("layers.1.mlp.experts.2.up_proj.weight")), None)
    if lost is None:
        pytest.skip("no experts")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="an expert lacks a matrix"):
        StudentPlace.of(str(folder)).load()


def test_parts_that_are_not_of_the_student_are_passed_over(folders: Folder, tmp_path: Path) -> None:
    """Published models have them: a talker, a vocoder."""
    student = StudentPlace.of(str(folders())).load()
    if not student.UNREAD:
        pytest.skip("the student is the whole model")
    folder = shutil.copytree(folders(), tmp_path / "whole")
    more = {f"{part}layer.weight": torch.ones(2) for part in student.UNREAD}
    save_file(load_file(folder / "model.safetensors") | more, folder / "model.safetensors", metadata={"format": "pt"})
    again, expected = StudentPlace.of(str(folder)).load().model.state_dict(), student.model.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in again.items())


def test_a_tokenizer_without_the_audio_token_says_so(family: str, folders: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(), tmp_path / "deaf")
    token = StudentPlace.of(str(folder)).load(weights=False).AUDIO
    for file in [*folder.glob("token*.json"), *folder.glob("special*.json"), *folder.glob("tekken.json")]:
        file.write_text(file.read_text().replace(json.dumps(token)[1:-1], "<other>"))
    with pytest.raises(UserError, match="has no token .*, which stands for audio in " + family):
        StudentPlace.of(str(folder)).load(weights=False)


def test_another_models_tokenizer_is_seen(folders: Folder, tmp_path: Path) -> None:
    folder = shutil.copytree(folders(), tmp_path / "mixed")
    file = folder / "config.json"
    file.write_text(re.sub(r'("audio_token_(id|index)": )\d+', r"\g<1>7", file.read_text()))
    with pytest.raises(UserError, match="the two are not of one model"):
        StudentPlace.of(str(folder)).load(weights=False)
