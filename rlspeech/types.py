"""The nouns: what passes between data, students, engines, losses and stages. All frozen.

Shape letters: B sequences, T tokens of a padded sequence, N reply tokens of a batch (no padding), V vocabulary,
K teacher's top tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Audio:
    """A stretch of an audio file. `end_s` None means to its end."""

    path: Path
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Turn:
    """What one speaker says, and how a speech synthesiser is to say it."""

    speaker: str
    text: str
    voice: str
    rate_wpm: int = 175
    pitch: int = 50  # 0..99
    pause_s: float = 0.0  # silence before the turn


@dataclass(frozen=True)
class Word:
    """A spoken word and when it is heard, as a forced alignment or a synthesiser tells."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Sample:
    """One instruction about one piece of audio. Where a field is unknown it is None or empty."""

    id: str
    instruction: str
    audio: Audio | None = None
    more_audio: tuple[Audio, ...] = ()  # heard after it, in this order
    transcript: str | None = None  # what is said: the teacher reads it
    reference: str | None = None  # the right answer
    lang: str = "en"
    tags: Mapping[str, str] = field(default_factory=dict)  # "kind": transcribe, who, ...; "split": test_voice, ...
    biasing_words: tuple[str, ...] = ()  # words and phrases that the prompt says may be heard; most of them are not
    rare_words: tuple[str, ...] = ()  # those of the reference that biasing is measured on (B-WER), listed or not
    turns: tuple[Turn, ...] = ()
    words: tuple[Word, ...] = ()
    teacher: str = ""  # which of several teachers scores it; empty: the default one


@dataclass(frozen=True)
class Prompt:
    """A sample as its student reads it. `token_ids` hold one placeholder for every audio embedding."""

    token_ids: tuple[int, ...]
    features: Any = None  # of its audios; opaque to all but the student file; None where there is no audio
    audio_key: str = ""  # prompts with equal keys hear the same


@dataclass(frozen=True)
class Completion:
    """What was written. `logprobs` (nats, one a token) are those of the distribution that was sampled."""

    token_ids: tuple[int, ...]  # with the end-of-turn token where one was written
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]
    policy_version: int = 0


@dataclass(frozen=True)
class Answer:
    """What a teacher replies itself, without its thoughts. `ended`: it came to its end before the limit."""

    text: str
    ended: bool


@dataclass(frozen=True)
class Rollout:
    sample: Sample
    prompt: Prompt
    completion: Completion
    origin: Literal["sampled", "reference", "teacher"] = "sampled"  # teacher: its own reply, in the student's tokens


@dataclass(frozen=True)
class Scored:
    """A teacher's view of one reply. Row i of every tensor is about token (or span) i of the reply.

    `spans`: for row i, the half-open range of the student's tokens it speaks of ([i, i+1) with one tokenizer). They
    follow one another from the reply's beginning; with two tokenizers the reply may go on where the teacher does not.
    """

    spans: tuple[tuple[int, int], ...]
    logprobs: Tensor  # [T] log p of the tokens as written
    topk_ids: Tensor | None = None  # [T, K] the teacher's most probable tokens
    topk_logprobs: Tensor | None = None  # [T, K]; -inf marks an absent entry
    hidden: Tensor | None = None  # [T, D] with Teacher.head() gives the full vocabulary, a chunk at a time
    weight: float = 1.0  # of this teacher's word in the loss
    classes: Tensor | None = None  # [V] of the student's tokens, of which topk_ids name one each; None: ids are tokens
    alone: Tensor | None = None  # [T] with two tokenizers: the span is one token on both sides
    unread: str = ""  # why the teacher cannot read the reply to its end


@dataclass(frozen=True)
class TokenBatch:
    """One micro-batch of a learner. Sequences may share a prompt: see maths.packing.

    A reply token n is predicted at flat position `at_N[n]` of the padded [B, T] grid.
    """

    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    branch: Tensor  # [B, T] 0 shared prompt, 1.. branches that cannot see one another, -1 padding
    features: Any  # the student's audio, collated
    at: Tensor  # [N]
    targets: Tensor  # [N]
    weights: Tensor  # [N] share of each token in the loss; 1 unless a setting says otherwise
    rollout: Tensor  # [N] which rollout of the step a token belongs to
    sampler_logprobs: Tensor | None = None  # [N]
    teacher_logprobs: Tensor | None = None  # [N] summed over the tokens of a span: that of the span
    span: Tensor | None = None  # [N] the span of a token, with two tokenizers; -1: the teacher does not score it
    teacher_hidden: Tensor | None = None  # [N, D of the teacher]
    teacher_head: Tensor | None = None  # [V, D of the teacher]
    teacher_topk_ids: Tensor | None = None  # [N, K]
    classes: Tensor | None = None  # [V] the class of each of the student's tokens, where the top ids are classes
    teacher_topk_logprobs: Tensor | None = None  # [N, K]; -inf marks an absent entry
    advantages: Tensor | None = None  # [N]
    old_logprobs: Tensor | None = None  # [N] the learner's own before the first update of the step
    reference_logprobs: Tensor | None = None  # [N] of the policy that a KL term holds on to
    pair: Tensor | None = None  # [N] which pair of the step a token's reply belongs to; -1: to none
    preferred: Tensor | None = None  # [N] of its preferred reply, not of its rejected one
    sft_weights: Tensor | None = None  # [N] of the cross-entropy, on the scale of `weights`; 0: not the teacher's own
    idle: float = 0.0  # weight that no token has, in what the step's loss is divided by: see losses.grpo


@dataclass(frozen=True)
class Policy:
    """What a loss sees of the learner's model at the N reply positions: hidden states and the output projection."""

    hidden: Tensor  # [N, D]
    head: Tensor  # [V, D]
    temperature: float = 1.0


@dataclass(frozen=True)
class Waveform:
    """Mono audio in memory, float32 in -1..1."""

    samples: np.ndarray  # [S]
    rate_hz: int

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.rate_hz
