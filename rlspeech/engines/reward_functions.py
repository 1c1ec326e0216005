"""Rewards by name, and plain functions in the form that TRL has: f(completions, **columns) -> list of numbers."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlspeech.errors import UserError
from rlspeech.plugins import build, find
from rlspeech.types import Rollout

if TYPE_CHECKING:
    from rlspeech.protocols import Reward  # imports torch, which a worker does without


def load_reward(name: str, options: Mapping[str, Any] = {}) -> Reward:
    """A shipped name, `path.py[:Class or function]`, a dotted path, or an entry point of the group rlspeech.rewards.

    A function is called as TRL calls it. Raises UserError in one line where it is not known or refuses its options.
    """
    found = find("reward_models", name, "Reward")
    if inspect.isclass(found):
        return build(found, options, name)
    if options:
        raise UserError(f"{name}: a function takes no options, got {', '.join(map(repr, options))}")
    return FunctionReward(found)


@dataclass(frozen=True)
class FunctionReward:
    """A function, or a coroutine, of the replies and of a column for every field and tag of their samples.

    `completions` are texts, `prompts` the instructions, `completion_ids` lists of tokens, each None where a record does
    not have them (TRL 1.16, GRPOTrainer's reward_funcs with the standard format).
    """

    function: Callable[..., Any]

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return awaited(self.function(**columns(rollouts)))


def awaited(found: Any) -> Any:
    """What a reward gives, or what the coroutine that it gives comes to."""
    return asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found


async def _awaited(found: Any) -> Any:
    return await found


def columns(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    """All of the same length. A tag that has the name of a field is left out: the field is there."""
    samples = [rollout.sample for rollout in rollouts]
    found: dict[str, list[Any]] = {
        "prompts": [sample.instruction for sample in samples],
        "completions": [rollout.completion.text for rollout in rollouts],
        "completion_ids": [list(rollout.completion.token_ids) or None for rollout in rollouts],
        "finish": [rollout.completion.finish for rollout in rollouts],
        "origin": [rollout.origin for rollout in rollouts],
        "audio": [str(sample.audio.path) if sample.audio else None for sample in samples],
        "biasing_words": [list(sample.biasing_words) for sample in samples],
        "rare_words": [list(sample.rare_words) for sample in samples],
    }
    for name in ("id", "instruction", "transcript", "reference", "lang"):
        found[name] = [getattr(sample, name) for sample in samples]
    tags = dict.fromkeys(tag for sample in samples for tag in sample.tags)
    return found | {tag: [sample.tags.get(tag) for sample in samples] for tag in tags if tag not in found}
