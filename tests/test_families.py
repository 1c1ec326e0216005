"""What every student family promises, on a small random-weight model of its true architecture.

Families are the files of rlspeech/students/; `tests/families/NAME.py` builds the small model of one, and says what the
family's own processor makes of a question. The witness is transformers alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlspeech.config import OptimConfig
from rlspeech.config_engines import VllmConfig
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.learner_torch import TorchLearner
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import policy_of
from rlspeech.engines.merging import merged_weights
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.vllm_engine import Layout, start
from rlspeech.errors import UserError
from rlspeech.losses.cross_entropy import Loss
from rlspeech.protocols import Sampling
from rlspeech.stages.parity import compare
from rlspeech.types import Prompt, Sample, Waveform

RATE_HZ = 16_000
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
QUESTION = "Who is speaking, and of what?"
SECONDS = (0.1, 0.5, 3.57, 30.0, 30.01, 301.7, 1800.0)


def noise(seconds: float, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).normal(scale=0.1, size=round(seconds * RATE_HZ))
    return Waveform(samples.astype(np.float32), RATE_HZ)


Seconds = float | tuple[float, ...] | None  # of an audio, of several, or of none


def waves_of(seconds: Seconds, name: str = "a") -> list[Waveform]:
    lengths = () if seconds is None else seconds if isinstance(seconds, tuple) else (seconds,)
    return [noise(length, seed=len(name) + place) for place, length in enumerate(lengths)]


def prompt(student: Any, seconds: Seconds, name: str = "a", question: str = QUESTION) -> Prompt:
    waves = waves_of(seconds, name)
    made = student.render(Sample(name, question), waves or None)
    return replace(made, audio_key=f"{name}/{seconds}") if waves else made


def tone_like(wave: np.ndarray) -> np.ndarray:
    return np.sin(np.arange(len(wave)) / 3).astype(np.float32)


@torch.no_grad()
def logits(student: Any, heard: Prompt) -> torch.Tensor:
    """[T, V]"""
    ids = torch.tensor([heard.token_ids])
    embedded = student.embed(ids, student.collate([heard]))
    return (student.decoder(inputs_embeds=embedded).last_hidden_state @ student.head().T)[0]


@torch.no_grad()
def witness(built: Any, folder: Path, seconds: Seconds, name: str = "a") -> torch.Tensor:
    """[T, V] of transformers alone."""
    waves = [wave.samples for wave in waves_of(seconds, name)]
    model = built.MODEL.from_pretrained(folder, dtype=torch.float32).eval()
    out = model(**built.inputs(folder, QUESTION, *waves)).logits[0]
    return out / getattr(built, "LOGITS_SCALING", 1.0)


def learners_batches(student: Any) -> list[Any]:
    """Audio of two lengths and a text, in one micro-batch of three rows, and in one of one."""
    samples = [Sample(f"{i}", f"{QUESTION} {i}", reference=f"Answer {i}, and more of it.") for i in range(4)]
    prompts = [prompt(student, s, f"{i}", samples[i].instruction) for i, s in enumerate((0.7, None, 1.9, 1.2))]
    return make_batches(student, reference_rollouts(student, samples, prompts), micro_batch=3)


def adapted(student: Any) -> Any:
    """With an adapter that has an effect: LoRA's B starts at zero."""
    student.prepare("sft", LORA)
    torch.manual_seed(1)
    for name, value in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    return student


@pytest.mark.parametrize("seconds", [None, *SECONDS])
def test_prompt_ids_are_those_of_the_processor(built: Any, long_student: Any, seconds: float | None) -> None:
    """And there are as many placeholders as the encoder has outputs."""
    if seconds and built.STOPS_S and seconds > built.STOPS_S:
        with pytest.raises(UserError, match=f"{seconds:.0f} s of audio; {built.STOPS_S} s fit"):
            prompt(long_student, seconds)
        return
    waves = [wave.samples for wave in waves_of(seconds)]
    theirs = built.inputs(long_student.folder, QUESTION, *waves)["input_ids"][0].tolist()
    heard = prompt(long_student, seconds)
    assert list(heard.token_ids) == theirs
    if seconds:
        (frames,) = long_student.encode([heard])
        count = heard.token_ids.count(long_student.placeholder_id)
        assert len(frames) == len(long_student.project(frames)) == count > 0
        long_student._frames.clear()


def test_two_audios_in_a_prompt_are_heard_in_their_order_or_refused(built: Any, student: Any) -> None:
    """Of one length: a shorter one is padded by transformers' own, and some families hear the padding."""
    if not student.several:
        with pytest.raises(UserError, match=r"a: 2 audios; \w+ hears one in a prompt"):
            prompt(student, (1.3, 1.3))
        return
    both = prompt(student, (1.3, 1.3))
    waves = [wave.samples for wave in waves_of((1.3, 0.4))]
    theirs = built.inputs(student.folder, QUESTION, *waves)["input_ids"][0].tolist()
    assert list(prompt(student, (1.3, 0.4)).token_ids) == theirs
    assert torch.allclose(logits(student, both), witness(built, student.folder, (1.3, 1.3)), atol=1e-3)
    hiss, tone = both.features[0], tone_like(both.features[0])
    orders = {"hiss first": (hiss, tone), "tone first": (tone, hiss)}
    one, other = (replace(both, features=waves, audio_key=key) for key, waves in orders.items())
    assert not torch.allclose(logits(student, one)[-1], logits(student, other)[-1], atol=1e-2)


def test_no_audio_at_all_is_too_short_to_hear(student: Any) -> None:
    with pytest.raises(UserError, match=r"a: 0\.000 s of audio is too short to hear"):
        prompt(student, 0.0)


def test_the_audio_has_a_say_in_what_comes_after_it(student: Any) -> None:
    hiss = prompt(student, 1.3)
    tone = replace(hiss, features=(tone_like(hiss.features[0]),), audio_key="tone")
    one, other = (logits(student, heard)[-1] for heard in (hiss, tone))
    assert (one.log_softmax(-1) - other.log_softmax(-1)).abs().max() > 0.1


@pytest.mark.parametrize("seconds", [None, 0.1, 3.57, 31.2])
def test_logits_are_those_of_transformers(built: Any, student: Any, seconds: float | None) -> None:
    theirs = witness(built, student.folder, seconds)
    assert torch.allclose(logits(student, prompt(student, seconds)), theirs, atol=1e-3)


def test_rows_with_and_without_audio_embed_as_each_does_alone(student: Any) -> None:
    heard, asked = prompt(student, 1.0), prompt(student, None, "b")
    ids = torch.full((2, len(heard.token_ids)), student.end_token_id)
    ids[0, : len(asked.token_ids)] = torch.tensor(asked.token_ids)
    ids[1] = torch.tensor(heard.token_ids)
    with torch.no_grad():
        together = student.embed(ids, student.collate([asked, heard]))
        assert torch.allclose(together[1:], student.embed(ids[1:], student.collate([heard])), atol=1e-5)
        assert torch.equal(together[:1], student.embed(ids[:1], student.collate([asked])))


def test_a_batch_without_audio_still_reaches_what_learns_there_where_ranks_meet(student: Any) -> None:
    student.prepare("align", train_encoder=True)
    asked = prompt(student, None)
    ids = torch.tensor([asked.token_ids])
    plain = student.embed(ids, student.collate([asked]))
    student.always_encode = True
    reached = student.embed(ids, student.collate([asked]))
    assert torch.equal(reached, plain)
    reached.sum().backward()
    learns = {name: value for name, value in student.model.named_parameters() if value.requires_grad}
    assert learns
    assert [name for name, value in learns.items() if value.grad is None] == []


@pytest.mark.parametrize(
    ("stage", "lora", "encoder", "learns"),
    [
        ("align", None, False, {"projector"}),
        ("align", None, True, {"projector", "tower"}),
        ("sft", LORA, False, {"projector", "adapter"}),
        ("distill", LORA, False, {"projector", "adapter"}),
        ("sft", None, False, {"projector", "decoder"}),
    ],
)
def test_each_stage_trains_its_parameters_and_no_others(student: Any, stage, lora, encoder, learns) -> None:
    """After two steps what learns has changed and the rest has not; frozen parameters have no gradient."""
    student.prepare(stage, lora, train_encoder=encoder)
    batches = learners_batches(student)
    for batch in batches:
        Loss()(policy_of(student, batch, 1.0), batch)[0].sum().backward()
    parameters = dict(student.model.named_parameters())
    part_of = {name: part(student, name) for name in parameters}
    expected = {name for name in parameters if part_of[name] in learns and not fixed(student, name)}
    assert expected == {name for name, value in parameters.items() if value.grad is not None}
    assert {part_of[name] for name in expected} == learns
    student.model.zero_grad(set_to_none=True)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    learner = TorchLearner.of(student, OptimConfig(steps=10, lr=1e-3))
    learner.step(batches, Loss())
    learner.step(batches, Loss())
    assert {name for name, value in parameters.items() if not torch.equal(value, before[name])} == expected


def part(student: Any, parameter: str) -> str:
    if ".lora_" in parameter:
        return "adapter" if student.is_decoder(parameter) else "adapter of another part"
    if student.is_projector(parameter):
        return "projector"
    if student.is_decoder(parameter):
        return "decoder"
    return "tower" if parameter.startswith(f"{student.TOWER}.") else "rest"


def fixed(student: Any, parameter: str) -> bool:
    return any(name in parameter for name in student.FIXED)


def test_a_saved_folder_loads_in_transformers_with_the_same_logits(built: Any, student: Any, tmp_path: Path) -> None:
    plain = logits(student, prompt(student, 1.3))
    own = logits(adapted(student), prompt(student, 1.3))
    assert not torch.allclose(own, plain, atol=0.1)
    student.save(tmp_path, dict(merged_weights(student)))
    assert torch.allclose(witness(built, tmp_path, 1.3), own, atol=1e-3)
    again = StudentPlace.of(str(tmp_path)).load()
    assert prompt(again, 1.3).token_ids == prompt(student, 1.3).token_ids
    assert torch.allclose(logits(again, prompt(again, 1.3)), own, atol=1e-3)


def test_what_is_saved_untrained_is_what_was_loaded(student: Any, tmp_path: Path) -> None:
    student.save(tmp_path, dict(merged_weights(student)))
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(student.folder / "model.safetensors")
    assert set(ours) == set(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert {f.name for f in tmp_path.iterdir()} == {f.name for f in student.folder.iterdir()}


def test_the_adapter_beside_the_weights_is_one_that_peft_loads(student: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    fresh = StudentPlace.of(str(student.folder)).load()
    own = logits(adapted(student), prompt(student, 1.0))
    student.save(tmp_path, dict(merged_weights(student)))
    peft = PeftModel.from_pretrained(fresh.model, tmp_path / "adapter").merge_and_unload()
    assert torch.allclose(logits(replace(fresh, model=peft.eval()), prompt(student, 1.0)), own, atol=1e-3)


def test_without_weights_a_student_renders_and_holds_no_memory(student: Any) -> None:
    light = StudentPlace.of(str(student.folder)).load(weights=False)
    assert all(value.is_meta for value in light.model.parameters())
    assert prompt(light, 1.0).token_ids == prompt(student, 1.0).token_ids
    assert list(light.model.state_dict()) == list(student.model.state_dict())


def test_an_instruction_with_a_special_token_is_refused(student: Any) -> None:
    token = next(token for token in student.tokenizer.all_special_tokens if len(token) > 3)
    with pytest.raises(UserError, match="stands for something else"):
        prompt(student, None, question=f"What is {token}?")


@pytest.fixture(scope="module")
def engine(built: Any, tmp_path_factory: pytest.TempPathFactory) -> VllmRollouts:
    """The one engine of a family, on an export that an adapter was merged into."""
    folder = tmp_path_factory.mktemp("families")
    student = adapted(StudentPlace.of(str(built.write(folder / "published", head_dim=32, context=2048))).load())
    (folder / "exported").mkdir()
    student.save(folder / "exported", dict(merged_weights(student)))
    settings = VllmConfig(max_model_len=1024, max_num_seqs=8, kv_cache_gib=0.25)
    light = StudentPlace.of(str(folder / "exported")).load(weights=False)
    return VllmRollouts(start(folder / "exported", settings, Layout(threads=2)), light, settings)


@pytest.fixture
def rollouts(engine: VllmRollouts) -> Iterator[VllmRollouts]:
    """Afterwards it has the weights of the folder again."""
    yield engine
    engine.begin_update()
    engine.update(engine.student.folder / "model.safetensors")
    engine.end_update(0)


def asked(student: Any, lengths: Sequence[Seconds] = (0.4, 31.2, None, 1.3)) -> tuple[list[Sample], list[Prompt]]:
    """Audio of several lengths, a text, and two audios where the family takes them."""
    lengths = (*lengths, (0.9, 2.6) if student.several else 7.9)
    samples = [Sample(f"{i}", f"{QUESTION} {i}", reference=f"Answer {i}.") for i in range(len(lengths))]
    return samples, [prompt(student, s, f"{i}", samples[i].instruction) for i, s in enumerate(lengths)]


@pytest.mark.slow
def test_vllm_reads_and_writes_what_transformers_does(rollouts: VllmRollouts) -> None:
    """From an export, all at once."""
    student = StudentPlace.of(str(rollouts.student.folder)).load()
    found = compare(student, rollouts, *asked(student), max_tokens=6, gate_nats=1e-3)
    print(found)
    assert found.differs is None, found
    assert found.equal_replies == found.prompts == 5
    assert found.largest_gap_nats < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "lora", "encoder"),
    [("distill", LORA, False), ("sft", None, False), ("align", None, True)],
    ids=["adapter", "whole", "encoder"],
)
def test_weights_trained_here_reach_the_sampler(rollouts: VllmRollouts, stage, lora, encoder) -> None:
    """The audio was heard before: what the old weights made of it is in every cache."""
    student = StudentPlace.of(str(rollouts.student.folder)).load()
    student.prepare(stage, lora, train_encoder=encoder)
    learner = TorchLearner.of(student, OptimConfig(steps=10, lr=2e-2))
    batches = make_batches(student, reference_rollouts(student, *asked(student)), micro_batch=4)
    learner.step(batches, Loss())
    learner.step(batches, Loss())
    assert gap(rollouts, learner) > 0.1
    rollouts.load_weights(learner, version=2)
    assert gap(rollouts, learner) < 1e-3


def gap(rollouts: VllmRollouts, learner: TorchLearner) -> float:
    """Largest difference between sampler and learner on fresh replies [nats]."""
    replies = rollouts.generate(*asked(learner.student), Sampling(max_tokens=6, temperature=1.0, n=2, seed=3))
    batches = make_batches(learner.student, replies, micro_batch=4)
    found = learner.evaluate(batches, Loss()).metrics["kl/sampler_learner_max_nats"]
    print(found)
    return found
