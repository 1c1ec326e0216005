"""Granite Speech: features against torchaudio's, and its encoder over a long audio against transformers' own."""

import shutil
from pathlib import Path
from typing import Any

import families.granite_speech as granite
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_families import QUESTION, logits, noise, prompt
from transformers import GraniteSpeechFeatureExtractor

from rlspeech.cli import main
from rlspeech.engines.loading import StudentPlace
from rlspeech.errors import UserError
from rlspeech.students import _granite_features
from rlspeech.students._granite_encoder import encode
from rlspeech.students._granite_features import GraniteFeatures
from rlspeech.students.granite_speech import Student
from rlspeech.types import Sample, Waveform

RATE_HZ = 16_000
CONTEXT, REACH = 200, 7  # frames that see one another; frames beside, that a convolution of 15 sees


def sweep(samples: int) -> np.ndarray:
    at = np.arange(samples)
    return (0.3 * np.sin(at * at / 40_000) + 0.01 * np.cos(at / 7)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return granite.write(tmp_path_factory.mktemp("granite") / "model", context=8192)


@pytest.fixture
def student(folder: Path) -> Any:
    return Student.load(folder)


@pytest.mark.parametrize(
    ("samples", "rows", "first", "last", "middle"),
    [
        (1_600, 5, (1.0849, 1.1968, 1.2843), (-0.2738, -0.2738, -0.2738), (-0.2738, -0.2738, 1.1703)),
        (16_000, 50, (1.0849, 1.1968, 1.2843), (0.2755, 0.2757, 0.2767), (-0.2175, -0.2175, -0.2175)),
        (16_161, 51, (1.0849, 1.1968, 1.2843), (0.7650, 0.7651, 0.7662), (-0.2175, -0.2175, -0.2175)),
    ],
)
def test_features_are_those_of_torchaudio(samples: int, rows: int, first: Any, last: Any, middle: Any) -> None:
    """Values that transformers' extractor gave with torchaudio 2.11: its edges, and where two frames meet in a row."""
    (found,) = GraniteFeatures()(sweep(samples))["input_features"]
    assert found.shape == (rows, 160)
    for part, expected in ((found[0, :3], first), (found[-1, -3:], last), (found[rows // 2, 78:81], middle)):
        assert part.tolist() == pytest.approx(expected, abs=1e-4)


def test_features_of_several_audios_are_of_each_with_zeros_behind_it() -> None:
    extractor = GraniteFeatures()
    both = extractor([sweep(1_600), sweep(5_000)])
    alone = extractor(np.pad(sweep(1_600), (0, 3_400)))["input_features"][0]
    assert torch.equal(both["input_features"][0], alone)
    assert both["audio_embed_sizes"] == [3, 6]
    assert both["input_features_mask"].sum(1).tolist() == [3, 6]


def test_features_in_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    audio = torch.from_numpy(sweep(3 * RATE_HZ + 77))
    whole = GraniteFeatures().log_mel(audio)
    monkeypatch.setattr(_granite_features, "PIECE", 7)
    assert torch.allclose(GraniteFeatures().log_mel(audio), whole, atol=1e-4)


def test_the_extractor_is_configured_as_the_published_one() -> None:
    """Whose own constructor wants torchaudio; a folder's settings are read by it."""
    settings = granite.EXTRACTOR | {"projector_window_size": 12}
    found = GraniteFeatures(**{name: value for name, value in settings.items() if name != "processor_class"})
    assert isinstance(found, GraniteSpeechFeatureExtractor)
    assert (found.projector_window_size, found.projector_downsample_rate) == (12, 5)
    assert found.melspec_kwargs == granite.EXTRACTOR["melspec_kwargs"]


@pytest.mark.parametrize("frames", [1, 199, 200, 207, 1_003])
@pytest.mark.parametrize("blocks", [1, 2, 16])
def test_the_encoder_by_parts_gives_what_it_gives_as_a_whole(student: Any, frames: int, blocks: int) -> None:
    features = torch.randn(frames, 160, generator=torch.Generator().manual_seed(frames))
    with torch.no_grad():
        whole = student.tower(features[None]).last_hidden_state[0]
        assert torch.allclose(encode(student.tower, features, blocks_at_once=blocks), whole, atol=1e-4)


def test_a_block_hears_what_its_neighbours_hear(student: Any) -> None:
    """So no part can be encoded alone: a block hears one more on either side with every layer."""
    features = torch.randn(5 * CONTEXT, 160, generator=torch.Generator().manual_seed(0))
    other = features.clone()
    other[0] += 1
    with torch.no_grad():
        moved = (
            encode(student.tower, other, blocks_at_once=1) - encode(student.tower, features, blocks_at_once=1)
        ).abs()
    changed = [bool(block.max() > 0) for block in moved.split(CONTEXT)]
    assert changed == [True, True, True, False, False]


def test_gradients_by_parts_are_those_of_the_whole(student: Any) -> None:
    features = torch.randn(950, 160, generator=torch.Generator().manual_seed(2))
    student.tower.requires_grad_(True)
    encode(student.tower, features, blocks_at_once=2).square().mean().backward()
    by_parts = {name: value.grad.clone() for name, value in student.tower.named_parameters()}
    student.tower.zero_grad()
    student.tower(features[None]).last_hidden_state.square().mean().backward()
    for name, value in student.tower.named_parameters():
        assert torch.allclose(by_parts[name], value.grad, atol=1e-5), name


def test_half_an_hour_goes_through_every_layer_by_the_blocks_of_the_setting(student: Any) -> None:
    widths = set()
    for module in student.tower.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda module, given: widths.add(max(given[0].shape)))
    student.windows_at_once = 4
    with torch.no_grad():
        (heard,) = student.hear([sweep(1800 * RATE_HZ)])
    assert heard.shape[0] == 18_000
    assert max(widths) == 4 * CONTEXT + 2 * REACH + 2 * REACH  # with the zeros that the convolution puts around


def test_audio_that_cannot_be_mirrored_at_its_ends_is_refused(student: Any) -> None:
    """256 samples, half a window; torch would stop at them."""
    with pytest.raises(UserError, match=r"a: 0\.016 s of audio is too short to hear"):
        student.render(Sample("a", "What?"), Waveform(sweep(256), RATE_HZ))
    heard = student.render(Sample("a", "What?"), Waveform(sweep(257), RATE_HZ))
    assert len(student.encode([heard])[0]) == heard.token_ids.count(student.placeholder_id) == 3


@pytest.fixture
def published(folder: Path, tmp_path: Path) -> Path:
    """A folder that holds an adapter, which the model applies where it hears."""
    from peft import LoraConfig

    copy = shutil.copytree(folder, tmp_path / "published")
    generator, tensors = torch.Generator().manual_seed(5), {}
    for name, module in granite.MODEL.from_pretrained(folder).named_modules():
        if "language_model" in name and name.endswith(("q_proj", "v_proj")):
            for factor, size in (("A", (4, module.in_features)), ("B", (module.out_features, 4))):
                value = 0.3 * torch.randn(size, generator=generator)
                tensors[f"base_model.model.{name}.lora_{factor}.weight"] = value
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]).save_pretrained(copy)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"has_lora_adapter": false', '"has_lora_adapter": true'))
    return copy


@torch.no_grad()
def test_a_published_adapter_is_merged_by_the_command_that_the_refusal_names(published: Path, tmp_path: Path) -> None:
    """What is converted hears as transformers hears with the adapter."""
    with pytest.raises(UserError, match=r": rlspeech convert .* --to merged --out NEW_FOLDER$") as told:
        StudentPlace.of(str(published))
    words = str(told.value).partition(": rlspeech ")[2].replace("NEW_FOLDER", str(tmp_path / "merged")).split()
    assert main([*words, "--quiet"]) == 0
    student = StudentPlace.of(str(tmp_path / "merged")).load()
    own = logits(student, prompt(student, 1.3))
    model = granite.MODEL.from_pretrained(published).eval()
    heard = granite.inputs(published, QUESTION, noise(1.3, seed=1).samples)
    model.enable_adapters()
    assert torch.allclose(own, model(**heard).logits[0] / granite.LOGITS_SCALING, atol=1e-3)
    model.disable_adapters()
    assert not torch.allclose(own, model(**heard).logits[0] / granite.LOGITS_SCALING, atol=0.1)


def test_there_is_nothing_to_merge_without_an_adapter(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["convert", str(folder), "--to", "merged", "--out", str(tmp_path / "new"), "--quiet"]) == 2
    assert "holds no adapter, adapter_config.json: there is nothing to merge" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
