"""vLLM in this process: what it samples and scores is what transformers gives."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from rlspeech.config_engines import VllmConfig
from rlspeech.engines import vllm_engine
from rlspeech.engines.batches import make_batches
from rlspeech.engines.measure import measure
from rlspeech.engines.retokenise import Rereader
from rlspeech.engines.rollout_vllm import VllmRollouts
from rlspeech.engines.teacher_cross import CrossTeacher
from rlspeech.engines.teacher_text import Example, Reading
from rlspeech.engines.teacher_transformers import TransformersTeacher
from rlspeech.engines.teacher_vllm import VllmTeacher
from rlspeech.engines.vllm_engine import Layout, stream
from rlspeech.errors import UserError
from rlspeech.losses.cross_entropy import Loss as CrossEntropy
from rlspeech.protocols import Sampling
from rlspeech.students.tiny import Student
from rlspeech.types import Completion, Prompt, Sample, Waveform

QUESTIONS = ("Who speaks?", "Where will they meet, and when?", "Transcribe the speech.")
EXAMPLES = (Example("The shop opens at nine in the morning and closes at six.", "When does it open?", "At nine."),) * 4
READING = Reading('Transcript: "{transcript}"\n\n{instruction}', examples=EXAMPLES)
K = 8


@pytest.fixture(scope="module")
def student(vllm_student: Path) -> Student:
    return Student.load(vllm_student)


@pytest.fixture
def rollouts(vllm_student_engine: VllmRollouts) -> VllmRollouts:
    return vllm_student_engine


def asked(student: Student, audios: int = 2, seed: int = 0) -> tuple[list[Sample], list[Prompt]]:
    """Three questions about each of some audios of different lengths."""
    samples, prompts = [], []
    for index in range(audios):
        noise = np.random.default_rng([seed, index]).normal(scale=0.1, size=9_000 + 4_000 * index).astype(np.float32)
        for place, question in enumerate(QUESTIONS):
            sample = Sample(f"{index}/{place}", question, transcript=f"Text {index}.")
            samples.append(sample)
            prompts.append(replace(student.render(sample, Waveform(noise, 16_000)), audio_key=f"{seed}/{index}"))
    return samples, prompts


def exact_logprobs(student: Student, prompt: Prompt, tokens: tuple[int, ...], sampling: Sampling) -> list[float]:
    """Of the distribution that is sampled, worked out from logits: never the placeholder, temperature, then top-p."""
    ids = torch.tensor([[*prompt.token_ids, *tokens]])
    with torch.no_grad():
        logits = student.model(inputs_embeds=student.embed(ids, student.collate([prompt]))).logits[0]
    logits = logits[len(prompt.token_ids) - 1 : -1]
    logits[:, student.placeholder_id] = -torch.inf
    logprobs = (logits / (sampling.temperature or 1.0)).log_softmax(-1)
    found = []
    for row, token in zip(logprobs, tokens, strict=True):
        order = row.argsort(descending=True)
        before = row[order].exp().cumsum(0) - row[order].exp()
        kept = order[before < sampling.top_p]  # the least set of best tokens that reaches top_p
        found.append(float(row[token] - row[kept].logsumexp(0)) if token in kept else -float("inf"))
    return found


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 1.0), (0.7, 1.0), (0.7, 0.8)])
def test_logprobs_are_those_of_the_distribution_that_is_sampled(student, rollouts, temperature, top_p) -> None:
    samples, prompts = asked(student)
    sampling = Sampling(max_tokens=6, temperature=temperature, top_p=top_p, n=2, seed=1)
    for rollout in rollouts.generate(samples, prompts, sampling):
        reply = rollout.completion
        assert reply.logprobs == pytest.approx(
            exact_logprobs(student, rollout.prompt, reply.token_ids, sampling), abs=1e-3
        )


def test_greedy_replies_are_the_most_probable_tokens(student, rollouts) -> None:
    (sample, *_), (prompt, *_) = asked(student)
    (rollout,) = rollouts.generate([sample], [prompt], Sampling(max_tokens=4))
    ids = list(prompt.token_ids)
    for token in rollout.completion.token_ids:
        with torch.no_grad():
            logits = student.model(inputs_embeds=student.embed(torch.tensor([ids]), student.collate([prompt]))).logits
        assert token == int(logits[0, -1].argmax())
        ids.append(token)


def test_the_learner_measures_no_gap(student, rollouts) -> None:
    samples, prompts = asked(student)
    replies = rollouts.generate(samples, prompts, Sampling(6, temperature=0.7, n=2))
    learned = measure(student, make_batches(student, replies, micro_batch=2), CrossEntropy(), temperature=0.7)
    assert learned.metrics["kl/sampler_learner_max_nats"] < 1e-3


def test_replies_hang_on_seed_and_sample_and_not_on_what_else_is_asked(student, rollouts) -> None:
    samples, prompts = asked(student)
    sampling = Sampling(max_tokens=5, temperature=1.0, n=3, seed=5)
    together = rollouts.generate(samples, prompts, sampling)
    assert [r.sample.id for r in together] == [sample.id for sample in samples for _ in range(3)]
    assert len({r.completion.token_ids for r in together}) == len(together)
    alone = rollouts.generate(samples[4:5], prompts[4:5], sampling)
    assert [r.completion.token_ids for r in alone] == [r.completion.token_ids for r in together[12:15]]
    other = rollouts.generate(samples[4:5], prompts[4:5], replace(sampling, seed=6))
    assert [r.completion.token_ids for r in other] != [r.completion.token_ids for r in alone]


def test_a_sample_asked_twice_is_answered_twice(student, rollouts) -> None:
    (sample, *_), (prompt, *_) = asked(student)
    one, two = rollouts.generate([sample] * 2, [prompt] * 2, Sampling(6, temperature=1.0))
    assert one.completion.token_ids != two.completion.token_ids


def test_the_placeholder_is_never_written(student, rollouts, monkeypatch) -> None:
    """Made the placeholder, the most probable token is not written."""
    (sample, *_), (prompt, *_) = asked(student)
    (greedy,) = rollouts.generate([sample], [prompt], Sampling(1))
    favourite = greedy.completion.token_ids[0]
    assert favourite != student.placeholder_id
    monkeypatch.setattr(rollouts, "student", Placeholder(student, favourite))
    (other,) = rollouts.generate([sample], [prompt], Sampling(1))
    assert other.completion.token_ids[0] != favourite


class Placeholder:
    """A student whose placeholder is another token."""

    def __init__(self, student: Student, token: int) -> None:
        self._student, self.placeholder_id = student, token

    def __getattr__(self, name: str):
        return getattr(self._student, name)


class Ending(Placeholder):
    """A student whose replies end at another token."""

    def __init__(self, student: Student, token: int) -> None:
        super().__init__(student, student.placeholder_id)
        self.end_token_id = token


def test_a_reply_ends_with_its_end_token_and_keeps_its_logprob(student, rollouts, monkeypatch) -> None:
    (sample, *_), (prompt, *_) = asked(student)
    (free,) = rollouts.generate([sample], [prompt], Sampling(6))
    assert free.completion.finish == "length"
    end = free.completion.token_ids[2]
    monkeypatch.setattr(rollouts, "student", Ending(student, end))
    (ended,) = rollouts.generate([sample], [prompt], Sampling(6))
    length = free.completion.token_ids.index(end) + 1
    assert ended.completion.token_ids == free.completion.token_ids[:length]
    assert ended.completion.logprobs == pytest.approx(free.completion.logprobs[:length], abs=1e-4)
    assert ended.completion.finish == "stop"


def test_a_prompt_that_vllm_reads_otherwise_is_an_error(student, rollouts, monkeypatch) -> None:
    (sample, *_), (prompt, *_) = asked(student)
    wrong = replace(prompt, token_ids=(*prompt.token_ids[:-1], 400))
    monkeypatch.setattr(rollouts, "student", Reads(student, prompt))
    with pytest.raises(RuntimeError, match=f"0/0: vLLM reads .* differ from token {len(prompt.token_ids) - 1} on"):
        rollouts.generate([sample], [wrong], Sampling(1))


class Reads(Placeholder):
    """A student that shows vLLM one prompt whatever it is asked."""

    def __init__(self, student: Student, prompt: Prompt) -> None:
        super().__init__(student, student.placeholder_id)
        self._prompt = prompt

    def vllm_input(self, prompt: Prompt):
        return self._student.vllm_input(self._prompt)


def test_what_does_not_fit_is_refused_with_its_sample(student, rollouts) -> None:
    (sample, *_), (prompt, *_) = asked(student)
    with pytest.raises(UserError, match=r"0/0: a prompt of \d+ tokens .* vllm.max_model_len = 512"):
        rollouts.generate([sample], [prompt], Sampling(600))


def test_a_long_queue_is_streamed_and_progress_is_told(student, rollouts) -> None:
    """Of 40 requests of one sequence each, to an engine of 8 sequences, no more than 16 are under way."""
    _, prompts = asked(student)
    how = rollouts.params(Sampling(3, temperature=1.0), seed=1)
    taken, steps = [], []

    def requests() -> Iterator[vllm_engine.Request]:
        for index in range(40):
            taken.append(index)
            yield vllm_engine.Request(student.vllm_input(prompts[index % 6]), how)

    queue = stream(rollouts.llm, requests(), on_progress=lambda: steps.append(1))
    most = max(len(taken) - done for done, _ in enumerate(queue, 1))
    assert len(taken) == 40
    assert most < 16
    assert len(steps) >= 40 * 3 / 8


def test_a_queue_that_is_left_early_leaves_nothing_under_way(student, rollouts) -> None:
    _, prompts = asked(student)
    how = rollouts.params(Sampling(5, temperature=1.0), seed=1)
    queue = stream(rollouts.llm, [vllm_engine.Request(student.vllm_input(prompt), how) for prompt in prompts])
    next(queue)
    queue.close()
    assert not rollouts.llm.llm_engine.has_unfinished_requests()


def test_prompts_without_audio_are_answered_beside_others(student, rollouts) -> None:
    samples, prompts = asked(student, audios=1)
    text = Sample("text", "Say something.")
    samples, prompts = [*samples, text], [*prompts, student.render(text, None)]
    replies = rollouts.generate(samples, prompts, Sampling(3))
    assert len(replies) == 4
    assert all(len(reply.completion.token_ids) == 3 for reply in replies)


def test_sampling_leaves_the_global_random_state_alone(student, rollouts) -> None:
    samples, prompts = asked(student)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rollouts.generate(samples, prompts, Sampling(3, temperature=1.0))
    assert torch.equal(torch.rand(1), expected)


def scored_cases(vllm_teacher_folder: Path) -> tuple[list[Sample], list[Completion]]:
    samples = [Sample(str(i), question, transcript="They meet at noon.") for i, question in enumerate(QUESTIONS)]
    generator = np.random.default_rng(0)
    lengths = (3, 70, 1)  # the second is longer than two blocks of the KV cache
    return samples, [
        Completion(tuple(generator.integers(3, 49_000, length).tolist()), (0.0,) * length, "", "stop")
        for length in lengths
    ]


def test_a_teachers_scores_are_those_of_transformers(vllm_teacher: Path, vllm_teacher_engine: VllmTeacher) -> None:
    samples, replies = scored_cases(vllm_teacher)
    theirs = TransformersTeacher.load(vllm_teacher, READING, top_k=K).score(samples, replies)
    teacher = replace(vllm_teacher_engine, reading=READING)
    for again in range(2):  # the second time, all of it is in the prefix cache
        for ours, exact in zip(teacher.score(samples, replies), theirs, strict=True):
            assert ours.spans == exact.spans
            assert torch.allclose(ours.logprobs, exact.logprobs, atol=1e-3), again
            assert torch.allclose(ours.topk_logprobs, exact.topk_logprobs, atol=1e-3), again
            assert (ours.topk_ids == exact.topk_ids).float().mean() > 0.99  # near ties may change places
            assert ours.topk_ids.shape == ours.topk_logprobs.shape == (len(ours.logprobs), K)


def test_a_student_with_another_tokenizer_is_scored_as_by_transformers(
    vllm_teacher: Path, vllm_teacher_engine: VllmTeacher, split_teacher: Path
) -> None:
    split = AutoTokenizer.from_pretrained(split_teacher)
    rereader = Rereader.of(split, split.eos_token_id, AutoTokenizer.from_pretrained(vllm_teacher))
    texts = ["Boris will visit the museum on Thursday.", "Anna said yes"]
    ids = [(*split(text, add_special_tokens=False).input_ids, split.eos_token_id) for text in texts]
    samples = [Sample(f"s{n}", "What is said?", transcript=text) for n, text in enumerate(texts)]
    replies = [Completion(each, (), "", "stop") for each in ids]
    by_vllm, plainly = (
        CrossTeacher(teacher, rereader).score(samples, replies)
        for teacher in (
            replace(vllm_teacher_engine, reading=READING),
            TransformersTeacher.load(vllm_teacher, READING, top_k=K),
        )
    )
    for ours, exact in zip(by_vllm, plainly, strict=True):
        assert ours.spans == exact.spans
        assert torch.equal(ours.alone, exact.alone)
        assert torch.allclose(ours.logprobs, exact.logprobs, atol=1e-3)
    assert not by_vllm[0].alone.all()  # the two do not segment alike


def test_the_best_tokens_are_in_the_order_of_their_ranks(vllm_teacher: Path, vllm_teacher_engine: VllmTeacher) -> None:
    samples, replies = scored_cases(vllm_teacher)
    for scored in replace(vllm_teacher_engine, reading=READING).score(samples, replies):
        assert all(before >= after for row in scored.topk_logprobs.tolist() for before, after in pairwise(row))


def test_a_common_beginning_is_read_once(vllm_teacher: Path, vllm_teacher_engine: VllmTeacher) -> None:
    teacher = replace(vllm_teacher_engine, reading=READING)
    teacher.llm.reset_prefix_cache()
    samples, replies = scored_cases(vllm_teacher)
    prompts = [teacher._prompt(sample) for sample in samples]
    requests = [
        vllm_engine.Request({"prompt_token_ids": [*prompt, *reply.token_ids]}, teacher._scoring(cached=True))
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    cached = dict((place, output.num_cached_tokens) for place, output in stream(teacher.llm, requests))
    shared = next(at for at, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1)
    assert shared > 64
    assert [cached[place] for place in range(3)] == [0, shared // 32 * 32, shared // 32 * 32]


def test_a_teachers_replies_are_those_of_transformers(vllm_teacher: Path, vllm_teacher_engine: VllmTeacher) -> None:
    samples, _ = scored_cases(vllm_teacher)
    exact = TransformersTeacher.load(vllm_teacher, READING).reply(samples, max_tokens=6)
    assert replace(vllm_teacher_engine, reading=READING).reply(samples, max_tokens=6) == exact


def test_a_reply_too_long_for_the_teacher_is_refused_with_its_sample(vllm_teacher_engine: VllmTeacher) -> None:
    sample = Sample("long", "Who?", transcript="Anna.")
    reply = Completion((400,) * 600, (0.0,) * 600, "", "length")
    with pytest.raises(UserError, match=r"long: the teacher's prompt and the reply are \d+ tokens"):
        replace(vllm_teacher_engine, reading=READING).score([sample], [reply])


def test_a_start_leaves_this_process_as_it_was(vllm_student_engine, vllm_start: dict) -> None:
    """What vLLM is known to touch: preloaded libraries, the world's size, threads, every generator."""
    before, after = vllm_start["before"], vllm_start["after"]
    assert before == after
    torch.set_num_threads(before["threads"])
    assert torch.get_num_threads() == before["threads"]


def test_without_vllm_the_mistake_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"vLLM is not installed: install rlspeech\[cpu\]"):
        vllm_engine.start(tmp_path, VllmConfig(), Layout())


def test_a_model_that_cannot_hold_the_longest_sequence_is_refused(vllm_teacher: Path, vllm_teacher_engine) -> None:
    with pytest.raises(UserError, match=r"vllm.max_model_len = 9000: the model in .* holds no such sequence"):
        vllm_engine.start(vllm_teacher, VllmConfig(max_model_len=9000), Layout(teacher=True))


def test_an_engine_can_start_in_a_process_that_numba_has_compiled_in() -> None:
    """What vLLM trips over: an object of a module that claims a `__dict__` which is none."""
    from llvmlite.binding import ffi
    from numba import njit

    from rlspeech.engines.vllm_engine import no_dict_of_llvmlite

    assert njit(lambda x: x + 1)(1) == 2
    no_dict_of_llvmlite()
    no_dict_of_llvmlite()  # once is enough
    assert not hasattr(ffi.lib, "__dict__")
    assert njit(lambda x: x + 2)(1) == 3
