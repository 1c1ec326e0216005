"""Settings of the rewards that replies are judged by, and of what is told of rewards and transcripts."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlspeech.sections import Count, Positive, Section


class RewardConfig(Section):
    """One reward of a recipe."""

    reward: str = Field(
        description="file under reward_models/, a path.py[:Class or function], a dotted path, or an entry point of "
        "the group rlspeech.rewards"
    )
    weight: float = Field(1.0, description="of its values in the sum")
    options: dict[str, int | float | bool | str] = Field({}, description="fields of the reward")
    timeout_s: Positive = Field(60.0, description="that it may take for the replies of one step")


class RewardTryConfig(RewardConfig):
    """A reward over recorded rollouts."""

    what: Literal["try"] = Field(description="try: run it over the rollouts of --on")
    on: Path = Field(description="rollouts.jsonl of a run")
    out: Path | None = Field(None, description="JSON file to write: the numbers, and every reply with its value")
    show: Count = Field(3, description="of the best and of the worst replies")


class ScoreConfig(Section):
    """Transcripts against references."""

    what: Literal["biasing"] = Field(description="biasing: WER, U-WER and B-WER")
    refs: Path = Field(description="references: id, text, JSON list of rare words, JSON list of biasing words")
    hyps: list[Path] = Field(description="transcripts of a system: id, text; --hyps again for another system")
    unit: Literal["words", "characters"] = Field("words", description="what errors are counted in")
    normalise: Literal["none", "english", "neutral"] = Field(
        "none",
        description="none: texts as they are, words at spaces; english: Whisper's normaliser; neutral: case and "
        "punctuation off in any script, a character is a word where a script has no spaces",
    )
    lenient: bool = Field(False, description="references without a transcript are left out, and counted")
    workers: Count = Field(1, description="threads")
    out: Path | None = Field(None, description="JSON file to write")
