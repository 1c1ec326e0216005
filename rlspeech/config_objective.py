"""Settings of what a distillation minimises: what a token counts for, what is mixed in, what is watched.

rlspeech/config.py has the stages they belong to.
"""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from rlspeech.sections import Count, NotNegative, Positive, Section, Share

KL_CAP_NATS = 10.0  # a token that the teacher finds e^10 times less likely is a slip of sampling; few would rule a step
GAIN = 2.0  # where a scheme is chosen and no gain
HALF_LIFE_TOKENS = 16.0


class ImportanceConfig(Section):
    """Correction for the gap between the sampler's probabilities and the learner's: truncated importance ratios."""

    level: Literal["token", "sequence", "off"] = Field("token", description="what a ratio is taken of")
    mode: Literal["truncate", "mask"] = Field(
        "truncate", description="a ratio above the cap counts as the cap, or its tokens are left out"
    )
    cap: Annotated[float, Field(ge=1)] = Field(2.0, description="largest ratio")


class WeightingConfig(Section):
    """What each reply token counts for in the mean of the loss."""

    scheme: Literal["uniform", "early", "divergence", "entity"] = Field(
        "uniform",
        description="uniform: all alike; early: the beginning of a reply counts more; divergence: tokens far from the "
        "teacher do; entity: names, numbers, dates and the sample's biasing_words do",
    )
    gain: Annotated[float, Field(ge=1)] | None = Field(
        None, description=f"what the tokens that count most count for, others 1; default with a scheme: {GAIN:g}"
    )
    half_life_tokens: Positive | None = Field(
        None,
        description="scheme early: tokens after which what a token counts for beyond 1 is halved; "
        f"default: {HALF_LIFE_TOKENS:g}",
    )

    @field_validator("gain")
    @classmethod
    def _has_a_scheme(cls, gain: float | None, info: ValidationInfo) -> float | None:
        if gain is not None and info.data.get("scheme") == "uniform":
            raise ValueError("acts with scheme = early, divergence or entity alone")
        return gain

    @field_validator("half_life_tokens")
    @classmethod
    def _belongs_to_early(cls, half_life: float | None, info: ValidationInfo) -> float | None:
        if half_life is not None and info.data.get("scheme") != "early":
            raise ValueError("acts with scheme = early alone")
        return half_life

    @property
    def largest(self) -> float:
        return GAIN if self.gain is None else self.gain

    @property
    def half_life(self) -> float:
        return HALF_LIFE_TOKENS if self.half_life_tokens is None else self.half_life_tokens


class MixedConfig(Section):
    """The teacher's own replies beside the student's."""

    sft_weight: NotNegative = Field(
        0.0,
        description="of the cross-entropy of the teacher's own replies, added to the loss; 0: none are asked for",
    )
    on_policy_share: Share = Field(
        1.0,
        description="share of the samples that the student replies to; the others learn from the teacher's",
    )


class GuardConfig(Section):
    """Repetition in the student's raw replies, which distillation on its own samples can amplify."""

    repetition_warn: Share = Field(0.2, description="rollout/repetition_share above which the run warns, once")
    repetition_stop: Share | None = Field(
        None, description="rollout/repetition_share above which the run stops, its training state saved; default: never"
    )
    patience: Count = Field(5, description="steps in a row that the share is above before the guard acts")

    @field_validator("repetition_stop")
    @classmethod
    def _warns_first(cls, stop: float | None, info: ValidationInfo) -> float | None:
        if stop is not None and stop < info.data.get("repetition_warn", 0.0):
            raise ValueError("must not be below repetition_warn")
        return stop
