"""What is written down of rollouts: numbers of a step, and rows that a person can read."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlspeech.maths.detect import repetition_share
from rlspeech.protocols import Learned, Student
from rlspeech.run_dir import RunDir
from rlspeech.stages.groups import Judged
from rlspeech.types import Rollout, Scored

RECORDED = 4  # rollouts of a step that are written down, the first ones


def teacher_metrics(rollouts: Sequence[Rollout], *, score_s: float) -> dict[str, float]:
    """Of the replies that a teacher has scored."""
    return {"teacher/tokens_per_s": _tokens(rollouts) / score_s, "time/score_s": score_s}


def rollout_metrics(rollouts: Sequence[Rollout], *, step: int, sample_s: float) -> dict[str, float]:
    """Of the replies of a step: what the student wrote, and at what speed.

    `step`: steps learned before this one; the lag of a sample is how many of them its weights had not seen. Where the
    teacher wrote all of them, there is nothing to tell of the student.
    """
    sampled = [rollout for rollout in rollouts if rollout.origin == "sampled"]
    if not sampled:
        return {"time/sample_s": sample_s}
    count = len(sampled)
    lags = [step - rollout.completion.policy_version for rollout in sampled]
    return {
        "rollout/policy_lag_steps": sum(lags) / count,
        "rollout/policy_lag_max_steps": float(max(lags)),
        "rollout/length_tokens": _tokens(sampled) / count,
        "rollout/cut_share": sum(rollout.completion.finish == "length" for rollout in sampled) / count,
        "rollout/repetition_share": sum(repetition_share(rollout.completion.text) for rollout in sampled) / count,
        "rollout/tokens_per_s": _tokens(sampled) / sample_s,
        "time/sample_s": sample_s,
    }


def _tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.completion.token_ids) for rollout in rollouts)


def alignment_metrics(scored: Sequence[Scored], rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How a teacher with another tokenizer reads a step's replies; nothing where all share the student's."""
    crossed = [(one, rollout) for one, rollout in zip(scored, rollouts, strict=True) if one.alone is not None]
    if not crossed:
        return {}
    alone = torch.cat([one.alone for one, _ in crossed if one.alone is not None])
    matched = torch.cat([_matched_mass(one) for one, _ in crossed])
    tokens = sum(len(rollout.completion.token_ids) for _, rollout in crossed)
    unread = tokens - sum(one.spans[-1][1] if one.spans else 0 for one, _ in crossed)
    reasons = Counter(one.unread for one, _ in crossed if one.unread)
    mass = float(matched.mean()) if len(matched) else 0.0
    return {
        "align/one_to_one_share": float(alone.float().mean()) if len(alone) else 0.0,
        "align/tokens_per_span": (tokens - unread) / max(1, len(alone)),
        "align/matched_mass": mass,
        "align/tail_mass": 1 - mass if len(matched) else 0.0,
        "align/unread_share": unread / max(1, tokens),
        **{f"align/{reason}": float(count) for reason, count in reasons.items()},
    }


def _matched_mass(scored: Scored) -> Tensor:
    """The teacher's probability on tokens that the student has, byte for byte, where a token stands alone."""
    assert scored.topk_logprobs is not None
    return scored.topk_logprobs[scored.alone].exp().sum(-1)


def record(run: RunDir, step: int, rollouts: Sequence[Rollout], learned: Learned, student: Student) -> None:
    for index, rollout in enumerate(rollouts[:RECORDED]):
        lag = step - 1 - rollout.completion.policy_version
        kl_nats = learned.token_kl_nats.get(index, ())
        run.append("rollouts.jsonl", {"step": step, "policy_lag": lag, **row(rollout, kl_nats, student)})


def row(rollout: Rollout, kl_nats: Sequence[float], student: Student) -> Mapping[str, object]:
    sample, completion = rollout.sample, rollout.completion
    return {
        "id": sample.id,
        "instruction": sample.instruction,
        "transcript": sample.transcript,
        "reference": sample.reference,
        "reply": completion.text,
        "origin": rollout.origin,
        "finish": completion.finish,
        "policy_version": completion.policy_version,
        "tokens": [student.tokenizer.decode([token]) for token in completion.token_ids],
        "kl_nats": [round(value, 4) for value in kl_nats],
    }


def record_judged(
    run: RunDir, step: int, members: Sequence[Judged], advantages: Sequence[float], student: Student
) -> None:
    """The first groups of a step, whole: RECORDED prompts with all the replies that were compared."""
    prompts = list(dict.fromkeys(one.rollout.sample.id for one in members))[:RECORDED]
    for one, advantage in zip(members, advantages, strict=True):
        if one.rollout.sample.id in prompts:
            sample = one.rollout.sample
            judged = {
                "reward": one.reward,
                "rewards": dict(one.parts),
                "advantage": round(advantage, 4),
                "biasing_words": list(sample.biasing_words),
                "rare_words": list(sample.rare_words),
                "lang": sample.lang,
                "tags": dict(sample.tags),
            }
            run.append("rollouts.jsonl", {"step": step, **row(one.rollout, (), student), **judged})
