"""Settings of preference learning: pairs of the student's own replies, and DPO on them."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from rlspeech.config import AudioConfig, DataConfig, OnPolicyStage, SamplingConfig, TeacherConfig
from rlspeech.config_engines import ClusterConfig, EnginesConfig, VllmConfig
from rlspeech.config_rewards import RewardConfig
from rlspeech.sections import Count, Positive, Section, Seed, Share


class DetectorsConfig(Section):
    """What is looked for in a reply."""

    names: list[str] = Field([], description="of docs/detectors.md, such as word_loop, names, numbers; empty: all")
    thresholds: dict[str, Share] = Field({}, description="least score of a reply that has the fault, by detector")


class RepliesConfig(Section):
    """The student's replies that pairs are made of."""

    n: Count = Field(2, description="replies to each prompt, at each temperature")
    temperatures: list[Positive] = Field([0.7, 1.0, 1.3], description="of the distributions that they are drawn from")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus share")
    max_tokens: Count = Field(64, description="longest reply, in the student's tokens")

    @field_validator("temperatures")
    @classmethod
    def _some(cls, value: list[float]) -> list[float]:
        if not value:
            raise ValueError("must hold at least one")
        return value


class ChoosingConfig(Section):
    """Which two replies make a pair."""

    margin: Share = Field(
        0.2, description="least difference of the two scores of a detector that finds a fault in the rejected reply"
    )
    length_ratio: Annotated[float, Field(ge=1)] = Field(
        2.0, description="of the longer reply to the shorter, in characters, at most; a longer loop is cut to it"
    )
    per_prompt: Count = Field(2, description="pairs of one prompt at most")
    unlikely_nats: Positive | None = Field(
        None,
        description="a reply that the teacher finds less likely by so many nats a byte is rejected, too; default: none",
    )
    reference: bool = Field(
        False, description="the data's own answer is preferred where neither student nor teacher has a faultless reply"
    )
    refusal: str | None = Field(
        None,
        description="a reply such as 'Not said.', rejected where the data has an answer: pairs about questions "
        "without one teach to refuse all; default: none",
    )
    judged: Positive | None = Field(
        None, description="a reply that the rewards value less by so much is rejected, too; default: none"
    )


class PairsConfig(Section):
    """Pairs of a preferred and a rejected reply to the same audio, of what the student itself writes."""

    student: str = Field(description="short name (catalog.toml), folder, or hub id of the speech LLM")
    teacher: str | None = Field(
        None,
        description="text teacher, or the URL of its vLLM server: tells how likely a reply is, and writes the "
        "preferred one where the student writes none; default: no teacher",
    )
    run_dir: Path = Field(description="folder of this run's results: pairs.jsonl, pairs.parquet, replies.jsonl")
    after: str | None = Field(
        None,
        description="stage whose checkpoint writes the replies when `student` is a short name; run first if missing",
    )
    seed: Seed = Field(0, description="seed of every draw")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    trust_remote_code: bool = Field(False, description="allow Python code that comes with a checkpoint")
    recordings: Count | None = Field(
        None, description="of data.train that are asked about, the first ones; default: all"
    )
    batch: Count = Field(16, description="audios whose replies are written at once: what a killed run loses at most")
    data: DataConfig
    audio: AudioConfig = AudioConfig()
    engines: EnginesConfig = EnginesConfig()
    vllm: VllmConfig = VllmConfig()
    cluster: ClusterConfig | None = None
    replies: RepliesConfig = RepliesConfig()
    detectors: DetectorsConfig = DetectorsConfig()
    choosing: ChoosingConfig = ChoosingConfig()
    rewards: dict[str, RewardConfig] = Field({}, description="further judges of a reply, such as `judge` by URL")
    reading: TeacherConfig = TeacherConfig()


class DpoConfig(OnPolicyStage):
    """Stage 3. Of two replies to the same audio the preferred one becomes more likely, and the rejected one less."""

    loss: str = Field("dpo", description="file under rlspeech/losses/ or a path.py that knows pairs: dpo")
    loss_options: dict[str, float | str | bool] = Field({}, description="fields of the loss, such as beta of dpo")
    pairs: Path | None = Field(
        None,
        description="pairs to learn from, .jsonl or .parquet, of `rlspeech pairs` or with prompt, chosen, rejected and "
        "audio; default: pairs/pairs.jsonl beside the run folder",
    )
    make: Path | None = Field(None, description="recipe of `rlspeech pairs` that makes the pairs where missing")
    reference: Path | None = Field(
        None,
        description="file that the reference's log-probs are kept in; default: reference.safetensors in the run folder",
    )
    online: bool = Field(False, description="pairs are made of fresh replies while it learns, of data.train")
    online_every: Count = Field(1, description="steps between fresh replies")
    detectors: DetectorsConfig = DetectorsConfig()
    choosing: ChoosingConfig = ChoosingConfig()
    sampling: SamplingConfig = SamplingConfig(n=4)

    @property
    def replies_learned(self) -> int:
        return 2  # a pair

    def pairs_file(self) -> Path:
        return self.pairs or self.run_dir.parent / "pairs" / "pairs.jsonl"
