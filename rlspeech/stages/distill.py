"""Stage 2, distill: the student hears audio and replies; a teacher that reads the transcript scores every token.

The loop is the same whatever the engines are: protocols.py has what each of them promises.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlspeech.config import DistillConfig
from rlspeech.data.mixing import batch_of_step
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import Engines, build
from rlspeech.engines.rollout_vllm import check_length
from rlspeech.engines.teacher_written import unscored, with_cross_entropy
from rlspeech.engines.token_bytes import token_bytes
from rlspeech.errors import UserError
from rlspeech.plugins import load_class
from rlspeech.protocols import Learned, Loss, Sampling
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import starting_point
from rlspeech.stages.guard import Guard
from rlspeech.stages.hearing import Data, Heard, audio_metrics, flat, hear, read_data
from rlspeech.stages.held_out import HeldOut
from rlspeech.stages.mixture import Mixture, Replies, check_mixture, writes
from rlspeech.stages.models import lora_settings, use_threads
from rlspeech.stages.overlap import Ahead
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.rollout_records import alignment_metrics, record, rollout_metrics
from rlspeech.stages.token_shares import token_shares
from rlspeech.stages.training import Prepared, Recovery, finish, learn, open_run
from rlspeech.types import Rollout, Scored, TokenBatch


def run(config: DistillConfig, *, resume: bool = False) -> None:
    """Raises UserError before any model loads where the settings, the data or this machine will not do."""
    check_can_run(config)
    loss = _loss(config)
    data = read_data(config, ("audio", "transcript"), kinds=_kinds(config))
    _check_teachers(config, data)
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _distill(config, folder, loss, data, starting_point(config))


def _distill(config: DistillConfig, folder: RunDir, loss: Loss, data: Data, start: str) -> None:
    use_threads(config.threads, config.seed)
    with build(config, start, lora=lora_settings(config.lora)) as engines:
        train, tests = _hear(config, engines, data)
        held_out = HeldOut(
            tests,
            max_tokens=config.sampling.max_tokens,
            micro_batch=config.optim.micro_batch,
            micro_batch_tokens=config.optim.micro_batch_tokens,
        )
        with Distillation(config, folder, train, engines, held_out) as job:
            metrics = learn(
                folder,
                config,
                engines.learner,
                loss,
                job.prepare,
                name="distill",
                temperature=config.sampling.temperature,
                recovery=Recovery(config.cluster.max_restarts, job.restart) if config.cluster else None,
                watch=Guard(config.guard),
            )
        finish(folder, config, engines.learner, metrics, stage="distill", start=start)


def _hear(config: DistillConfig, engines: Engines, data: Data) -> tuple[list[Heard], dict[str, list[Heard]]]:
    """What is learned from, and the held-out sets. Raises UserError where a prompt and its reply will not fit."""
    longest = config.sampling.max_tokens
    train = hear(engines.student, data.train, reply_tokens=longest)
    tests = {name: hear(engines.student, found, reply_tokens=longest) for name, found in data.tests.items()}
    if config.engines.rollouts == "vllm":
        for sample, prompt in zip(*flat([*train, *(heard for test in tests.values() for heard in test)]), strict=True):
            check_length(sample, prompt, longest, config.vllm)
    return train, tests


def _loss(config: DistillConfig) -> Loss:
    """Raises UserError where the loss cannot act with the other settings."""
    if config.loss == "cross_entropy":
        raise UserError("loss = 'cross_entropy': learns from references and leaves the teacher out; it belongs to sft")
    if config.loss == "grpo":
        raise UserError("loss = 'grpo': learns from rewards and leaves the teacher out; it belongs to rlbr")
    if config.loss == "k1" and (config.sampling.temperature, config.sampling.top_p) != (1, 1):
        raise UserError("loss = 'k1': compares the log-probs of samples, so sampling wants temperature 1 and top_p 1")
    loss = load_class("losses", config.loss, "Loss", config.loss_options)
    check_mixture(config, loss)
    return loss


def _kinds(config: DistillConfig) -> list[str]:
    """Kinds of instruction that are learned from and that the teacher is asked."""
    learned, asked = config.data.kinds, config.reading.kinds
    both = [kind for kind in learned if kind in asked] if learned and asked else learned or asked
    if not both and (learned or asked):
        raise UserError(f"data.kinds ({', '.join(learned)}) and reading.kinds ({', '.join(asked)}) have none in common")
    return both


def _check_teachers(config: DistillConfig, data: Data) -> None:
    """Raises UserError where a row names a teacher that the recipe does not have."""
    for recording in [*data.train, *(found for test in data.tests.values() for found in test)]:
        for sample in recording.samples:
            if sample.teacher and sample.teacher not in config.teachers:
                known = ", ".join(config.teachers) or "none"
                raise UserError(f"{sample.id}: teacher = {sample.teacher!r}, which [teachers] does not name: {known}")


@dataclass
class Distillation:
    """One pass: weights to the sampler, replies from the student, scores from the teacher, batches for the learner."""

    config: DistillConfig
    run: RunDir
    heard: Sequence[Heard]
    engines: Engines
    held_out: HeldOut
    mixture: Mixture = field(init=False)
    ahead: Ahead = field(init=False)
    sync_s: float = 0.0  # that the weights of the next samples took

    def __enter__(self) -> "Distillation":
        self.mixture = Mixture(self.config, self.engines)
        if self.config.weighting.scheme == "entity" or writes(self.config):
            token_bytes(self.engines.student.tokenizer)  # what it cannot do it says before the first step
        lag, steps = self.config.max_policy_lag, self.config.optim.steps
        self.ahead = Ahead(self._sync, self._sample, steps=steps, lag=lag, interrupt=self.engines.interrupt)
        return self

    def __exit__(self, *error: Any) -> None:
        self.ahead.__exit__(*error)

    def prepare(self, step: int) -> Prepared:
        if step == 0:
            self.run.append("metrics.jsonl", {"step": 0, **self.held_out.measure(self.engines, version=0)})
        return self.ahead.get(step)

    def restart(self) -> None:
        """After the learner was lost: new ranks, and nothing of what was sampled for the step that was lost."""
        self.ahead.forget()
        self.engines.learner.restart()

    def _sync(self, step: int) -> None:
        started_s = time.monotonic()
        self.engines.rollouts.load_weights(self.engines.learner, step)
        self.sync_s = time.monotonic() - started_s

    def _sample(self, step: int) -> Prepared:
        config, engines = self.config, self.engines
        chosen = batch_of_step(step, size=len(self.heard), batch=config.optim.batch, seed=config.seed)
        rows = [self.heard[index] for index in chosen]
        samples, prompts = flat(rows)
        sampling = Sampling(**config.sampling.model_dump(), seed=config.seed * 1_000_003 + step)
        replies = self.mixture.replies(samples, prompts, sampling, step)
        rollouts = replies.scored
        started_s = time.monotonic()
        scored = engines.teacher.score([r.sample for r in rollouts], [r.completion for r in rollouts])
        score_s = time.monotonic() - started_s
        metrics = rollout_metrics(rollouts, step=step, sample_s=replies.sample_s, score_s=score_s)
        metrics |= {**audio_metrics(rows), **replies.metrics, **alignment_metrics(scored, rollouts)}
        metrics["time/sync_s"] = self.sync_s
        return Prepared(self._batches(replies, scored), metrics, partial(self._look, step, rollouts))

    def _batches(self, replies: Replies, scored: Sequence[Scored]) -> list[TokenBatch]:
        config, engines = self.config, self.engines
        rollouts = [*replies.scored, *replies.written]
        batches = make_batches(
            engines.student,
            rollouts,
            micro_batch=config.optim.micro_batch,
            micro_batch_tokens=config.optim.micro_batch_tokens,
            scored=[*scored, *unscored(scored, replies.written)],
            teacher_head=engines.teacher.head(),
            shares=token_shares(config, engines.student, rollouts),
            ranks=engines.learner.ranks,
        )
        sft = config.mixed.sft_weight
        return with_cross_entropy(batches, rollouts, weight=sft) if sft else batches

    def _look(self, step: int, rollouts: Sequence[Rollout], learned: Learned) -> Mapping[str, float]:
        record(self.run, step + 1, rollouts, learned, self.engines.student)
        if (step + 1) % self.config.held_out.every_steps and step + 1 < self.config.optim.steps:
            return {}
        self.ahead.settle()
        return self.held_out.measure(self.engines, version=step + 1)
