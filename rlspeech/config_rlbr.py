"""Settings of biasing lists, and of the groups that reinforcement learning compares.

rlspeech/config.py has the stages they belong to.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from rlspeech.sections import Count, Section


class ListsConfig(Section):
    """Words and phrases that the prompt says may be heard, drawn anew each time that a sample is learned from."""

    synth: str = Field("bias_words", description="file under data_synth/ or a path.py that draws them")
    options: dict[str, int | float | bool | str] = Field({}, description="fields of it, such as size_high")
    pool: Path | None = Field(
        None,
        description="manifest, or .txt with a word or phrase a line: distractors beside the rare words of what is "
        "learned from and of the held-out sets",
    )
    sizes: list[Annotated[int, Field(ge=0, le=2000)]] = Field(
        [], description="of the lists of held-out sets, each of which is measured with each size; empty: as drawn"
    )


class GroupsConfig(Section):
    """What the replies to one prompt are compared with."""

    reference: Literal["off", "extra", "replace_worst", "replace_duplicate"] = Field(
        "extra",
        description="the right transcript joins each group: as one more member, in place of the worst reply, or in "
        "place of one that another reply repeats",
    )
    reference_counts: bool = Field(True, description="it counts in the group's mean and standard deviation")
    oversample: Count = Field(
        1, description="times sampling.n replies are sampled, of which the best and the worst sampling.n are kept"
    )
    refill_rounds: int = Field(
        0,
        ge=0,
        description="times that groups whose replies are all equally good are replaced by groups of other samples; 0: "
        "they are kept, and nothing is learned from them",
    )
