"""Stage 2, distill: the student hears audio and replies; a teacher that reads the transcript scores every token.

The loop is the same whatever the engines are: protocols.py has what each of them promises.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from rlspeech.config import DistillConfig
from rlspeech.data.mixing import batch_of_step
from rlspeech.engines.batches import make_batches
from rlspeech.engines.build import Engines, build
from rlspeech.engines.teacher_written import unscored, with_cross_entropy
from rlspeech.engines.token_bytes import token_bytes
from rlspeech.errors import UserError
from rlspeech.plugins import load_class
from rlspeech.protocols import Learned, Loss, Teacher
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import starting_point
from rlspeech.stages.hearing import Data, Heard, audio_metrics, flat, hear, read_data
from rlspeech.stages.held_out import HeldOut
from rlspeech.stages.mixture import Mixture, Replies, check_mixture, writes
from rlspeech.stages.models import lora_settings, use_threads
from rlspeech.stages.on_policy import OnPolicy, check_lengths
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.rollout_records import alignment_metrics, record, rollout_metrics, teacher_metrics
from rlspeech.stages.token_shares import token_shares
from rlspeech.stages.training import Prepared, finish, open_run
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
        with Distillation(config, folder, engines, held_out, train) as job:
            metrics = job.learn(loss, name="distill")
        finish(folder, config, engines.learner, metrics, stage="distill", start=start)


def _hear(config: DistillConfig, engines: Engines, data: Data) -> tuple[list[Heard], dict[str, list[Heard]]]:
    """What is learned from, and the held-out sets. Raises UserError where a prompt and its reply will not fit."""
    longest = config.sampling.max_tokens
    train = hear(engines.student, data.train, reply_tokens=longest)
    tests = {name: hear(engines.student, found, reply_tokens=longest) for name, found in data.tests.items()}
    if config.engines.rollouts == "vllm":
        check_lengths([*train, *(heard for test in tests.values() for heard in test)], longest, config.vllm)
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
class Distillation(OnPolicy):
    """Each step: replies of the student, or of the teacher in its place; the teacher scores every token of them."""

    config: DistillConfig
    heard: Sequence[Heard]
    mixture: Mixture = field(init=False)

    def __enter__(self) -> "Distillation":
        self.mixture = Mixture(self.config, self.engines)
        if self.config.weighting.scheme == "entity" or writes(self.config):
            token_bytes(self.engines.student.tokenizer)  # what it cannot do it says before the first step
        return super().__enter__()

    def sample(self, step: int) -> Prepared:
        config, teacher = self.config, self.engines.teacher
        assert teacher is not None
        chosen = batch_of_step(step, size=len(self.heard), batch=config.optim.batch, seed=config.seed)
        rows = [self.heard[index] for index in chosen]
        replies = self.mixture.replies(*flat(rows), self.sampling(step), step)
        rollouts = replies.scored
        started_s = time.monotonic()
        scored = teacher.score([r.sample for r in rollouts], [r.completion for r in rollouts])
        score_s = time.monotonic() - started_s
        metrics = rollout_metrics(rollouts, step=step, sample_s=replies.sample_s)
        metrics |= teacher_metrics(rollouts, score_s=score_s)
        metrics |= {**audio_metrics(rows), **replies.metrics, **alignment_metrics(scored, rollouts)}
        metrics["time/sync_s"] = self.sync_s
        return Prepared(self._batches(teacher, replies, scored), metrics, partial(self._look, step, rollouts))

    def _batches(self, teacher: Teacher, replies: Replies, scored: Sequence[Scored]) -> list[TokenBatch]:
        config, engines = self.config, self.engines
        rollouts = [*replies.scored, *replies.written]
        batches = make_batches(
            engines.student,
            rollouts,
            micro_batch=config.optim.micro_batch,
            micro_batch_tokens=config.optim.micro_batch_tokens,
            scored=[*scored, *unscored(scored, replies.written)],
            teacher_head=teacher.head(),
            shares=token_shares(config, engines.student, rollouts),
            ranks=engines.learner.ranks,
        )
        sft = config.mixed.sft_weight
        return with_cross_entropy(batches, rollouts, weight=sft) if sft else batches

    def _look(self, step: int, rollouts: Sequence[Rollout], learned: Learned) -> Mapping[str, float]:
        record(self.run, step + 1, rollouts, learned, self.engines.student)
        return self.look(step, learned)
