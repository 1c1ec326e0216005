"""The transformers engines: what is sampled, scored and learned is what plain transformers gives."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rlspeech.config import FramesConfig, OptimConfig
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.decoding import generate, shared_prefix
from rlspeech.engines.frame_alignment import place_frames
from rlspeech.engines.learner_torch import TorchLearner, learnable, rate_share
from rlspeech.engines.measure import policy_of
from rlspeech.engines.rollout_transformers import TransformersRollouts
from rlspeech.engines.teacher_text import Example, Reading, read_examples, same_tokenizer
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.errors import UserError
from rlspeech.losses.cross_entropy import Loss as CrossEntropy
from rlspeech.losses.reverse_kl import Loss as ReverseKL
from rlspeech.protocols import Sampling
from rlspeech.students.tiny import Student
from rlspeech.types import Completion, Prompt, Sample, Waveform, Word

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
QUESTIONS = ("Who speaks?", "Where will they meet, and when?", "Transcribe the speech.")
READING = Reading('Transcript: "{transcript}"\n\n{instruction}')


@pytest.fixture
def student(small_student: Path) -> Student:
    return Student.load(small_student)


@pytest.fixture(scope="module")
def teacher(small_teacher: Path) -> TransformersTeacher:
    return TransformersTeacher.load(small_teacher, READING)


def asked(student: Student, audios: int = 3) -> tuple[list[Sample], list[Prompt]]:
    """Three questions about each of some audios of different lengths."""
    samples, prompts = [], []
    for index in range(audios):
        noise = np.random.default_rng(index).normal(scale=0.1, size=9_000 + 4_000 * index).astype(np.float32)
        for place, question in enumerate(QUESTIONS):
            sample = Sample(f"{index}/{place}", question, transcript=f"Text {index}.", reference=f"Answer {place}.")
            samples.append(sample)
            prompts.append(replace(student.render(sample, Waveform(noise, 16_000)), audio_key=str(index)))
    return samples, prompts


def test_shared_beginnings_leave_something_to_read() -> None:
    assert shared_prefix([(1, 2, 3, 4), (1, 2, 5)]) == 2
    assert shared_prefix([(1, 2, 3), (1, 2, 3)]) == 2
    assert shared_prefix([(1,), (1, 2)]) == 0


def test_prompts_read_together_are_answered_as_when_read_alone(student: Student) -> None:
    samples, prompts = asked(student)
    engine = TransformersRollouts(student)
    together = engine.generate(samples, prompts, Sampling(max_tokens=6))
    for rollout, sample, prompt in zip(together, samples, prompts, strict=True):
        (alone,) = engine.generate([sample], [prompt], Sampling(max_tokens=6))
        assert rollout.sample is sample
        assert rollout.completion.token_ids == alone.completion.token_ids
        assert np.allclose(rollout.completion.logprobs, alone.completion.logprobs, atol=1e-4)


def test_prompts_without_audio_are_answered_among_those_with_it(student: Student) -> None:
    samples, heard = asked(student, audios=1)
    prompts = [heard[0], *(student.render(sample, None) for sample in samples[1:])]
    engine = TransformersRollouts(student)
    together = engine.generate(samples, prompts, Sampling(max_tokens=6))
    for rollout, sample, prompt in zip(together, samples, prompts, strict=True):
        (alone,) = engine.generate([sample], [prompt], Sampling(max_tokens=6))
        assert rollout.completion.token_ids == alone.completion.token_ids


def test_sampled_replies_are_grouped_seeded_and_differ(student: Student) -> None:
    samples, prompts = asked(student, audios=2)
    engine = TransformersRollouts(student, batch=4)
    engine.load_weights(iter(()), version=7)
    sampling = Sampling(max_tokens=5, temperature=1.0, n=3, seed=5)
    first, again = (engine.generate(samples, prompts, sampling) for _ in range(2))
    other = engine.generate(samples, prompts, replace(sampling, seed=6))
    assert [r.sample.id for r in first] == [sample.id for sample in samples for _ in range(3)]
    assert [r.completion for r in first] == [r.completion for r in again]
    assert [r.completion for r in first] != [r.completion for r in other]
    assert len({r.completion.token_ids for r in first[:3]}) > 1
    assert {r.completion.policy_version for r in first} == {7}
    assert {r.completion.finish for r in first} == {"length"}


def test_sampling_leaves_the_global_random_state_alone(student: Student) -> None:
    samples, prompts = asked(student, audios=1)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    TransformersRollouts(student).generate(samples, prompts, Sampling(max_tokens=3, temperature=1.0))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_logprobs_are_the_learners(student: Student, temperature: float) -> None:
    """Of the distribution sampled from, with an adapter that has an effect."""
    student.prepare("distill", LORA)
    for name, value in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.2)
    samples, prompts = asked(student)
    rollouts = TransformersRollouts(student).generate(samples, prompts, Sampling(6, temperature))
    learner = TorchLearner.of(student, OptimConfig(steps=1))
    learned = learner.evaluate(make_batches(student, rollouts, micro_batch=2), CrossEntropy(), temperature=temperature)
    assert abs(learned.metrics["kl/sampler_learner_nats"]) < 1e-4
    assert learned.metrics["kl/sampler_learner_max_nats"] < 1e-3


def test_a_reply_ends_with_its_end_token_and_nothing_after(student: Student) -> None:
    """Every token is made an end: the reply is that one token, and its log-prob is kept."""
    ids = tuple(student.tokenizer("Some text").input_ids)
    (group,) = generate(student.model, [[ids, ids]], embed=None, sampling=Sampling(4), end_ids=range(49_153), pad_id=2)
    assert [(len(w.token_ids), len(w.logprobs), w.ended) for w in group] == [(1, 1, True)] * 2


def test_the_teachers_scores_are_those_of_a_plain_forward_pass(teacher: TransformersTeacher) -> None:
    samples = [Sample(str(i), question, transcript="They meet at noon.") for i, question in enumerate(QUESTIONS)]
    replies = [Completion((400 + i, 500, 2), (0.0,) * 3, "", "stop") for i in range(3)]
    for sample, reply, scored in zip(samples, replies, teacher.score(samples, replies), strict=True):
        text = teacher.tokenizer.apply_chat_template(
            READING.messages(sample), tokenize=False, add_generation_prompt=True
        )
        prompt = teacher.tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = teacher.model(torch.tensor([[*prompt, *reply.token_ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(3), list(reply.token_ids)]
        assert torch.allclose(scored.logprobs, expected, atol=1e-4)
        assert torch.allclose((scored.hidden @ teacher.head().T).log_softmax(-1), logits.log_softmax(-1), atol=1e-4)
        assert scored.spans == ((0, 1), (1, 2), (2, 3))


def test_the_teacher_reads_the_transcript_and_not_the_reference(teacher: TransformersTeacher) -> None:
    sample = Sample("a", "Who?", transcript="Anna waits.", reference="secret")
    (message,) = READING.messages(sample)
    assert message == {"role": "user", "content": 'Transcript: "Anna waits."\n\nWho?'}
    with pytest.raises(UserError, match="a: no transcript"):
        READING.messages(replace(sample, transcript=None))


def test_braces_in_a_transcript_are_not_filled_in() -> None:
    (message,) = READING.messages(Sample("a", "Who?", transcript="{instruction} {x}"))
    assert message["content"] == 'Transcript: "{instruction} {x}"\n\nWho?'


def test_examples_of_a_kind_are_shown_to_that_kind_and_the_rest_to_the_rest() -> None:
    reading = replace(READING, examples=(Example("T", "I", "own", "list"), Example("T", "I", "general")))
    listed = reading.messages(Sample("a", "List.", transcript="x", tags={"kind": "list"}))
    other = reading.messages(Sample("a", "Who?", transcript="x", tags={"kind": "who"}))
    assert [m["content"] for m in listed if m["role"] == "assistant"] == ["own"]
    assert [m["content"] for m in other if m["role"] == "assistant"] == ["general"]


def test_a_bad_example_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text('{"transcript": "a", "instruction": "b", "answer": "c"}\n{"answer": "c"}\n')
    with pytest.raises(UserError, match=r"e\.jsonl:2: wants transcript"):
        read_examples(tmp_path / "e.jsonl")


def test_added_tokens_of_the_student_do_not_make_another_tokenizer(student: Student, teacher) -> None:
    assert same_tokenizer(student.tokenizer, teacher.tokenizer)
    assert not same_tokenizer(teacher.tokenizer, student.tokenizer)


def batches_of(student: Student, micro_batch: int):
    return make_batches(student, reference_rollouts(student, *asked(student)), micro_batch=micro_batch)


def test_micro_batches_do_not_change_a_step(small_student: Path) -> None:
    after = []
    for micro_batch in (1, 3):
        student = Student.load(small_student)
        student.prepare("sft", None)
        learner = TorchLearner.of(student, OptimConfig(steps=3, lr=1e-3))
        learned = learner.step(batches_of(student, micro_batch), CrossEntropy())
        after.append((learned.metrics["train/loss"], {n: v.clone() for n, v in student.model.named_parameters()}))
    (loss_1, one), (loss_3, three) = after
    assert math.isclose(loss_1, loss_3, rel_tol=1e-5)
    assert all(torch.allclose(one[name], three[name], atol=2e-5) for name in one)


def test_a_step_moves_the_projector_and_the_adapter_and_nothing_frozen(student: Student) -> None:
    student.prepare("sft", LORA)
    before = {name: value.clone() for name, value in student.model.named_parameters()}
    learner = TorchLearner.of(student, OptimConfig(steps=5, lr=1e-3, warmup_steps=0))
    learner.step(batches_of(student, 3), CrossEntropy())
    learner.step(batches_of(student, 3), CrossEntropy())
    moved = {name for name, value in student.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name or "multi_modal_projector" in name}


def test_learning_lowers_the_loss_and_what_is_learned_reaches_the_sampler(student: Student) -> None:
    student.prepare("sft", None)  # all of the language model: a random head cannot be learned around
    learner = TorchLearner.of(student, OptimConfig(steps=30, lr=1e-2, warmup_steps=0))
    losses = [learner.step(batches_of(student, 3), CrossEntropy()).metrics["train/loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    rollouts = TransformersRollouts(student).generate(*asked(student), Sampling(8))
    assert sum("Answer" in rollout.completion.text for rollout in rollouts) >= 6


def test_a_restored_learner_goes_on_as_if_it_had_not_stopped(small_student: Path, tmp_path: Path) -> None:
    def fresh() -> TorchLearner:
        torch.manual_seed(0)
        student = Student.load(small_student)
        student.prepare("sft", {**LORA, "dropout": 0.1})
        return TorchLearner.of(student, OptimConfig(steps=6, lr=1e-2))

    straight = fresh()
    losses = [straight.step(batches_of(straight.student, 2), CrossEntropy()).metrics["train/loss"] for _ in range(4)]
    first = fresh()
    for _ in range(2):
        first.step(batches_of(first.student, 2), CrossEntropy())
    first.save(tmp_path)
    torch.manual_seed(99)
    second = fresh()
    second.restore(tmp_path)
    again = [second.step(batches_of(second.student, 2), CrossEntropy()).metrics["train/loss"] for _ in range(2)]
    assert again == losses[2:]
    ours, theirs = learnable(second.student.model), learnable(straight.student.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_another_version_is_refused_in_one_line(student: Student, tmp_path: Path) -> None:
    student.prepare("sft", LORA)
    save_file({"steps_done": torch.tensor(3)}, tmp_path / "learner.safetensors")
    with pytest.raises(UserError, match=r"learner\.safetensors: written by another version"):
        TorchLearner.of(student, OptimConfig(steps=5)).restore(tmp_path)


def test_a_teacher_that_is_the_student_is_at_no_distance(student: Student) -> None:
    """The self-test of the whole path: hidden states as the teacher's, through batches, loss and means."""
    rollouts = TransformersRollouts(student).generate(*asked(student), Sampling(5, 1.0))
    student.prepare("distill", LORA)
    learner = TorchLearner.of(student, OptimConfig(steps=1))
    for batch in make_batches(student, rollouts, micro_batch=2):
        policy = policy_of(student, batch, 1.0)
        own = replace(batch, teacher_hidden=policy.hidden.detach(), teacher_head=policy.head.detach())
        learned = learner.evaluate([own], ReverseKL())
        assert abs(learned.metrics["kl/train_nats"]) < 1e-5


def test_rates_warm_up_then_decay_to_the_share_asked_for() -> None:
    optim = OptimConfig(steps=10, warmup_steps=2, final_lr_share=0.1)
    assert [round(rate_share(step, optim), 4) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.55, 0.1]
    constant = optim.model_copy(update={"schedule": "constant"})
    assert [rate_share(step, constant) for step in (1, 9)] == [1.0, 1.0]
    cosine = optim.model_copy(update={"schedule": "cosine"})
    assert round(rate_share(6, cosine), 4) == 0.55


def test_frames_are_placed_on_the_embeddings_of_what_is_heard(student: Student) -> None:
    """Two tones with a word each: the projector learns to tell them apart."""
    time_s = np.arange(16_000) / 16_000
    wave = np.concatenate([0.5 * np.sin(2 * np.pi * hz * time_s[:8_000]) for hz in (300, 2_000)]).astype(np.float32)
    words = (Word("yes", 0.0, 0.5), Word("no.", 0.5, 1.0))
    sample = Sample("a", "Transcribe the speech.", transcript="yes no.", words=words)
    student.prepare("align")
    seen: list[float] = []
    settings = FramesConfig(steps=60, batch_frames=64, lr=1e-2, noise=0.05)
    prompt = student.render(sample, Waveform(wave, 16_000))
    place_frames(student, [sample], [prompt], settings, seed=0, on_step=lambda _, m: seen.append(m["frame_accuracy"]))
    assert seen[0] < 0.7
    assert sum(seen[-5:]) / 5 > 0.9


def test_tokens_that_are_never_to_be_written_are_not(student: Student) -> None:
    ids = tuple(student.tokenizer("Some text").input_ids)
    never = [token for token in range(49_153) if token != 7]
    (group,) = generate(
        student.model, [[ids]], embed=None, sampling=Sampling(3, 1.0), end_ids=[2], pad_id=2, never=never
    )
    assert group[0].token_ids == (7, 7, 7)


def test_a_checkpoints_own_penalties_are_kept_out_of_sampling_and_kept_in_the_checkpoint(student: Student) -> None:
    samples, prompts = asked(student, audios=1)
    engine = TransformersRollouts(student)
    plain = engine.generate(samples, prompts, Sampling(6))
    student.model.generation_config.repetition_penalty = 50.0
    assert engine.generate(samples, prompts, Sampling(6)) == plain
    assert student.model.generation_config.repetition_penalty == 50.0


def test_the_largest_seed_is_taken(student: Student) -> None:
    samples, prompts = asked(student, audios=1)
    assert TransformersRollouts(student).generate(samples, prompts, Sampling(1, 1.0, seed=2**31 * 1_000_003))


def test_an_instruction_with_a_placeholder_in_it_is_refused(student: Student) -> None:
    with pytest.raises(UserError, match="a: the instruction holds <sound>"):
        student.render(Sample("a", "What is <sound>?"), Waveform(np.zeros(16_000, np.float32), 16_000))


def test_a_gradient_that_is_not_finite_stops_the_run_and_moves_nothing(student: Student) -> None:
    student.prepare("sft", LORA)
    learner = TorchLearner.of(student, OptimConfig(steps=5))
    before = {name: value.clone() for name, value in learnable(student.model).items()}
    with pytest.raises(FloatingPointError, match="step 1"):
        learner.step(batches_of(student, 3), CrossEntropy(), temperature=float("nan"))
    assert all(torch.equal(value, before[name]) for name, value in learnable(student.model).items())
