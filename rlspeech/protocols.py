"""What each part promises. A stage knows these and nothing of what stands behind them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from rlspeech.types import Answer, Completion, Policy, Prompt, Rollout, Sample, Scored, TokenBatch, Waveform

Metrics = dict[str, float]


@dataclass(frozen=True)
class Sampling:
    """How replies are written. Temperature 0 is greedy; its log-probs are those of temperature 1."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Learned:
    """Of one step: means over reply tokens, and the divergence of each token of each rollout, by its index."""

    metrics: Metrics
    token_kl_nats: Mapping[int, Sequence[float]] = field(default_factory=dict)


class Student(Protocol):
    """A family of speech LLMs: how to load, prompt, run and save it. One file under rlspeech/students/ each.

    The file holds a class `Student` with the class method `load(folder, *, dtype, weights=True) -> Student`. Without
    weights its model is on the meta device: it renders prompts and names parameters, and holds no memory.
    """

    model: Any  # a transformers model with `generate`
    frame_s: float  # seconds of audio behind one placeholder
    end_token_id: int
    framewise: bool  # the projector reads each frame on its own
    windows_at_once: int  # of audio in one pass of the encoder: bounds its memory
    always_encode: bool  # a batch without audio, too, goes through encoder and projector: ranks may meet there
    most_passes: Callable[[int], int]  # a rank's passes of the encoder to those of the rank that has most

    @property
    def placeholder_id(self) -> int:
        """The token that stands for one audio embedding: never written in a reply."""
        ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def decoder(self) -> nn.Module:
        """The language model: embeddings in, hidden states out."""
        ...

    def head(self) -> Tensor:
        """The output projection [V, D]."""
        ...

    def render(self, sample: Sample, audio: Waveform | Sequence[Waveform] | None, *, reply_tokens: int = 0) -> Prompt:
        """The sample as the family's chat format has it. Raises UserError where the audio cannot be heard."""
        ...

    def first_position(self, prompt: Prompt) -> int:
        """The position id of its first token; a family may tell by it how the prompt and its reply are to be read."""
        ...

    def vllm_input(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt as vLLM takes it: it expands the placeholder of each audio itself."""
        ...

    def collate(self, prompts: Sequence[Prompt]) -> Any:
        """The audio of the rows of a batch, as `embed` takes it."""
        ...

    def embed(self, input_ids_BT: Tensor, features: Any) -> Tensor:
        """Input embeddings [B, T, D], the audio of each row at its placeholders."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """Encoder output [F, H] of each prompt's audio, one frame a placeholder, before the projector."""
        ...

    def project(self, frames: Tensor) -> Tensor:
        """Encoder frames [..., H] as the language model reads them [..., D]."""
        ...

    def prepare(
        self,
        stage: str,
        lora: Mapping[str, Any] | None = None,
        *,
        train_encoder: bool = False,
        train_projector: bool = True,
    ) -> None:
        """Freeze and unfreeze parameters, and add adapters, as the stage wants."""
        ...

    def merged(self) -> AbstractContextManager[None]:
        """Adapters are added to the matrices they adapt while the block runs: sampling at the speed of the base."""
        ...

    def is_projector(self, parameter: str) -> bool: ...

    def published_name(self, parameter: str) -> str:
        """The name a parameter has in a saved checkpoint, which is also vLLM's."""
        ...

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Merged weights under published names, processor and adapter, into an existing folder.

        transformers and vLLM load it.
        """
        ...


class RolloutEngine(Protocol):
    def generate(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """sampling.n replies to each prompt, a prompt's replies together, in the order of the prompts."""
        ...

    def load_weights(self, learner: "Learner", version: int) -> None:
        """Takes over the learner's weights; later completions carry the version."""
        ...


class Teacher(Protocol):
    def messages(self, sample: Sample) -> list[dict[str, str]]:
        """What is put to the teacher, as a chat."""
        ...

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]: ...

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        """Greedy replies to the instructions, from the transcripts."""
        ...

    def head(self) -> Tensor | None:
        """The output projection [V, D], for full-vocabulary losses; None of a teacher that gives its top tokens."""
        ...


class Learner(Protocol):
    student: Student

    def step(self, batches: Sequence[TokenBatch], loss: "Loss", *, temperature: float = 1.0) -> Learned:
        """One optimiser step over the micro-batches: the weighted mean of the loss over all their reply tokens."""
        ...

    def evaluate(self, batches: Sequence[TokenBatch], loss: "Loss", *, temperature: float = 1.0) -> Learned:
        """The same means without learning."""
        ...

    def logprobs(
        self, batches: Sequence[TokenBatch], *, temperature: float = 1.0, reference: bool = False
    ) -> dict[int, list[float]]:
        """log q of each reply token in nats, by the index of its rollout; without dropout, and nothing is learned.

        `reference`: of the policy that `keep_reference` has kept. Raises ValueError where it has kept none.
        """
        ...

    def keep_reference(self) -> None:
        """What learns is kept as it is now. To be called before the first step, and before `restore`."""
        ...

    ranks: int  # batches come in rounds: batch i belongs to rank i % ranks

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Published names and merged values of what learns: the rest is as it was loaded."""
        ...

    def export(self, folder: Path) -> None:
        """The model, as `Student.save` writes it."""
        ...

    def save(self, folder: Path) -> None:
        """Everything that a resumed run needs: parameters that learn, optimizer, schedule, random state."""
        ...

    def restore(self, folder: Path) -> None: ...

    def restart(self) -> None:
        """A learner that was lost begins anew, with the weights it was started with."""
        ...


class Loss(Protocol):
    """One file under rlspeech/losses/, class `Loss`. The learner alone weighs, sums and divides."""

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each reply token [N], and metrics of each reply token [N], detached."""
        ...


Reward = Callable[[Sequence[Rollout]], list[float | None]]
Synth = Callable[[Iterable[Sample]], Iterator[Sample]]
