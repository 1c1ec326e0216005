"""RLBR: reinforcement learning with biasing rewards (arXiv 2601.13409), and GRPO with any other reward.

The loop is that of distill: rewards and advantages stand where the teacher's scores do.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rlspeech.config import RlbrConfig
from rlspeech.data.mixing import batch_of_step
from rlspeech.engines.batches import make_batches, reference_rollouts
from rlspeech.engines.build import build
from rlspeech.engines.reply_logprobs import with_advantages, with_logprobs
from rlspeech.engines.reward_host import RewardHost
from rlspeech.errors import UserError
from rlspeech.plugins import load_class
from rlspeech.protocols import Learned
from rlspeech.run_dir import RunDir
from rlspeech.stages.biasing_lists import Lists
from rlspeech.stages.chain import starting_point
from rlspeech.stages.groups import Group, Judged, best_and_worst, group_metrics, join
from rlspeech.stages.guard import Guard, Unjudged, both
from rlspeech.stages.hearing import Heard, audio_metrics, flat, hear, read_data
from rlspeech.stages.held_out_words import HeldOutWords
from rlspeech.stages.models import lora_settings, use_threads
from rlspeech.stages.on_policy import OnPolicy, check_lengths
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.rollout_records import record_judged, rollout_metrics
from rlspeech.stages.training import Prepared, Watch, finish, open_run
from rlspeech.types import Prompt, Rollout, Sample


def run(config: RlbrConfig, *, resume: bool = False) -> None:
    """Raises UserError before any model loads where the settings, the data, a reward or this machine will not do."""
    check_can_run(config)
    loss = _loss(config)
    with RewardHost.of(config.rewards) as rewards:
        data = read_data(config, ("audio", "reference"))
        lists = Lists.of(config.lists, data, batch=config.optim.batch, seed=config.seed)
        with open_run(config, resume=resume) as folder:
            if not folder.finished:
                _learn(config, folder, loss, rewards, lists, starting_point(config))


def _loss(config: RlbrConfig) -> Any:
    """Raises UserError where the loss knows no advantages, or a setting of the groups cannot act."""
    loss = load_class("losses", config.loss, "Loss", config.loss_options)
    if not hasattr(loss, "advantages_of"):
        raise UserError(f"loss = {config.loss!r}: knows no advantages (advantages_of, shares, idle), as grpo does")
    members = config.sampling.n + (config.groups.reference == "extra")
    if members < 2:
        raise UserError(f"sampling.n = {config.sampling.n}: a reply alone has nothing to be compared with")
    if config.groups.reference == "off" and not config.groups.reference_counts:
        raise UserError("groups.reference_counts = false: cannot act with groups.reference = 'off'; leave it out")
    return loss


def _learn(config: RlbrConfig, folder: RunDir, loss: Any, rewards: RewardHost, lists: Lists, start: str) -> None:
    use_threads(config.threads, config.seed)
    rewards.start()
    with build(config, start, lora=lora_settings(config.lora)) as engines:
        longest, student = config.sampling.max_tokens, engines.student
        train = lists.begin(student, reply_tokens=longest)
        tests = {name: hear(student, found, reply_tokens=longest) for name, found in lists.tests().items()}
        if getattr(loss, "kl_beta", 0):
            engines.learner.keep_reference()
        if config.engines.rollouts == "vllm":
            check_lengths([*train, *(heard for test in tests.values() for heard in test)], longest, config.vllm)
        held_out = HeldOutWords(tests, max_tokens=longest)
        with Reinforcement(config, folder, engines, held_out, loss, rewards, lists) as job:
            metrics = job.learn(loss, name="rlbr")
        finish(folder, config, engines.learner, metrics, stage="rlbr", start=start)


@dataclass(frozen=True)
class Round:
    """Groups that were drawn together, of all replies that were sampled for them."""

    groups: list[Group]
    rollouts: Sequence[Rollout]
    heard: Sequence[Heard]
    sample_s: float
    reward_s: float


def _told(rounds: Sequence[Round], step: int) -> dict[str, float]:
    """Of all rounds of a step."""
    rollouts = [rollout for one in rounds for rollout in one.rollouts]
    heard = [recording for one in rounds for recording in one.heard]
    metrics = rollout_metrics(rollouts, step=step, sample_s=sum(one.sample_s for one in rounds))
    return {**metrics, **audio_metrics(heard), "time/reward_s": sum(one.reward_s for one in rounds)}


def _by_spread(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    return [one for one in groups if one.has_spread], [one for one in groups if not one.has_spread]


@dataclass
class Reinforcement(OnPolicy):
    """Each step: groups of replies, their rewards, the reference among them; advantages for the learner."""

    config: RlbrConfig
    loss: Any
    rewards: RewardHost
    lists: Lists

    def prepare(self, step: int) -> Prepared:
        """With log-probs of the learner as it is before its first update of this step, where the loss needs them."""
        prepared = super().prepare(step)
        learner, batches = self.engines.learner, prepared.batches
        temperature = self.config.sampling.temperature
        old = learner.logprobs(batches, temperature=temperature) if self.config.updates > 1 else None
        kept = (
            learner.logprobs(batches, temperature=temperature, reference=True)
            if getattr(self.loss, "kl_beta", 0)
            else None
        )
        return replace(
            prepared,
            batches=with_logprobs(batches, old=old, reference=kept),
            updates=self.config.updates if prepared.updates else 0,
        )

    def sample(self, step: int) -> Prepared:
        config = self.config
        started_s = time.monotonic()
        groups, metrics = self._groups(step)
        members = [one for group in groups for one in group.members]
        rollouts = [one.rollout for one in members]
        lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
        rewards = [[one.reward for one in group.members] for group in groups]
        values = self.loss.advantages_of(rewards, [self._counted(group) for group in groups])
        advantages = [value for found in values for value in found]
        batches = make_batches(
            self.engines.student,
            rollouts,
            micro_batch=config.optim.micro_batch,
            micro_batch_tokens=config.optim.micro_batch_tokens,
            shares=self.loss.shares(lengths),
            ranks=self.engines.learner.ranks,
        )
        metrics |= group_metrics(groups, values)
        metrics |= {"time/sync_s": self.sync_s, "time/groups_s": time.monotonic() - started_s}
        look = partial(self._look, step, members, advantages)
        batches = with_advantages(batches, advantages, idle=self.loss.idle(lengths, config.sampling.max_tokens))
        return Prepared(batches, metrics, look, updates=int(self.loss.can_learn(values)))

    def watch(self) -> Watch:
        return both(Guard(self.config.guard), Unjudged(self.config.guard, tuple(self.config.rewards)))

    def _counted(self, group: Group) -> list[bool]:
        """Who counts in the group's mean and standard deviation."""
        counts = self.config.groups.reference_counts
        return [counts or one.rollout.origin != "reference" for one in group.members]

    def _groups(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """One for each sample of the step; those without spread are replaced as often as the recipe says."""
        want = self.config.optim.batch
        rounds = [self._round(step, 0, want)]
        groups, metrics = rounds[0].groups, {}
        if self.config.groups.refill_rounds:
            groups, flat_ones = _by_spread(rounds[0].groups)
            for turn in range(1, 1 + self.config.groups.refill_rounds):
                if not flat_ones or len(groups) >= want:  # a recording may have several instructions
                    break
                rounds.append(self._round(step, turn, want - len(groups)))
                found, flat_ones = _by_spread(rounds[-1].groups)
                groups = [*groups, *found]
            groups = [*groups, *flat_ones]
            drawn = sum(len(one.groups) for one in rounds)
            metrics["groups/refilled"] = float(drawn - len(groups))
        return groups, metrics | _told(rounds, step)

    def _round(self, step: int, turn: int, count: int) -> Round:
        """`turn`: of the draws of a step, each of other samples and other random numbers."""
        config = self.config
        draw = {"size": len(self.lists.train), "batch": config.optim.batch, "seed": config.seed + turn * 7_919}
        chosen = batch_of_step(step, **draw)[:count]
        rows = self.lists.heard(self.engines.student, chosen, step=step, turn=turn)
        samples, prompts = flat(rows)
        started_s = time.monotonic()
        sampling = self.sampling(step, times=config.groups.oversample)
        sampling = replace(sampling, seed=sampling.seed + turn * 15_485_863)
        rollouts = self.engines.rollouts.generate(samples, prompts, sampling)
        sampled_s = time.monotonic()
        groups = self._judged(samples, prompts, rollouts)
        return Round(groups, rollouts, rows, sampled_s - started_s, time.monotonic() - sampled_s)

    def _judged(self, samples: Sequence[Sample], prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> list[Group]:
        settings, sampling = self.config.groups, self.config.sampling
        references = []
        if settings.reference != "off":
            references = reference_rollouts(self.engines.student, samples, prompts)
        judged = self._judge([*rollouts, *references])
        each = sampling.n * settings.oversample
        groups = []
        for index in range(len(samples)):
            members = best_and_worst(judged[index * each : (index + 1) * each], sampling.n)
            reference = judged[len(rollouts) + index] if references else None
            groups.append(join(members, reference, settings, max_tokens=sampling.max_tokens))
        return groups

    def _judge(self, rollouts: Sequence[Rollout]) -> list[Judged]:
        found = self.rewards.score(rollouts)
        return [
            Judged(rollout, found.total[i], tuple((name, values[i]) for name, values in found.parts.items()))
            for i, rollout in enumerate(rollouts)
        ]

    def _look(
        self, step: int, members: Sequence[Judged], advantages: Sequence[float], learned: Learned
    ) -> Mapping[str, float]:
        record_judged(self.run, step + 1, members, advantages, self.engines.student)
        return self.look(step, learned)
