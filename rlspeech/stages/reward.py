"""`rlspeech reward try`: a reward over the rollouts that a run has recorded, and how its values spread."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from rlspeech.config_rewards import RewardTryConfig
from rlspeech.engines.reward_host import RewardHost
from rlspeech.errors import UserError
from rlspeech.run_dir import write_json
from rlspeech.stages.score import check_out
from rlspeech.types import Completion, Prompt, Rollout, Sample

BARS = 8  # of the histogram
WIDTH = 40  # of its longest bar, in characters
TEXTS = ("id", "instruction", "reply", "transcript", "reference", "lang", "finish", "origin")
MAY_BE_NULL = ("transcript", "reference")
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # per cent


@dataclass(frozen=True)
class Recorded:
    """A rollout of a record, and the group that it was compared in."""

    rollout: Rollout
    group: str


def run(config: RewardTryConfig) -> None:
    """Raises UserError where the reward or the record is not known, RunFailed where the reward fails."""
    check_out(config.out)
    recorded = read_rollouts(config.on)
    settings = {"it": config}
    with RewardHost.of(settings) as host:
        values = host.score([one.rollout for one in recorded]).parts["it"]
    told = distribution(recorded, values)
    _show(config, recorded, values, told)
    if config.out is not None:
        rows = [
            {"id": one.rollout.sample.id, "reply": one.rollout.completion.text, "value": value}
            for one, value in zip(recorded, values, strict=True)
        ]
        write_json(config.out, {**told, "replies": rows})


def read_rollouts(path: Path) -> list[Recorded]:
    """Of a run's rollouts.jsonl. Raises UserError naming the line that is not one of it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --on wants the rollouts.jsonl of a run") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text; --on wants the rollouts.jsonl of a run") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would cut a reply at U+2028 and its like, too
        if not line:
            continue
        try:
            found.append(_recorded(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{path}:{number}: not a recorded rollout ({what})") from error
    if not found:
        raise UserError(f"{path}: no rollouts are recorded in it")
    return found


def _recorded(row: Mapping[str, Any]) -> Recorded:
    """Tokens are recorded as texts: a reward sees none."""
    _check(row)
    sample = Sample(
        id=row["id"],
        instruction=row["instruction"],
        transcript=row.get("transcript"),
        reference=row.get("reference"),
        lang=row.get("lang", "en"),
        tags=row.get("tags", {}),
        biasing_words=tuple(row.get("biasing_words", ())),
        rare_words=tuple(row.get("rare_words", ())),
    )
    completion = Completion((), (), row["reply"], row.get("finish", "stop"), row.get("policy_version", 0))
    return Recorded(
        Rollout(sample, Prompt(()), completion, row.get("origin", "sampled")), f"{row.get('step')} {row['id']}"
    )


def _check(row: Any) -> None:
    """Raises TypeError where a field is of another kind than a run records."""
    if not isinstance(row, dict):
        raise TypeError("no JSON object")
    for name in TEXTS:
        if not isinstance(row.get(name, ""), str) and not (row[name] is None and name in MAY_BE_NULL):
            raise TypeError(f"{name} is {json.dumps(row[name])[:40]}, no text")
    lists = {name: row.get(name, []) for name in ("biasing_words", "rare_words")}
    for name, found in lists.items():
        if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
            raise TypeError(f"{name} is no list of texts")
    tags = row.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise TypeError("tags is no table of texts")


def distribution(recorded: Sequence[Recorded], values: Sequence[float | None]) -> dict[str, Any]:
    """Of all replies; deviations of n. `no_spread`: groups of two or more whose values are all equal."""
    known = [value for value in values if value is not None]
    groups: dict[str, list[float]] = {}
    for one, value in zip(recorded, values, strict=True):
        if value is not None:
            groups.setdefault(one.group, []).append(value)
    several = [group for group in groups.values() if len(group) > 1]
    told: dict[str, Any] = {
        "replies": len(values),
        "none": len(values) - len(known),
        "groups": len(several),
        "no_spread": sum(min(group) == max(group) for group in several),
        "spread_within": fmean(pstdev(group) for group in several) if several else None,
    }
    if known:
        cuts = quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
        at = [min(known), *cuts, max(known)]
        told |= {"mean": fmean(known), "std": pstdev(known), "quantiles": {str(q): at[q] for q in QUANTILES}}
    return told


def _show(
    config: RewardTryConfig, recorded: Sequence[Recorded], values: Sequence[float | None], told: Mapping[str, Any]
) -> None:
    console = Console(highlight=False)
    told_of = f"{told['replies']} replies, {told['none']} without a value"
    console.print(f"{config.reward} over {config.on}: {told_of}", soft_wrap=True)
    if "mean" not in told:
        return
    console.print(f"mean {told['mean']:.4g}, standard deviation {told['std']:.4g}")
    console.print(", ".join(f"{q} % {value:.4g}" for q, value in told["quantiles"].items()))
    if told["groups"]:
        console.print(
            f"{told['groups']} groups: {told['no_spread']} without spread, from which nothing is learned; mean "
            f"deviation within a group {told['spread_within']:.4g}"
        )
    console.print(_histogram([value for value in values if value is not None]))
    console.print(_extremes(recorded, values, config.show))


def _histogram(known: Sequence[float]) -> str:
    low, high = min(known), max(known)
    step = (high - low) / BARS or 1.0
    counts = [0] * BARS
    for value in known:
        counts[min(BARS - 1, int((value - low) / step))] += 1
    lines = [
        f"{low + i * step:>10.4g} {'#' * round(WIDTH * count / max(counts))} {count}"
        for i, count in enumerate(counts)
        if count or high > low
    ]
    return "\n".join(lines)


def _extremes(recorded: Sequence[Recorded], values: Sequence[float | None], count: int) -> Table:
    pairs = [(value, one.rollout) for one, value in zip(recorded, values, strict=True) if value is not None]
    order = sorted(pairs, key=lambda pair: pair[0])
    table = Table(title="the best and the worst")
    table.add_column("value", justify="right")
    table.add_column("sample")
    table.add_column("reply", overflow="fold")
    for value, rollout in [*reversed(order[-count:]), *order[: min(count, max(0, len(order) - count))]]:
        table.add_row(f"{value:.4g}", rollout.sample.id, rollout.completion.text)
    return table
