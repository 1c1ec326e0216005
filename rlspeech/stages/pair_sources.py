"""Where the pairs of a step of DPO come from: a file, or the student's own fresh replies."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rlspeech.config_dpo import DpoConfig
from rlspeech.data.mixing import batch_of_step
from rlspeech.data.pairs import Pair
from rlspeech.engines import pair_reference
from rlspeech.engines.build import Engines
from rlspeech.engines.loading import student_place
from rlspeech.engines.pair_batches import pair_batches
from rlspeech.protocols import Sampling, Student
from rlspeech.stages.hearing import Heard, audio_metrics, flat, hear, listen
from rlspeech.stages.pairing import Pairing
from rlspeech.stages.progress import progress
from rlspeech.stages.rollout_records import rollout_metrics
from rlspeech.types import Completion, Prompt, Rollout, TokenBatch

Replies = tuple[Rollout, Rollout]  # preferred, rejected
AT_ONCE = 64  # pairs whose reference is computed between two looks at the progress


@dataclass(frozen=True)
class Step:
    """The pairs of a step, and the reference's log-probs of each of their replies, two a pair."""

    replies: Sequence[Replies]
    reference: Sequence[Sequence[float]]
    metrics: dict[str, float]


class Source(Protocol):
    needs_weights: bool  # the sampler has to have the learner's weights

    def step(self, step: int) -> Step: ...


def replies_of(student: Student, pairs: Sequence[Pair]) -> list[Replies]:
    """The two replies of each pair; the sound of consecutive pairs about the same audio is read once."""
    longest = max((_tokens(student, text) for pair in pairs for text in (pair.chosen, pair.rejected)), default=0)
    recordings = hear(student, listen([pair.sample for pair in pairs]), reply_tokens=longest + 1)
    prompts: Iterator[Prompt] = (prompt for one in recordings for prompt in one.prompts)
    return [replies_to(student, pair, prompt) for pair, prompt in zip(pairs, prompts, strict=True)]


def replies_to(student: Student, pair: Pair, prompt: Prompt) -> Replies:
    """The texts in the student's tokens; the end token behind those that were not cut off."""

    def rollout(text: str, ended: bool) -> Rollout:
        ids = student.tokenizer(text, add_special_tokens=False).input_ids
        ids = (*ids, student.end_token_id) if ended else (*ids,)
        return Rollout(pair.sample, prompt, Completion(ids, (), text, "stop" if ended else "length"))

    return rollout(pair.chosen, pair.chosen_ended), rollout(pair.rejected, pair.rejected_ended)


def _tokens(student: Student, text: str) -> int:
    return len(student.tokenizer(text, add_special_tokens=False).input_ids)


def batches_of(config: DpoConfig, engines: Engines, replies: Sequence[Replies]) -> list[TokenBatch]:
    return pair_batches(
        engines.student,
        replies,
        micro_batch=config.optim.micro_batch,
        micro_batch_tokens=config.optim.micro_batch_tokens,
        ranks=engines.learner.ranks,
    )


@dataclass
class Kept:
    """Of a file: every pair once, in a new order each time."""

    config: DpoConfig
    replies: Sequence[Replies]
    reference: Sequence[Sequence[float]]
    needs_weights = False

    @classmethod
    def of(cls, config: DpoConfig, engines: Engines, pairs: Sequence[Pair], *, folder: Path, start: str) -> "Kept":
        """With the reference's log-probs, from their file where it is there."""
        replies = replies_of(engines.student, pairs)
        file = config.reference or folder / "reference.safetensors"
        about: dict[pair_reference.About, str] = {
            "model": pair_reference.model_key(student_place(config, start).folder),
            "precision": (config.engines.learner == "deepspeed" and config.deepspeed.dtype) or "default",
            "pairs": pair_reference.pairs_key([one for pair in replies for one in pair]),
        }
        reference = pair_reference.read(file, about)
        if reference is None:
            reference = list(_computed(config, engines, replies))
            pair_reference.write(file, reference, about)
        return cls(config, replies, reference)

    def step(self, step: int) -> Step:
        settings = self.config.optim
        chosen = batch_of_step(step, size=len(self.replies), batch=settings.batch, seed=self.config.seed)
        reference = [self.reference[place] for index in chosen for place in (2 * index, 2 * index + 1)]
        return Step([self.replies[index] for index in chosen], reference, {})


def _computed(config: DpoConfig, engines: Engines, replies: Sequence[Replies]) -> Iterator[list[float]]:
    with progress("reference", -(-len(replies) // AT_ONCE)) as tick:
        for done, first in enumerate(range(0, len(replies), AT_ONCE), 1):
            part = replies[first : first + AT_ONCE]
            yield from _by_reference(config, engines, part)
            tick(done)


def _by_reference(config: DpoConfig, engines: Engines, replies: Sequence[Replies]) -> list[list[float]]:
    told = engines.learner.logprobs(batches_of(config, engines, replies), reference=True)
    return [told[index] for index in range(2 * len(replies))]


@dataclass
class Fresh:
    """Of the student's own replies, anew every `online_every` steps: each of these steps takes its share of the pairs.

    A resumed run draws the replies of a round anew that it was in the middle of.
    """

    config: DpoConfig
    engines: Engines
    pairing: Pairing
    heard: Sequence[Heard]
    left: list[Replies] = field(default_factory=list)
    round: int = -1  # that `left` is of
    needs_weights = True

    def step(self, step: int) -> Step:
        every = self.config.online_every
        metrics = self._draw(step // every) if step // every != self.round else {}
        share = -(-len(self.left) // (every - step % every))
        now, self.left = self.left[:share], self.left[share:]
        reference = _by_reference(self.config, self.engines, now) if now else []
        return Step(now, reference, metrics)

    def _draw(self, number: int) -> dict[str, float]:
        """A round of replies, and the pairs of them."""
        config, each = self.config, self.config.sampling.n
        batch = config.optim.batch * config.online_every
        rows = [self.heard[i] for i in batch_of_step(number, size=len(self.heard), batch=batch, seed=config.seed)]
        samples, prompts = flat(rows)
        audio_s = [row.audio_s for row in rows for _ in row.samples]
        started_s = time.monotonic()
        rollouts = self.engines.rollouts.generate(samples, prompts, self._sampling(number))
        metrics = rollout_metrics(rollouts, step=number * config.online_every, sample_s=time.monotonic() - started_s)
        self.left, self.round = [], number
        for index, (sample, prompt) in enumerate(zip(samples, prompts, strict=True)):
            mine = [one.completion for one in rollouts[index * each : (index + 1) * each]]
            written = [{"text": one.text, "ended": one.finish == "stop"} for one in mine]
            pairs = self.pairing.pairs(sample, audio_s[index], written)
            self.left += [replies_to(self.engines.student, pair, prompt) for pair in pairs]
        return {**metrics, **audio_metrics(rows), "pairs/per_prompt": len(self.left) / len(samples)}

    def _sampling(self, number: int) -> Sampling:
        settings = self.config.sampling
        return Sampling(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            n=settings.n,
            seed=self.config.seed * 1_000_003 + number,
        )
