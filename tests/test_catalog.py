import json
from pathlib import Path

import pytest

from rlspeech.catalog import ask_hub, cache_dir, entries, families, fetch, missing, resolve, source
from rlspeech.errors import UserError
from rlspeech.plugins import find_class, shipped_names

PUBLISHED_BILLIONS = {  # what the models' publishers say
    "tiny-llm": 0.1345,
    "phi4mm": 5.57,
    "qwen2-audio": 8.40,
    "voxtral-mini": 4.68,
    "granite-speech-8b": 8.65,
    "audio-flamingo-3": 8.27,
    "phi4-mini": 3.84,
    "llama-8b": 8.03,
    "llama-70b": 70.6,
    "qwen2.5-7b": 7.62,
    "qwen2.5-72b": 72.7,
}
SMALL = {
    "architectures": ["AudioFlamingo3ForConditionalGeneration"],
    "dtype": "float32",
    "text_config": {
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 32,
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSPEECH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def folder_of(path: Path, config: dict, mark: dict | None = None) -> str:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    if mark:
        (path / "rlspeech.json").write_text(json.dumps(mark))
    return str(path)


def mistake(name: str, **more) -> str:
    with pytest.raises(UserError) as caught:
        resolve(name, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "billions"), PUBLISHED_BILLIONS.items())
def test_the_shapes_of_the_catalog_add_up_to_the_published_size(name, billions):
    assert entries()[name].parameters == pytest.approx(billions, rel=0.005)


def test_the_adapter_of_phi4mm_has_the_published_460_million():
    assert entries()["phi4mm"].lora_parameters(320) == pytest.approx(0.460, rel=0.005)


def test_an_adapter_counts_inputs_and_outputs_of_every_linear_layer(tmp_path):
    entry = resolve(folder_of(tmp_path / "m", SMALL)).entry
    # q 8+8, k 8+4, v 8+4, o 8+8, gate 8+16, up 8+16, down 16+8; two layers, rank 3
    assert entry.lora_parameters(3) == pytest.approx(2 * 3 * (16 + 12 + 12 + 16 + 24 + 24 + 24) / 1e9)
    # a layer: q 64, k 32, v 32, o 64, MLP 3 * 128; embedding 32 * 8, tied
    assert entry.parameters == pytest.approx((2 * (192 + 384) + 256) / 1e9)


def test_every_entry_has_one_way_to_be_had():
    for name, entry in entries().items():
        assert bool(entry.repo) != bool(entry.builder), name
        assert bool(entry.family) == (entry.kind == "speech") == bool(entry.audio_tokens_per_s), name


def test_a_short_name_and_its_hub_id_are_one_model():
    short, long = resolve("phi4mm"), resolve("microsoft/Phi-4-multimodal-instruct")
    assert short.entry is long.entry
    assert (short.family, short.repo) == (long.family, long.repo)


def test_a_folder_tells_its_family_by_mark_then_by_architecture(tmp_path):
    assert resolve(folder_of(tmp_path / "a", SMALL)).family == "audio_flamingo3"
    marked = resolve(folder_of(tmp_path / "b", SMALL, {"family": "tiny"}))
    assert (marked.family, marked.entry.kind, source(marked)) == ("tiny", "speech", "folder")
    assert fetch(marked) == tmp_path / "b"
    text = SMALL["text_config"] | {"architectures": ["LlamaForCausalLM"]}
    assert resolve(folder_of(tmp_path / "c", text), kind="text").family is None


def test_every_family_but_the_marked_one_says_its_architectures_and_no_two_the_same(tmp_path):
    found = families()
    assert set(found.values()) == set(shipped_names("students")) - {"tiny"}
    for family in set(found.values()):
        student = find_class("students", family, "Student")
        assert [name for name, one in found.items() if one == family] == list(student.ARCHITECTURES)
        assert student.MODEL.__name__ in student.ARCHITECTURES or student.MODEL.__bases__[0].__name__ in found


def test_a_run_folder_stands_for_its_checkpoint(tmp_path):
    folder_of(tmp_path / "run" / "checkpoint", SMALL, {"family": "tiny"})
    assert resolve(str(tmp_path / "run")).folder == tmp_path / "run" / "checkpoint"


def test_a_wrong_name_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert mistake("llama-70").endswith("; did you mean 'llama-70b'?")
    assert mistake("tny", kind="speech").startswith("tny: no speech model of this name, no folder, no hub id")
    assert "a speech model where a text model is needed, such as tiny-llm" in mistake("tiny", kind="text")
    assert "a text model where a speech model is needed, such as tiny, phi4mm" in mistake("tiny-llm", kind="speech")
    folder_of(tmp_path / "runs" / "good", SMALL)
    assert mistake("runs/god") == "runs/god: no such folder; did you mean 'good'?"
    (tmp_path / "runs" / "empty").mkdir()
    assert mistake("runs/empty") == "runs/empty: no config.json, so no folder of a model"
    unknown = folder_of(tmp_path / "x", {"architectures": ["BertModel"]})
    assert "architecture 'BertModel' is of no known family" in mistake(unknown)
    (tmp_path / "x" / "config.json").write_text("{")
    assert mistake(unknown).endswith("config.json: cannot be read as JSON")


def test_a_hub_id_is_accepted_and_says_what_was_tried(tmp_path):
    resolved = resolve("some-org/some-model")
    assert source(resolved) == "hub"
    with pytest.raises(UserError) as caught:
        fetch(resolved)
    line = str(caught.value)
    assert "HF_HUB_OFFLINE is set" in line
    assert "`huggingface-cli download some-org/some-model`" in line
    assert "\n" not in missing(resolved, "x")
    assert ask_hub(resolved) == "HF_HUB_OFFLINE is set"


def test_a_snapshot_counts_only_where_all_its_weights_are_there(tmp_path):
    repo = tmp_path / "hub" / "models--some-org--some-model"
    folder = Path(folder_of(repo / "snapshots" / "abc", SMALL))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "1.safetensors"}}))
    assert source(resolve("some-org/some-model")) == "hub"
    (folder / "1.safetensors").write_bytes(b"x")
    resolved = resolve("some-org/some-model")
    assert source(resolved) == "cache"
    assert fetch(resolved) == folder
    assert resolved.family == "audio_flamingo3"


def test_the_cache_is_where_the_variables_say(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("RLSPEECH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "rlspeech"


def test_an_assembled_model_is_seen_in_the_cache():
    assert source(resolve("tiny")) == "to assemble"
    (cache_dir() / "models" / "tiny-llm-1").mkdir(parents=True)
    assert source(resolve("tiny")) == "to assemble"  # the teacher's folder is not the student's
    assert source(resolve("tiny-llm")) == "cache"
