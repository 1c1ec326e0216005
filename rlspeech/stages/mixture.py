"""Whose replies a step of distill learns from: the student's own samples, or what the teacher writes itself."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rlspeech.config import DistillConfig
from rlspeech.engines.build import Engines
from rlspeech.engines.teacher_written import teacher_rollouts
from rlspeech.errors import UserError
from rlspeech.protocols import Loss, Sampling
from rlspeech.types import Prompt, Rollout, Sample

ROOM = 2  # the teacher may write this often as many tokens of its own as the student may: what it cuts is then too long


class Replies(NamedTuple):
    """Each sample is in `scored` once for each of its replies; `written` is learned by cross-entropy alone."""

    scored: list[Rollout]  # the student's samples, then what the teacher wrote in their place
    written: list[Rollout]
    sample_s: float
    metrics: dict[str, float]  # of what the teacher wrote


def check_mixture(config: DistillConfig, loss: Loss) -> None:
    """Raises UserError where the settings of [mixed] and [guard] cannot act with the others."""
    share = config.mixed.on_policy_share
    if share < 1 and getattr(loss, "corrects_sampler", False):
        raise UserError(
            f"loss = {config.loss!r}: learns from the log-probs of samples, and with mixed.on_policy_share = {share:g} "
            "the teacher writes some replies; set it to 1, or take reverse_kl, forward_kl or jsd"
        )
    longest, room = ROOM * config.sampling.max_tokens, config.vllm.max_model_len
    if writes(config) and config.engines.teacher == "vllm" and longest >= room:
        raise UserError(
            f"[mixed]: the teacher may write {longest} tokens ({ROOM} x sampling.max_tokens), and vllm.max_model_len = "
            f"{room} leaves it no prompt"
        )
    if share == 0 and config.guard.repetition_stop is not None:
        raise UserError("guard.repetition_stop: with mixed.on_policy_share = 0 the student writes no replies to watch")


def writes(config: DistillConfig) -> bool:
    """Whether the teacher is asked for replies of its own."""
    return config.mixed.sft_weight > 0 or config.mixed.on_policy_share < 1


def is_on_policy(sample: Sample, *, share: float, seed: int, step: int) -> bool:
    """A draw for this sample at this step: the same whatever else is in the step."""
    return random.Random(f"{seed}:{step}:{sample.id}").random() < share


@dataclass
class Mixture:
    """The teacher is asked once in a run for each sample, greedily."""

    config: DistillConfig
    engines: Engines
    _texts: dict[str, str] = field(default_factory=dict)  # by the sample's id

    def replies(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling, step: int) -> Replies:
        mixed, seed = self.config.mixed, self.config.seed
        pairs = list(zip(samples, prompts, strict=True))
        ours = [is_on_policy(sample, share=mixed.on_policy_share, seed=seed, step=step) for sample in samples]
        mine = [pair for pair, own in zip(pairs, ours, strict=True) if own]
        theirs = [pair for pair, own in zip(pairs, ours, strict=True) if not own]
        started_s = time.monotonic()
        sampled = self.engines.rollouts.generate(*_apart(mine), sampling) if mine else []
        sampled_s = time.monotonic()
        instead = self._written(theirs, step)
        written = self._written(mine, step) if mixed.sft_weight else []
        ended_s = time.monotonic()
        metrics = {"rollout/teacher_share": len(theirs) / len(pairs), "time/write_s": ended_s - sampled_s}
        return Replies([*sampled, *instead], written, sampled_s - started_s, metrics if writes(self.config) else {})

    def _written(self, pairs: Sequence[tuple[Sample, Prompt]], step: int) -> list[Rollout]:
        samples, prompts = _apart(pairs)
        longest, engines = self.config.sampling.max_tokens, self.engines
        unasked = list({sample.id: sample for sample in samples if sample.id not in self._texts}.values())
        if unasked:
            answers = engines.teacher.reply(unasked, max_tokens=ROOM * longest)
            self._texts |= {sample.id: answer.text for sample, answer in zip(unasked, answers, strict=True)}
        texts = [self._texts[sample.id] for sample in samples]
        return teacher_rollouts(engines.student, samples, prompts, texts, max_tokens=longest, version=step)


def _apart(pairs: Sequence[tuple[Sample, Prompt]]) -> tuple[list[Sample], list[Prompt]]:
    return [sample for sample, _ in pairs], [prompt for _, prompt in pairs]
