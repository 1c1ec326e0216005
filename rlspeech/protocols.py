"""What each part promises. A stage knows these and nothing of what stands behind them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rlspeech.types import Completion, Policy, Prompt, Rollout, Sample, Scored, TokenBatch

Metrics = dict[str, float]


class Student(Protocol):
    """A family of speech LLMs: how to load, prompt, run and save it. One file under rlspeech/students/ each.

    The file holds a class `Student` with the class method `load(folder, *, dtype) -> Student`.
    """

    model: nn.Module
    end_token_id: int

    def render(self, sample: Sample) -> Prompt: ...

    def collate(self, prompts: Sequence[Prompt]) -> Any:
        """The audio of prompts, one for each distinct `audio_key`, as `hidden` and the rollout engine take it."""

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Hidden states before the output projection, [B, T, D]; honours `batch.branch`."""

    def head(self) -> Tensor:
        """The output projection [V, D]."""

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def byte_spans(self, token_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where each token lies in the UTF-8 bytes of the reply."""

    def encode_reply(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply, the end-of-turn token included."""

    def prepare(self, stage: str, lora: Mapping[str, Any] | None) -> None:
        """Freeze and unfreeze parameters, and add adapters, as the stage wants."""

    def vllm_input(self, sample: Sample) -> dict[str, Any]: ...

    def published_name(self, parameter: str) -> str:
        """The name a parameter has in a saved checkpoint, which is also vLLM's."""

    def save(self, folder: Path) -> None:
        """Merged weights, processor and adapter: a folder that transformers and vLLM load."""


class RolloutEngine(Protocol):
    def generate(
        self, samples: Sequence[Sample], *, n: int, temperature: float, top_p: float, max_tokens: int, seed: int
    ) -> list[Rollout]:
        """n replies for each sample, a sample's replies together. Temperature 0 is greedy."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None: ...


class Teacher(Protocol):
    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]: ...

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[str]: ...

    def head(self) -> Tensor | None:
        """The output projection, for full-vocabulary losses; None where it cannot be had."""


class Learner(Protocol):
    def step(self, batches: Sequence[TokenBatch], loss: "Loss") -> Metrics: ...

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Published names and merged values of what has changed since the start."""

    def save(self, folder: Path) -> None: ...

    def restore(self, folder: Path) -> None: ...


class Loss(Protocol):
    """One file under rlspeech/losses/, class `Loss`. The learner alone weighs, sums and divides."""

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each reply token [N], and metrics of each reply token [N], detached."""


Reward = Callable[[Sequence[Rollout]], list[float | None]]
Synth = Callable[[Iterable[Sample]], Iterator[Sample]]
