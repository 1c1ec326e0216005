"""What is watched from step to step: loops, replies that nobody judges, missing pairs, falling likelihoods."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlspeech.config_objective import GuardConfig
from rlspeech.stages.training import Watch

log = logging.getLogger(__name__)

WATCHED = "rollout/repetition_share"
UNJUDGED = "reward/unjudged_share"
PAIRS = "pairs/count"
CHOSEN = "train/rewards_chosen"


def both(*watches: Watch) -> Watch:
    """All of them look at each step; the first that wants it stopped says why."""

    def watch(step: int, metrics: Mapping[str, float]) -> str | None:
        return next(filter(None, [one(step, metrics) for one in watches]), None)

    return watch


@dataclass
class Guard:
    """Repetition in the student's replies: learning from its own samples can amplify a loop.

    Steps come in order, each once; one that comes again (after a lost learner) begins the counts anew."""

    config: GuardConfig
    last_step: int = 0
    warned: bool = False
    above_warn: int = 0  # steps in a row
    above_stop: int = 0

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Why the run is to stop, in one line, or None. A step without replies of the student changes nothing."""
        share = metrics.get(WATCHED)
        if share is None:
            return None
        if step <= self.last_step:
            self.above_warn = self.above_stop = 0
        self.last_step = step
        stop, warn, patience = self.config.repetition_stop, self.config.repetition_warn, self.config.patience
        self.above_warn = self.above_warn + 1 if share > warn else 0
        self.above_stop = self.above_stop + 1 if stop is not None and share > stop else 0
        self.warned = self.warned and self.above_warn > 0
        if self.above_stop >= patience:
            return f"step {step}: {_told(share)}, above guard.repetition_stop = {stop:g} for {self.above_stop} steps"
        if self.above_warn >= patience and not self.warned:
            self.warned = True
            note = "step %d: %s, above guard.repetition_warn = %g for %d steps; look at rollouts.jsonl"
            log.warning(note, step, _told(share), warn, self.above_warn)
        return None


@dataclass
class Unjudged:
    """Steps in which no reward gave any reply a value, as when a judge does not answer: there is nothing to learn."""

    config: GuardConfig
    rewards: Sequence[str]
    steps: int = 0  # in a row

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str | None:
        self.steps = self.steps + 1 if metrics.get(UNJUDGED) == 1 else 0
        if self.steps < self.config.patience:
            return None
        return f"step {step}: rewards: {', '.join(self.rewards)} gave no reply a value for {self.steps} steps"


@dataclass
class NoPairs:
    """Online preference learning that finds no pairs: warned of, because a student without faults has none."""

    config: GuardConfig
    steps: int = 0  # in a row
    warned: bool = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str | None:
        self.steps = self.steps + 1 if metrics.get(PAIRS) == 0 else 0
        self.warned = self.warned and self.steps > 0
        if self.steps >= self.config.patience and not self.warned:
            self.warned = True
            note = "step %d: no pair for %d steps, so nothing was learned; raise sampling.n or sampling.temperature, "
            log.warning(note + "or lower choosing.margin or detectors.thresholds", step, self.steps)
        return None


@dataclass
class FallingChosen:
    """DPO's preferred replies, watched: it can make them less likely, as long as the rejected ones fall faster."""

    config: GuardConfig
    below: int = 0  # steps in a row
    warned: bool = False

    def __call__(self, step: int, metrics: Mapping[str, float]) -> str | None:
        reward = metrics.get(CHOSEN)
        if reward is None:
            return None
        self.below = self.below + 1 if reward < 0 else 0
        self.warned = self.warned and self.below > 0
        if self.below >= self.config.patience and not self.warned:
            self.warned = True
            note = "step %d: the preferred replies have been less likely than at the start for %d steps (%s = %.3g); "
            log.warning(note + "loss_options.nll_weight holds on to them", step, self.below, CHOSEN, reward)
        return None


def _told(share: float) -> str:
    return f"{share:.0%} of the words of the student's replies lie in loops"
