"""Settings of the rewards that replies are judged by. rlspeech/config.py has the stage they belong to."""

from pydantic import Field

from rlspeech.sections import Positive, Section


class RewardConfig(Section):
    """One reward of a recipe."""

    reward: str = Field(
        description="file under reward_models/, a path.py[:Class or function], a dotted path, or an entry point of "
        "the group rlspeech.rewards"
    )
    weight: float = Field(1.0, description="of its values in the sum")
    options: dict[str, int | float | bool | str] = Field({}, description="fields of the reward")
    timeout_s: Positive = Field(60.0, description="that it may take for the replies of one step")
