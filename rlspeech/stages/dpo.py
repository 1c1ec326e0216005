"""Stage 3, DPO: of two replies to the same audio the preferred one becomes more likely, and the rejected one less.

The pairs are read (`rlspeech pairs` makes them of the student's own replies), or made while it learns, of fresh
replies, with `online`. The loop is that of distill and rlbr. The reference is the student that the stage begins with:
its adapter adds nothing yet, so there is no second copy of the model, and its log-probs are kept in a file.
"""

import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rlspeech.config_dpo import DpoConfig, PairsConfig
from rlspeech.data import pairs as files
from rlspeech.data.pairs import Pair
from rlspeech.engines.build import build
from rlspeech.engines.reply_logprobs import with_logprobs
from rlspeech.errors import UserError
from rlspeech.plugins import load_class
from rlspeech.protocols import Learned
from rlspeech.recipe import find_recipe, load
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import refuse_another, starting_point
from rlspeech.stages.examining import Examiner
from rlspeech.stages.groups import Judged
from rlspeech.stages.guard import FallingChosen, Guard, NoPairs, both
from rlspeech.stages.hearing import Data, hear, read_data
from rlspeech.stages.held_out_replies import HeldOutReplies
from rlspeech.stages.models import lora_settings, use_threads
from rlspeech.stages.on_policy import OnPolicy, check_lengths
from rlspeech.stages.pair_sources import Fresh, Kept, Replies, Source, batches_of
from rlspeech.stages.pairing import Pairing
from rlspeech.stages.plan import check_can_run
from rlspeech.stages.rollout_records import record_judged
from rlspeech.stages.training import Prepared, Watch, finish, open_run

log = logging.getLogger(__name__)


def run(config: DpoConfig, *, resume: bool = False) -> None:
    """Raises UserError before any model loads where the settings, the pairs or this machine will not do."""
    check_can_run(config)
    loss = _loss(config)
    examiner = Examiner.of(config.detectors)
    data = read_data(config, ("audio",), train=config.online)
    examined = [*data.train, *(one for test in data.tests.values() for one in test)]
    examiner.check(sample for one in examined for sample in one.samples)
    pairs = [] if config.online else _read_pairs(config)
    with open_run(config, resume=resume) as folder:
        if not folder.finished:
            _learn(config, folder, loss, examiner, data, pairs, starting_point(config))


def _loss(config: DpoConfig) -> Any:
    """Raises UserError where the loss knows no pairs, or a setting cannot act."""
    loss = load_class("losses", config.loss, "Loss", config.loss_options)
    if not getattr(loss, "learns_from_pairs", False):
        raise UserError(f"loss = {config.loss!r}: knows no pairs (learns_from_pairs), as dpo does")
    if config.importance != type(config).model_fields["importance"].default:
        raise UserError("importance: cannot act, replies of pairs have no log-probs of a sampler; leave it out")
    if config.online:
        _check_online(config)
    elif config.online_every != 1:
        raise UserError(f"online_every = {config.online_every}: cannot act without --online; leave it out")
    elif config.guard.repetition_stop is not None:
        raise UserError("guard.repetition_stop: cannot act, pairs of a file are not sampled here; leave it out")
    return loss


def _check_online(config: DpoConfig) -> None:
    """Raises UserError where a setting cannot act, or stands against fresh pairs."""
    if config.max_policy_lag:
        raise UserError("online = true: pairs are made with the newest weights; max_policy_lag must be 0")
    if config.sampling.n < 2:
        raise UserError(f"sampling.n = {config.sampling.n}: a reply alone makes no pair")
    of_a_file = {"pairs": config.pairs, "reference": config.reference}
    unasked = {"choosing.unlikely_nats": config.choosing.unlikely_nats, "choosing.judged": config.choosing.judged}
    for name, value in of_a_file.items():
        if value is not None:
            raise UserError(f"{name} = {str(value)!r}: cannot act with online = true; leave it out")
    for name, value in unasked.items():
        if value is not None:
            raise UserError(f"{name} = {value:g}: cannot act with online = true, no teacher or judge is asked")


def _read_pairs(config: DpoConfig) -> list[Pair]:
    """From their file; those beside the run folder are made first where they are missing and the recipe says how."""
    file = config.pairs_file()
    if config.pairs is None and config.make is not None:
        made = _making(config, file)
        if not file.exists():
            log.info("%s: not there, so `rlspeech pairs %s` runs first", file, config.make)
            importlib.import_module("rlspeech.stages.pairs").run(made, resume=True)
        elif (file.parent / "config.toml").is_file():
            refuse_another(file.parent, made, instead=f"name {file} as --pairs")
    return files.read(file)


def _making(config: DpoConfig, file: Path) -> PairsConfig:
    """The recipe of the pairs, on this run's student, data and seed."""
    given = {"student": config.student, "run_dir": str(file.parent)}
    made = load(PairsConfig, find_recipe(config.make), given)
    data = made.data.model_copy(update={"train": config.data.train, "synth": config.data.synth})
    own = {"seed": config.seed, "threads": config.threads, "trust_remote_code": config.trust_remote_code}
    return made.model_copy(update={"data": data, **own})


def _learn(
    config: DpoConfig, folder: RunDir, loss: Any, examiner: Examiner, data: Data, pairs: Sequence[Pair], start: str
) -> None:
    use_threads(config.threads, config.seed)
    with build(config, start, lora=lora_settings(config.lora)) as engines:
        longest, student = config.sampling.max_tokens, engines.student
        engines.learner.keep_reference()
        train = hear(student, data.train, reply_tokens=longest) if config.online else []
        tests = {name: hear(student, found, reply_tokens=longest) for name, found in data.tests.items()}
        if config.engines.rollouts == "vllm":
            check_lengths([*train, *(heard for test in tests.values() for heard in test)], longest, config.vllm)
        held_out = HeldOutReplies(tests, examiner, longest, config.optim)
        source: Source
        if config.online:
            source = Fresh(config, engines, Pairing(examiner, config.choosing), train)
        else:
            source = Kept.of(config, engines, pairs, folder=folder.path, start=start)
        with Preference(config, folder, engines, held_out, source) as job:
            metrics = job.learn(loss, name="dpo")
        finish(folder, config, engines.learner, metrics, stage="dpo", start=start)


@dataclass
class Preference(OnPolicy):
    """Each step: pairs, with what the reference makes of their replies."""

    config: DpoConfig
    source: Source

    def sample(self, step: int) -> Prepared:
        found = self.source.step(step)
        metrics = {**found.metrics, "pairs/count": float(len(found.replies))}
        look = partial(self._look, step, found.replies)
        if not found.replies:
            return Prepared([], metrics, look, updates=0)
        batches = batches_of(self.config, self.engines, found.replies)
        return Prepared(with_logprobs(batches, reference=dict(enumerate(found.reference))), metrics, look)

    @property
    def temperature(self) -> float:
        return 1.0

    def watch(self) -> Watch:
        guard = self.config.guard
        if not self.config.online:
            return FallingChosen(guard)
        return both(Guard(guard), NoPairs(guard), FallingChosen(guard))

    def _sync(self, step: int) -> None:
        if self.source.needs_weights:
            super()._sync(step)

    def _look(self, step: int, replies: Sequence[Replies], learned: Learned) -> Mapping[str, float]:
        members = [Judged(one, worth) for pair in replies for one, worth in zip(pair, (1.0, 0.0), strict=True)]
        worths = [one.reward or 0.0 for one in members]
        record_judged(self.run, step + 1, members, worths, self.engines.student)
        return self.look(step, learned)
