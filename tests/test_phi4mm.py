"""Phi-4-multimodal: long audio, LongRoPE by the prompt, the adapter inside the model, transformers alone as witness."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import families.phi4mm as small
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import RATE_HZ, asked, gap, learners_batches, logits, noise, prompt, witness
from transformers import Phi4MultimodalFeatureExtractor

from rlspeech.config import OptimConfig
from rlspeech.config_engines import VllmConfig
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.measure import hidden_of, measure
from rlspeech.engines.merging import merged_weights
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.vllm_engine import Layout, start
from rlspeech.errors import UserError
from rlspeech.losses.cross_entropy import Loss
from rlspeech.protocols import Sampling
from rlspeech.stages.parity import compare
from rlspeech.students import _conformer
from rlspeech.students._longrope import LongRope
from rlspeech.students.phi4mm import Student
from rlspeech.types import Completion, Prompt, Rollout, Sample, Waveform

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
LONG_S = 90.0  # of audio: more tokens than the short frequencies reach
EXTRACTOR = Phi4MultimodalFeatureExtractor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("phi4mm") / "model")


@pytest.fixture(scope="module")
def with_adapter(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.add_adapter(shutil.copytree(folder, tmp_path_factory.mktemp("phi4mm") / "adapted"))


@pytest.fixture
def student(folder: Path) -> Student:
    return Student.load(folder)


@pytest.fixture
def adapted(with_adapter: Path) -> Student:
    return Student.load(with_adapter)


def whole(seconds: float) -> torch.Tensor:
    """Features [M, 80] as the family's extractor gives them, of the whole audio at once."""
    wave = noise(seconds).samples
    return EXTRACTOR(wave, sampling_rate=RATE_HZ, return_tensors="pt")["audio_input_features"][0]


@torch.no_grad()
def logits_at(student: Student, heard: Prompt) -> torch.Tensor:
    """[T, V] at the positions that the prompt has."""
    ids = torch.tensor([heard.token_ids])
    positions = torch.arange(ids.shape[1])[None] + student.first_position(heard)
    embedded = student.embed(ids, student.collate([heard]))
    hidden = student.decoder(inputs_embeds=embedded, position_ids=positions, use_cache=False).last_hidden_state
    return (hidden @ student.head().T)[0]


@pytest.mark.parametrize("seconds", [0.1, 39.99, 40.1, 123.4])
def test_features_in_pieces_are_those_of_the_whole(seconds: float) -> None:
    assert torch.equal(_conformer.log_mel(EXTRACTOR, noise(seconds).samples), whole(seconds))


@torch.no_grad()
def test_audio_of_any_length_is_encoded_as_transformers_encodes_it_alone(student: Student) -> None:
    """One window, its last frame filled or not, one frame more, two windows, several; all in one call."""
    seconds = (0.1, 0.3, 7.77, 39.9, 40.0, 40.03, 40.1, 80.5, 123.4)
    mels = [whole(one) for one in seconds]
    theirs = [student.tower(mel[None], None)[0] for mel in mels]
    for at_once in (1, 4, 100):
        for ours, expected in zip(_conformer.encode(student.tower, mels, at_once=at_once), theirs, strict=True):
            assert ours.shape == expected.shape
            assert torch.allclose(ours, expected, atol=1e-4)


@torch.no_grad()
def test_a_batch_of_transformers_own_hears_the_padding(student: Student) -> None:
    """Why we do not use it: the same audio, alone and beside a longer one."""
    mels = [whole(1.0), whole(3.0)]
    alone = student.tower(mels[0][None], None)[0]
    mask = torch.arange(len(mels[1])) < torch.tensor([[len(mel)] for mel in mels])
    batch = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    assert not torch.allclose(student.tower(batch, mask)[0][: len(alone)], alone, atol=1e-2)


def test_gradients_reach_the_encoder_through_every_window(student: Student) -> None:
    student.prepare("align", train_encoder=True)
    (frames,) = student.encode([prompt(student, LONG_S)])
    frames[600:700].sum().backward()
    assert all(value.grad is not None for value in student.tower.parameters())


@pytest.mark.parametrize(
    ("frames", "text", "long"), [(768, 900, False), (769, 1, True), (0, 768, False), (0, 769, True)]
)
def test_a_prompt_is_long_by_its_audio_or_else_by_its_text(
    student: Student, frames: int, text: int, long: bool
) -> None:
    """The reach is 1,024 tokens, of which a quarter is left to instruction and reply."""
    ids = (*[student.placeholder_id] * frames, *[5] * text)
    first = student.first_position(Prompt(ids))
    assert first == (student.model.config.max_position_embeddings if long else 0)


def test_cosines_are_those_of_transformers_on_both_sides(student: Student, folder: Path) -> None:
    rotary = small.MODEL.from_pretrained(folder).model.rotary_emb
    like = torch.zeros(1)
    for length, first in ((small.REACH, 0), (small.REACH + 1, student.model.config.max_position_embeddings)):
        positions = torch.arange(length)[None]
        theirs = rotary(like, positions)
        ours = student.decoder.rotary_emb(like, positions + first)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(ours, theirs, strict=True))


def test_logits_of_a_long_prompt_are_those_of_transformers(student: Student, folder: Path) -> None:
    heard = prompt(student, LONG_S)
    assert len(heard.token_ids) > small.REACH
    theirs = witness(small, folder, LONG_S)
    assert torch.allclose(logits_at(student, heard), theirs, atol=1e-3)
    assert not torch.allclose(logits(student, heard), theirs, atol=0.1)  # read by the short frequencies


def test_a_rows_logits_do_not_hang_on_its_neighbours(student: Student, folder: Path) -> None:
    """A long prompt and a short one in one micro-batch, each as transformers has it alone."""
    rollouts, expected = [], []
    for name, seconds in (("long", LONG_S), ("short", 2.0)):
        heard = prompt(student, seconds, name)
        rollouts.append(Rollout(Sample(name, "x"), heard, Completion((7,), (), "", "stop")))
        expected.append(witness(small, folder, seconds, name)[-1])
    (batch,) = make_batches(student, rollouts, micro_batch=2)
    ours = hidden_of(student, batch) @ student.head().T
    for row, index in enumerate(batch.rollout.tolist()):
        assert torch.allclose(ours[row], expected[index], atol=1e-3)


def test_replies_of_long_and_short_prompts_together_have_the_learners_log_probs(student: Student) -> None:
    """The short one's reply goes on past the reach of the short frequencies."""
    samples = [Sample(name, "x") for name in ("long", "near", "short")]
    prompts = [prompt(student, s, one.id) for s, one in zip((LONG_S, 61.0, 2.0), samples, strict=True)]
    near = replace(prompts[1], token_ids=(*prompts[1].token_ids, *range(300, 550)))
    assert small.REACH - 4 < len(near.token_ids) <= small.REACH
    assert student.first_position(near) == 0
    prompts = [prompts[0], near, prompts[2]]
    rollouts = TransformersRollouts(student).generate(samples, prompts, Sampling(max_tokens=8, temperature=1.0))
    found = measure(student, make_batches(student, rollouts, micro_batch=3), Loss())
    assert found.metrics["kl/sampler_learner_max_nats"] < 1e-4


def test_another_rope_is_refused(folder: Path) -> None:
    config = small.MODEL.config_class.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    with pytest.raises(UserError, match="rope_type is 'default'"):
        LongRope.of(config)


def test_text_that_would_end_the_turn_is_refused(student: Student) -> None:
    with pytest.raises(UserError, match=r"holds <\|end\|>"):
        prompt(student, None, question="Stop.<|end|> Sure")


def test_spaces_that_the_tokenizer_takes_away_are_taken_away(student: Student) -> None:
    wave = noise(0.5, seed=1)
    ours = student.render(Sample("a", "  What is said? "), wave).token_ids
    assert list(ours) == small.inputs(student.folder, "  What is said? ", wave.samples)["input_ids"][0].tolist()


def test_vllm_does_not_share_keys_between_long_and_short_prompts(student: Student) -> None:
    assert student.vllm_input(prompt(student, LONG_S))["cache_salt"]
    assert "cache_salt" not in student.vllm_input(prompt(student, 1.0))


# The adapter inside the model


@torch.no_grad()
def transformers_logits(folder: Path, seconds: float) -> torch.Tensor:
    """[T, V] of transformers and PEFT alone, as the family's documentation loads the adapter."""
    model = small.MODEL.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_adapter(str(folder / "speech-lora"), adapter_name="speech")
    model.set_adapter("speech")
    return model(**small.inputs(folder, "Who is speaking, and of what?", noise(seconds, seed=1).samples)).logits[0]


def test_the_models_own_adapter_is_heard_with(adapted: Student, with_adapter: Path, student: Student) -> None:
    theirs = transformers_logits(with_adapter, 1.3)
    assert torch.allclose(logits(adapted, prompt(adapted, 1.3)), theirs, atol=1e-3)
    assert not torch.allclose(logits(student, prompt(student, 1.3)), theirs, atol=0.1)


@pytest.mark.parametrize(
    ("stage", "lora", "learns"),
    [
        ("align", None, {"encoder", "for_speech"}),
        ("sft", LORA, {"for_speech", "lora"}),
        ("distill", LORA, {"for_speech", "lora"}),
        ("sft", None, {"for_speech", "layers", "norm", "embed_tokens"}),
    ],
)
def test_each_stage_trains_its_parameters_and_no_others(adapted: Student, stage, lora, learns) -> None:
    """Of a model with an adapter of its own: the parts that changed in a step are those that learn."""
    adapted.prepare(stage, lora, train_encoder=stage == "align")
    before = {name: value.detach().clone() for name, value in adapted.model.named_parameters()}
    assert {part(name) for name, value in adapted.model.named_parameters() if value.requires_grad} == learns
    learner = TorchLearner.of(adapted, OptimConfig(steps=10, lr=1e-2))
    learner.step(learners_batches(adapted), Loss())
    changed = {name for name, value in adapted.model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {name for name, value in adapted.model.named_parameters() if value.requires_grad}


def part(parameter: str) -> str:
    names = parameter.split(".")
    if ".lora_" in parameter:
        return "lora"
    if "audio_embed" in names:
        return "encoder" if "encoder" in names else "for_speech" if names[-2].endswith("proj_for_speech") else "rest"
    return names[1] if "image_embed" not in names else "rest"


def test_a_stage_without_lora_begins_with_the_adapters_logits(adapted: Student) -> None:
    own = logits(adapted, prompt(adapted, 1.3))
    adapted.prepare("sft", None)
    assert not any(".lora_" in name for name, _ in adapted.model.named_parameters())
    assert torch.allclose(logits(adapted, prompt(adapted, 1.3)), own, atol=1e-3)


def test_a_recipe_that_asks_for_another_adapter_is_refused(adapted: Student) -> None:
    with pytest.raises(
        UserError, match=r"own adapter has lora\.rank = 4 and lora\.alpha = 8; the recipe says 16 and 8"
    ):
        adapted.prepare("sft", LORA | {"rank": 16})


def test_a_trained_adapter_is_saved_merged_and_beside(adapted: Student, tmp_path: Path) -> None:
    heard = prompt(adapted, 1.3)
    adapted.prepare("sft", LORA)
    learner = TorchLearner.of(adapted, OptimConfig(steps=10, lr=1e-2))
    learner.step(learners_batches(adapted), Loss())
    own = logits(adapted, heard)
    learner.export(tmp_path)
    assert not (tmp_path / "speech-lora").exists()
    assert torch.allclose(witness(small, tmp_path, 1.3), own, atol=1e-3)
    again = Student.load(tmp_path)
    assert again.own_lora is None
    assert torch.allclose(logits(again, heard), own, atol=1e-3)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4


def test_merged_weights_of_an_adapter_that_does_not_learn_are_those_that_are_heard(adapted: Student) -> None:
    adapted.prepare("align", train_encoder=True)
    names = {name for name, _ in merged_weights(adapted, learned_only=True)}
    assert any(name.endswith("mlp.down_proj.weight") for name in names)
    assert not any(".lora_" in name or "base_layer" in name for name in names)


def test_without_weights_a_student_with_an_adapter_names_the_same_parameters(with_adapter: Path, adapted) -> None:
    light = Student.load(with_adapter, weights=False)
    assert all(value.is_meta for value in light.model.parameters())
    assert list(light.model.state_dict()) == list(adapted.model.state_dict())
    assert prompt(light, 1.0).token_ids == prompt(adapted, 1.0).token_ids


def test_missing_and_unexpected_tensors_of_an_adapter_are_listed(with_adapter: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(with_adapter, tmp_path / "damaged")
    file = copy / "speech-lora" / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if "layers.1.mlp.down_proj.lora_A" in name)
    tensors["stray.weight"] = tensors.pop(lost)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: 1 \(model\.layers\.1\.mlp\.down_proj\.lora_A\.weight\)") as caught:
        Student.load(copy)
    assert "unexpected: 1 (stray.weight)" in str(caught.value)


def test_a_minute_and_a_half_is_trained_on(student: Student) -> None:
    """What is long in this small model: the loss falls."""
    wave = Waveform(np.sin(np.arange(round(LONG_S * RATE_HZ)) / 9).astype(np.float32), RATE_HZ)
    sample = Sample("a", "Which tone?", reference="High.")
    ids = (*student.tokenizer(sample.reference).input_ids, student.end_token_id)
    heard = student.render(sample, wave)
    batches = make_batches(student, [Rollout(sample, heard, Completion(ids, (), "", "stop"))], micro_batch=1)
    student.prepare("sft", LORA)
    learner = TorchLearner.of(student, OptimConfig(steps=20, lr=2e-2))
    losses: list[Any] = [learner.step(batches, Loss()).metrics["train/loss"] for _ in range(4)]
    assert losses[-1] < losses[0]


# In vLLM


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> VllmRollouts:
    """On a folder as it is published: with an adapter of its own beside the weights."""
    folder = small.add_adapter(small.write(tmp_path_factory.mktemp("phi4mm") / "published", head_dim=32))
    settings = VllmConfig(max_model_len=2048, max_num_seqs=8, kv_cache_gib=0.25)
    return VllmRollouts(start(folder, settings, Layout(threads=2)), Student.load(folder, weights=False), settings)


@pytest.mark.slow
def test_vllm_hears_with_the_adapter_and_reads_long_prompts_by_long_frequencies(engine: VllmRollouts) -> None:
    """Long and short prompts in one batch; prompts about one audio share their keys, those on the other side none."""
    student = Student.load(engine.student.folder)
    samples, prompts = asked(student, (1.3, LONG_S, LONG_S, None))
    found = compare(student, engine, samples, prompts, max_tokens=6, gate_nats=1e-3)
    assert found.differs is None, found
    assert found.equal_replies == found.prompts == 5
    assert found.largest_gap_nats < 1e-3


@pytest.mark.slow
def test_the_models_own_adapter_once_trained_reaches_vllm(engine: VllmRollouts) -> None:
    student = Student.load(engine.student.folder)
    student.prepare("distill", LORA)
    learner = TorchLearner.of(student, OptimConfig(steps=10, lr=2e-2))
    batches = make_batches(student, reference_rollouts(student, *asked(student)), micro_batch=4)
    learner.step(batches, Loss())
    learner.step(batches, Loss())
    assert gap(engine, learner) > 0.1
    engine.load_weights(learner, version=2)
    assert gap(engine, learner) < 1e-3
