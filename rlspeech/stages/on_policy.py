"""The loop of a stage whose student writes what it learns from: sample, judge, learn, and the weights go back."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from rlspeech.config import OnPolicyStage
from rlspeech.config_engines import VllmConfig
from rlspeech.engines.build import Engines
from rlspeech.engines.rollout_vllm import check_length
from rlspeech.protocols import Learned, Loss, Sampling
from rlspeech.run_dir import RunDir
from rlspeech.stages.guard import Guard
from rlspeech.stages.hearing import Heard, flat
from rlspeech.stages.overlap import Ahead
from rlspeech.stages.training import Prepared, Recovery, Watch, learn


class Measure(Protocol):
    """Held-out numbers of the student as it is after `version` steps."""

    def measure(self, engines: Engines, *, version: int) -> dict[str, float]: ...


def check_lengths(heard: Sequence[Heard], reply_tokens: int, settings: VllmConfig) -> None:
    """Raises UserError where vLLM would not take a prompt and its reply."""
    for sample, prompt in zip(*flat(heard), strict=True):
        check_length(sample, prompt, reply_tokens, settings)


@dataclass
class OnPolicy(ABC):
    """One pass: weights to the sampler, replies from the student, what they are worth, batches for the learner."""

    config: OnPolicyStage
    run: RunDir
    engines: Engines
    held_out: Measure
    ahead: Ahead = field(init=False)
    sync_s: float = field(init=False, default=0.0)  # that the weights of the next samples took

    @abstractmethod
    def sample(self, step: int) -> Prepared:
        """The replies of a step, judged. With `max_policy_lag` it runs while the learner is at an earlier step."""

    def __enter__(self) -> Self:
        lag, steps = self.config.max_policy_lag, self.config.optim.steps
        self.ahead = Ahead(self._sync, self.sample, steps=steps, lag=lag, interrupt=self.engines.interrupt)
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

    def learn(self, loss: Loss, *, name: str) -> dict[str, Any]:
        """All steps that are left; the last one's metrics."""
        cluster = self.config.cluster
        return learn(
            self.run,
            self.config,
            self.engines.learner,
            loss,
            self.prepare,
            name=name,
            temperature=self.temperature,
            recovery=Recovery(cluster.max_restarts, self.restart) if cluster else None,
            watch=self.watch(),
        )

    @property
    def temperature(self) -> float:
        """Of the distribution that the loss is about."""
        return self.config.sampling.temperature

    def watch(self) -> Watch:
        """Looks at each step's metrics, and says why the run is to stop."""
        return Guard(self.config.guard)

    def sampling(self, step: int, *, times: int = 1) -> Sampling:
        """How the replies of a step are drawn; `times` as many of them as the recipe says."""
        settings = self.config.sampling
        return Sampling(
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            n=settings.n * times,
            seed=self.config.seed * 1_000_003 + step,
        )

    def look(self, step: int, learned: Learned) -> Mapping[str, float]:
        """Held-out numbers where they are due."""
        if (step + 1) % self.config.held_out.every_steps and step + 1 < self.config.optim.steps:
            return {}
        self.ahead.settle()
        return self.held_out.measure(self.engines, version=step + 1)

    def _sync(self, step: int) -> None:
        started_s = time.monotonic()
        self.engines.rollouts.load_weights(self.engines.learner, step)
        self.sync_s = time.monotonic() - started_s
