"""Phi-4-multimodal from the hub's layout to transformers' own, through training, and back."""

import inspect
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families.phi4mm as small
import phi4mm_hub as hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import learners_batches, logits, prompt
from test_phi4mm import transformers_logits
from torch import Tensor

from rlspeech.cli import main
from rlspeech.config import OptimConfig
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.loading import StudentPlace
from rlspeech.errors import UserError
from rlspeech.losses.cross_entropy import Loss
from rlspeech.students import _phi4mm_config
from rlspeech.students._phi4mm_config import native_config
from rlspeech.students._phi4mm_layout import apart, hub_name, hub_shapes, native_name, native_shapes, to_hub, to_native
from rlspeech.students._rewrite import Stored, new_folder
from rlspeech.students.phi4mm import Student

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
IDS = {"<|endoftext10|>": 200010, "<|endoftext11|>": 200011, "<|endoftext|>": 199999, "<|end|>": 200020}
RANKS = {"speech": 320, "vision": 256}
VISION = dict(_phi4mm_config.VISION)

# The published sizes, on the meta device


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[int, ...]]:
    """Native names and shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_phi4mm_config, "VISION", VISION)
        return dict(native_shapes(native_config(hub.CONFIG, IDS)))


def test_the_hubs_tensors_are_those_of_transformers_under_its_scripts_names(published: Any) -> None:
    """Each native name is hit once, in the same shape, from a list written without our code."""
    theirs = hub.tensors(hub.CONFIG)
    plain = {name: shape for name, shape in theirs.items() if ".lora_" not in name}
    assert [hub.renamed(name) for name in plain] == [native_name(name) for name in plain]
    assert len({native_name(name) for name in plain}) == len(plain)
    assert {native_name(name): shape for name, shape in plain.items()} == published
    assert {hub_name(native_name(name)) for name in plain} == set(plain)
    assert hub_shapes(published, RANKS) == theirs


def test_the_published_model_has_5_574_million_parameters(published: Any) -> None:
    """As the hub counts its files: 11,148,920,768 bytes of bfloat16; its conformer and two projectors, 887 tensors."""
    theirs = hub.tensors(hub.CONFIG)
    assert sum(torch.Size(shape).numel() for shape in theirs.values()) == 5_574_460_384
    assert len([name for name in theirs if "audio_embed" in name]) == 887


def test_vllm_reads_the_audio_by_the_same_names_and_shapes() -> None:
    phi4mm = pytest.importorskip("vllm.model_executor.models.phi4mm")
    embedding = pytest.importorskip("vllm.model_executor.models.phi4mm_audio").AudioEmbedding
    with torch.device("meta"):
        theirs = embedding(SimpleNamespace(**hub.CONFIG), **hub.CONFIG["embd_layer"]["audio_embd_layer"])
    found = {f"embed_tokens_extend.{name}": tuple(value.shape) for name, value in theirs.state_dict().items()}
    ours = dict(phi4mm.Phi4MMForCausalLM.hf_to_vllm_mapper.apply(hub.tensors(hub.CONFIG).items()))
    assert {name: shape for name, shape in ours.items() if name.startswith("embed_tokens_extend.")} == found


def test_the_vision_tower_has_the_sizes_that_vllm_builds_it_with() -> None:
    phi4mm = pytest.importorskip("vllm.model_executor.models.phi4mm")
    text = inspect.getsource(phi4mm.get_navit_vision_model)
    assert [name for name, size in VISION.items() if f'"{name}": {size},' not in text] == []


def test_the_native_config_is_the_published_one_in_all_that_both_have() -> None:
    config = native_config(hub.CONFIG, IDS)
    assert (config.num_attention_heads, config.num_key_value_heads, config.tie_word_embeddings) == (24, 8, True)
    assert config.rope_parameters["rope_type"] == "longrope"
    assert config.rope_parameters["original_max_position_embeddings"] == 4096
    assert config.rope_parameters["partial_rotary_factor"] == 0.75
    assert config.rope_parameters["long_factor"] == hub.LONG
    assert config.audio_config.bias_max_distance == 500
    assert (config.audio_config.audio_token_id, config.vision_config.image_token_id) == (200011, 200010)
    assert config.eos_token_id == [199999, 200020]


# A small model


@pytest.fixture(scope="module")
def small_vision() -> Iterator[None]:
    """The hub's config.json says nothing of the vision tower: its sizes are fixed in the code there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_phi4mm_config, "VISION", hub.SMALL_VISION)
        yield


@pytest.fixture(scope="module")
def truth(small_vision: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native folder that no converter has touched."""
    folder = small.write(tmp_path_factory.mktemp("phi4mm") / "truth")
    small.add_adapter(folder, "speech-lora", seed=3)
    return small.add_adapter(folder, "vision-lora", seed=4)


@pytest.fixture(scope="module")
def original(truth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write(tmp_path_factory.mktemp("phi4mm") / "Phi-4-multimodal-instruct", truth)


@pytest.fixture(scope="module")
def native(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phi4mm") / "native"
    to_native(original, folder)
    return folder


@pytest.fixture(scope="module")
def trained(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the stage sft, and its logits beside it."""
    student = Student.load(native)
    student.prepare("sft", LORA)
    learner = TorchLearner.of(student, OptimConfig(steps=10, lr=1e-2))
    learner.step(learners_batches(student), Loss())
    folder = tmp_path_factory.mktemp("phi4mm") / "trained"
    folder.mkdir()
    learner.export(folder)
    torch.save(logits(student, prompt(student, 1.3)), folder.with_suffix(".pt"))
    return folder


def held(folder: Path, pattern: str = "model*.safetensors") -> dict[str, Tensor]:
    return {name: value for file in sorted(folder.glob(pattern)) for name, value in load_file(file).items()}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_is_converted_is_the_native_model(native: Path, truth: Path) -> None:
    assert_same(held(native), held(truth))
    for adapter in ("speech-lora", "vision-lora"):
        assert_same(held(native / adapter, "*.safetensors"), held(truth / adapter, "*.safetensors"))
    assert not list(native.rglob("*.py"))
    index = json.loads((native / "model.safetensors.index.json").read_text())["weight_map"]
    assert sorted(set(index.values())) == sorted(file.name for file in native.glob("model*.safetensors"))
    assert set(index) == set(held(native))


def test_the_student_and_transformers_hear_with_the_converted_adapter(native: Path, truth: Path) -> None:
    student = StudentPlace.of(str(native)).load()
    own = logits(student, prompt(student, 1.3))
    assert student.own_lora == {"rank": 4, "alpha": 8.0}
    assert torch.allclose(own, transformers_logits(native, 1.3), atol=1e-3)
    assert torch.allclose(own, transformers_logits(truth, 1.3), atol=1e-3)


def test_there_and_back_is_the_same_model(native: Path, original: Path, tmp_path: Path) -> None:
    """From the hub's to native, back, and to native again: bytes for the last, tensors and files for the first."""
    to_hub(native, tmp_path / "hub", base=original)
    assert_same(held(tmp_path / "hub"), held(original))
    for adapter in ("speech-lora", "vision-lora"):
        assert_same(held(tmp_path / "hub" / adapter, "*.safetensors"), held(original / adapter, "*.safetensors"))
    others = {name: held for name, held in files(original).items() if ".safetensors" not in name}
    assert {name: held for name, held in files(tmp_path / "hub").items() if ".safetensors" not in name} == others
    to_native(tmp_path / "hub", tmp_path / "again")
    assert files(tmp_path / "again") == files(native)


def test_a_trained_adapter_goes_back_to_the_hubs_layout(
    trained: Path, native: Path, original: Path, tmp_path: Path
) -> None:
    """Adapter and projector as they were trained, all else as it was downloaded."""
    words = ["--to", "apart", "--base", str(native), "--out", str(tmp_path / "apart"), "--quiet"]
    assert main(["convert", str(trained), *words]) == 0
    words = ["--to", "hub", "--base", str(original), "--out", str(tmp_path / "hub"), "--quiet"]
    assert main(["convert", str(tmp_path / "apart"), *words]) == 0
    after, before = held(tmp_path / "hub"), held(original)
    assert {name: value.shape for name, value in after.items()} == {name: v.shape for name, v in before.items()}
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    projector = "model.embed_tokens_extend.audio_embed.audio_projection.speech."
    assert changed == {name for name in before if ".speech.weight" in name or name.startswith(projector)}
    learned = held(trained / "adapter", "*.safetensors")
    for name in (name for name in after if ".lora_" in name and ".speech." in name):
        assert torch.equal(after[name], learned["base_model.model." + name.replace(".speech.", ".")])


def test_a_trained_model_apart_is_the_model_that_was_trained(trained: Path, native: Path, tmp_path: Path) -> None:
    apart(trained, tmp_path / "apart", base=native)
    student = Student.load(tmp_path / "apart")
    assert student.own_lora == {"rank": 4, "alpha": 8.0}
    own = torch.load(trained.with_suffix(".pt"))
    assert torch.allclose(logits(student, prompt(student, 1.3)), own, atol=1e-3)
    assert torch.allclose(transformers_logits(tmp_path / "apart", 1.3), own, atol=1e-3)
    assert not torch.allclose(transformers_logits(native, 1.3), own, atol=0.1)
    assert_same(held(tmp_path / "apart" / "vision-lora", "*.*s"), held(native / "vision-lora", "*.*s"))


def test_weights_of_two_precisions_come_apart_in_that_of_the_checkpoint(trained: Path, native: Path, tmp_path) -> None:
    """Rounded to bfloat16 the merged matrices are base and adapter still."""
    rounded = shutil.copytree(trained, tmp_path / "rounded")
    state = {name: value.bfloat16() for name, value in held(trained).items()}
    save_file(state, rounded / "model.safetensors", metadata={"format": "pt"})
    apart(rounded, tmp_path / "apart", base=native)
    assert {value.dtype for value in held(tmp_path / "apart").values()} == {torch.bfloat16}
    down = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(held(tmp_path / "apart")[down], held(native)[down].bfloat16())


# Bad input


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["convert", *words, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err.removeprefix("rlspeech: error: ").rstrip()


def test_a_model_that_is_not_loaded_as_it_is_names_the_command(original: Path, capsys, tmp_path: Path) -> None:
    """And that before its code is asked about; the command that is named runs."""
    with pytest.raises(UserError, match=r"remote code; .*: rlspeech convert .* --to native --out NEW_FOLDER$") as told:
        StudentPlace.of(str(original))
    words = str(told.value).partition(": rlspeech ")[2].replace("NEW_FOLDER", str(tmp_path / "new")).split()
    assert main(words) == 0
    assert (tmp_path / "new" / "speech-lora").is_dir()
    said = capsys.readouterr().err
    assert said.count(" GiB") == 2
    assert "model-00002-of-00002.safetensors, file 2 of 2" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("{native} --to native --out {out}", "not in the layout of the hub's remote code: no embd_layer"),
        ("{native} --to nativ --out {out}", "--to nativ: nothing that phi4mm is converted to; did you mean 'native'?"),
        ("tiny --to native --out {out}", "--to native: nothing that tiny is converted to; the family has one layout"),
        ("{original} --to native --out {native}", "native: exists already; nothing is written over it"),
        ("{original} --to native --out {original}/new", "new: within "),
        ("{native} --to hub --out {out}", "--to hub: give --base, the folder as it was downloaded from the hub"),
        ("{original} --to native --base {native} --out {out}", "--base: --to native takes no second folder"),
        ("{native} --to hub --base {out} --out {out}", "--base: no folder "),
        ("{native} --to hub --base {native} --out {out}", "native: not in the layout of the hub's remote code"),
        (
            "{trained} --to hub --base {original} --out {out}",
            "no folder speech-lora; of a trained checkpoint, ",
        ),
        (
            "{native} --to apart --base {native} --out {out}",
            "no folder adapter: what its stage learned cannot",
        ),
        ("{native} {native} --to native --out {out}", "convert: one model at most, got also "),
        ("tiny-llm --to native --out {out}", "tiny-llm: a text model where a speech model is needed"),
        ("{native} --out {out}", "to is required"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: str, expected: str, native: Path, original: Path, trained: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "out"
    given = words.format(native=native, original=original, trained=trained, out=out).split()
    before = files(native)
    assert expected in refused(capsys, *given)
    assert list(tmp_path.iterdir()) == []
    assert files(native) == before


def damaged(original: Path, folder: Path, **changed: Tensor | None) -> Path:
    """A copy of the first file's tensors with some changed, lost (None) or added."""
    copy = shutil.copytree(original, folder)
    file = copy / "model-00001-of-00003.safetensors"
    state = load_file(file) | changed
    save_file({name: value for name, value in state.items() if value is not None}, file, metadata={"format": "pt"})
    return copy


def test_tensors_that_are_missing_or_unknown_are_listed_before_anything_is_written(original, tmp_path, capsys) -> None:
    norm, factor = "model.norm.weight", "model.layers.0.mlp.down_proj.lora_A.speech.weight"
    cut = load_file(original / "model-00001-of-00003.safetensors")[factor][1:].contiguous()
    wrong = damaged(original, tmp_path / "wrong", **{norm: None, factor: cut, "stray.weight": torch.zeros(1)})
    line = refused(capsys, str(wrong), "--to", "native", "--out", str(tmp_path / "new"))
    assert f"missing: 1 ({norm}); unexpected: 1 (stray.weight); of another shape: 1 ({factor})" in line
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        (
            "config.json",
            '{"architectures": ["Phi4MMForCausalLM"], "embd_layer": {}}',
            "no audio_processor, ",
        ),
        ("config.json", "{", "cannot be read as JSON"),
        ("tokenizer.json", '{"added_tokens": []}', "no token <|endoftext10|>, <|endoftext11|>"),
        ("tokenizer_config.json", None, "no tokenizer_config.json"),
        ("model-00002-of-00003.safetensors", "cut off", "cannot be read as safetensors"),
        ("model-00002-of-00003.safetensors", None, "tensors missing: 16 (model.layers.1."),
    ],
)
def test_a_download_that_is_not_whole_is_one_line(original: Path, name, text, expected, tmp_path, capsys) -> None:
    wrong = shutil.copytree(original, tmp_path / "wrong")
    (wrong / name).unlink()
    if text is not None:
        (wrong / name).write_text(text)
    assert expected in refused(capsys, str(wrong), "--to", "native", "--out", str(tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


def test_a_checkpoint_of_another_beginning_does_not_come_apart(trained: Path, native: Path, tmp_path: Path) -> None:
    """Of a stage before: the adapter would be put onto weights that it was not trained with."""
    other = shutil.copytree(native, tmp_path / "other")
    for file in other.glob("model*.safetensors"):
        state = {name: value * 1.5 if "mlp.down_proj" in name else value for name, value in load_file(file).items()}
        save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"2 matrices, such as model\.layers\.0\.mlp\.down_proj\.weight, are not those"):
        apart(trained, tmp_path / "new", base=other)
    assert not (tmp_path / "new").exists()


def test_an_adapter_of_another_scale_does_not_go_to_the_hub(native: Path, original: Path, tmp_path: Path) -> None:
    """The hub's config.json has one alpha for all who download it."""
    other = shutil.copytree(native, tmp_path / "other")
    file = other / "speech-lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 16}))
    with pytest.raises(UserError, match=r"rank 4 and alpha 16, where .* has rank 4 and alpha 8$"):
        to_hub(other, tmp_path / "new", base=original)


def test_a_disk_that_is_full_is_told_before_writing(tmp_path: Path) -> None:
    huge = Stored(tmp_path / "a", "a", (2**50,), torch.float32)
    expected = r"new: 4194304\.00 GiB are to be written, [\d.]+ GiB are free"
    with pytest.raises(UserError, match=expected), new_folder(tmp_path / "new", [huge]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_half_way_leaves_nothing(original: Path, tmp_path: Path, capsys) -> None:
    """A limit on a file's size stands for the disk: small files are written, the large embedding is not."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (original / "model-00003-of-00003.safetensors").stat().st_size
    assert size > 4_000_000 > (original / "model-00001-of-00003.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, limits[1]))
    try:
        line = refused(capsys, str(original), "--to", "native", "--out", str(tmp_path / "new"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "new: cannot be written, and nothing is left of it: " in line
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:

    def interrupted() -> None:
        with new_folder(tmp_path / "new", []) as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
