"""Processes that learn together, for tests: DeepSpeed learners one after the other in the same actors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlspeech.config import OptimConfig
from rlspeech.config_engines import DeepspeedConfig
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.cluster import Cluster, Worker
from rlspeech.engines.learner_torch import TorchLearner, learnable
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import PLAIN, Objective
from rlspeech.engines.reply_logprobs import with_advantages, with_logprobs
from rlspeech.engines.teacher_written import unscored, with_cross_entropy
from rlspeech.losses.cross_entropy import Loss
from rlspeech.losses.grpo import Loss as Grpo
from rlspeech.losses.reverse_kl import Loss as ReverseKl
from rlspeech.protocols import Learned, Learner, Student
from rlspeech.types import Rollout, Sample, Scored, TokenBatch, Waveform

LOSS = 2e-5
WEIGHT = 2e-4
LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
QUESTIONS = ("Who speaks?", "Where will they meet, and when?")


@dataclass(frozen=True)
class Case:
    """One learner and what it is to do."""

    folder: Path  # of the student
    steps: int = 20
    settings: dict[str, Any] = field(default_factory=dict)  # of DeepspeedConfig
    stage: str = "distill"
    lora: dict[str, Any] | None = field(default_factory=lambda: dict(LORA))
    train_encoder: bool = False
    lr: float = 1e-2
    micro_batch: int = 2
    silent: Sequence[int] = ()  # audios that are left out: their prompts are text
    longest_s: float | None = None  # of the last audio, in place of its own length
    windows_at_once: int | None = None
    temperature: float = 1.0
    objective: Objective = PLAIN
    sampled: bool = False  # the replies carry log-probs as if a sampler had written them
    mixed: bool = False  # some replies are the teacher's own; all but two are scored, and learned by reverse KL
    rewarded: Grpo | None = None  # two replies to an audio are a group; some are references; every step is on one batch
    restore: Path | None = None  # a state to begin with
    save: Path | None = None  # where the state goes in the end
    export: Path | None = None  # where the model goes in the end

    @property
    def optim(self) -> OptimConfig:
        return OptimConfig(steps=20, lr=self.lr, warmup_steps=2)


@dataclass(frozen=True)
class Outcome:
    learned: list[Learned]
    weights: dict[str, torch.Tensor]  # published, of what learns
    evaluated: Learned
    logprobs: list[dict[int, list[float]]]  # where rewarded: before the steps, after them, and of the reference then
    moved: dict[str, float]  # largest change of each parameter that learns (of a torch learner alone)

    @property
    def losses(self) -> list[float]:
        return [one.metrics["train/loss"] for one in self.learned]

    @property
    def norms(self) -> list[float]:
        return [one.metrics["train/grad_norm"] for one in self.learned]


def student_of(case: Case) -> Student:
    torch.manual_seed(0)
    dtype = getattr(torch, case.settings.get("dtype", "float32"))
    student = StudentPlace.of(str(case.folder), windows_at_once=case.windows_at_once).load(dtype=dtype)
    student.prepare(case.stage, case.lora, train_encoder=case.train_encoder)
    return student


def rollouts_of(
    student: Student, silent: Sequence[int] = (), *, sampled: bool = False, longest_s: float | None = None
) -> list[Rollout]:
    """Two questions about each of five audios of different lengths."""
    samples, prompts = [], []
    sizes = [9_000 + 4_000 * index for index in range(4)] + [round(16_000 * longest_s) if longest_s else 25_000]
    for index, size in enumerate(sizes):
        noise = np.random.default_rng(index).normal(scale=0.1, size=size).astype(np.float32)
        for place, question in enumerate(QUESTIONS):
            sample = Sample(f"{index}/{place}", f"{question} ({index})", reference=f"Answer {place} to {index}.")
            audio = None if index in silent else Waveform(noise, 16_000)
            prompt = student.render(sample, audio)
            samples.append(sample)
            prompts.append(prompt if audio is None else replace(prompt, audio_key=str(index)))
    rollouts = reference_rollouts(student, samples, prompts)
    if not sampled:
        return rollouts
    draw = np.random.default_rng(0)
    written = [
        replace(r.completion, logprobs=tuple(draw.uniform(-13, -9, len(r.completion.token_ids)))) for r in rollouts
    ]
    return [replace(r, completion=reply, origin="sampled") for r, reply in zip(rollouts, written, strict=True)]


def batches_of(case: Case, student: Student, ranks: int = 1) -> list[TokenBatch]:
    if case.mixed:
        return mixed_batches(case, student, ranks)
    if case.rewarded:
        return rewarded_batches(case, case.rewarded, student, ranks)
    rollouts = rollouts_of(student, case.silent, sampled=case.sampled, longest_s=case.longest_s)
    return make_batches(student, rollouts, micro_batch=case.micro_batch, ranks=ranks)


def mixed_batches(case: Case, student: Student, ranks: int = 1) -> list[TokenBatch]:
    """Of two replies to an audio the second is the teacher's; of audios 0 and 3 it is there for its cross-entropy."""
    rollouts = rollouts_of(student, case.silent, sampled=True)
    ours, theirs = rollouts[::2], [as_teachers(one) for one in rollouts[1::2]]
    scored, alone = [*ours, *(theirs[at] for at in (1, 2, 4))], [theirs[0], theirs[3]]
    scores = [topk_of(one, seed) for seed, one in enumerate(scored)]
    made = [*scored, *alone]
    batches = make_batches(
        student, made, micro_batch=case.micro_batch, scored=[*scores, *unscored(scores, alone)], ranks=ranks
    )
    return with_cross_entropy(batches, made, weight=0.5)


def rewarded_batches(case: Case, loss: Grpo, student: Student, ranks: int = 1) -> list[TokenBatch]:
    """Of audios 0 and 3 the second reply is the reference, which no sampler wrote."""
    rollouts = rollouts_of(student, case.silent, sampled=True)
    for index in (1, 7):
        completion = replace(rollouts[index].completion, logprobs=())
        rollouts[index] = replace(rollouts[index], completion=completion, origin="reference")
    lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
    made = make_batches(student, rollouts, micro_batch=case.micro_batch, shares=loss.shares(lengths), ranks=ranks)
    groups = loss.advantages_of([[-3.0, 0.0], [-1.0, -2.0], [-1.0, -1.0], [-5.0, 0.0], [0.0, None]])
    return with_advantages(made, [one for group in groups for one in group], idle=loss.idle(lengths, 16))


def as_teachers(rollout: Rollout) -> Rollout:
    return replace(rollout, completion=replace(rollout.completion, logprobs=()), origin="teacher")


def topk_of(rollout: Rollout, seed: int) -> Scored:
    """Four tokens of a teacher that leaves them e^-6 to 1 nats: it is up to 6 nats from an indifferent student."""
    count = len(rollout.completion.token_ids)
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 4, generator=draw).log_softmax(-1) - (-6 * torch.rand(count, 1, generator=draw)).exp()
    spans = tuple((token, token + 1) for token in range(count))
    ids = torch.randint(100, (count, 1), generator=draw) * 100 + torch.arange(4)
    return Scored(spans, values[:, 0], topk_ids=ids, topk_logprobs=values)


def outcome_of(case: Case, learner: Learner, batches: Sequence[TokenBatch]) -> Outcome:
    if case.restore:
        learner.restore(case.restore)
    loss = case.rewarded or (ReverseKl() if case.mixed else Loss())
    logprobs = []
    if case.rewarded:
        learner.keep_reference()
        logprobs.append(learner.logprobs(batches, temperature=case.temperature))
        batches = with_logprobs(batches, old=logprobs[0], reference=logprobs[0])
    learned = [learner.step(batches, loss, temperature=case.temperature) for _ in range(case.steps)]
    if case.rewarded:
        for reference in (False, True):
            logprobs.append(learner.logprobs(batches, temperature=case.temperature, reference=reference))
    weights = {name: value.clone() for name, value in learner.weights()}
    if case.save:
        learner.save(case.save)
    if case.export:
        learner.export(case.export)
    return Outcome(learned, weights, learner.evaluate(batches, loss), logprobs, {})


def in_one_process(case: Case) -> Outcome:
    """What the torch learner makes of it: the witness of every DeepSpeed learner."""
    student = student_of(case)
    learner = TorchLearner.of(student, case.optim, case.objective)
    before = {name: value.detach().clone() for name, value in learnable(student.model).items()}
    outcome = outcome_of(case, learner, batches_of(case, student))
    moved = {
        name: float((value.detach() - before[name]).abs().max()) for name, value in learnable(student.model).items()
    }
    return replace(outcome, moved=moved)


class Bench(Worker):
    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks

    def address(self) -> int:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            return found.getsockname()[1]

    def join(self, port: int) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(self.rank), "WORLD_SIZE": str(self.ranks), "LOCAL_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}

    def run(self, case: Case) -> Outcome:
        """Of every parameter that is large enough to be split among the ranks, a part is here alone (ZeRO 3)."""
        from rlspeech.engines.learner_deepspeed import DeepspeedRank

        student = student_of(case)
        rank = DeepspeedRank.start(
            student,
            case.optim,
            DeepspeedConfig(**case.settings),
            objective=case.objective,
            on_progress=self.moved,
            small=0,
        )
        return outcome_of(case, rank, batches_of(case, student, self.ranks)[self.rank :: self.ranks])


def bench(cluster: Cluster, ranks: int) -> Iterator[Callable[[Case], Outcome]]:
    """Runs cases on so many ranks, one after the other; all ranks have to see the same."""
    actors = [cluster.actor(Bench, rank, ranks, name=f"bench {rank}") for rank in range(ranks)]
    port = actors[0].call("address")
    cluster.all({actor.call("join", port): actor for actor in actors})

    def run(case: Case) -> Outcome:
        outcomes = cluster.all({actor.call("run", case): actor for actor in actors})
        assert all(one.learned == outcomes[0].learned for one in outcomes)
        return outcomes[0]

    yield run
    for actor in actors:
        cluster.kill(actor)


def check_alike(found: Outcome, expected: Outcome, *, loss: float = LOSS, weight: float = WEIGHT) -> None:
    """Losses of float32 learners near 10 are compared to 2e-5, over 20 steps, and weights to 2e-4: what differs is the
    order in which gradients are summed, and Adam's division makes more of it where a gradient is nearly zero."""
    assert found.losses == pytest.approx(expected.losses, abs=loss)
    assert found.norms == pytest.approx(expected.norms, rel=1e-3)
    assert found.weights.keys() == expected.weights.keys()
    for name, value in expected.weights.items():
        assert torch.allclose(found.weights[name], value, atol=weight), name
