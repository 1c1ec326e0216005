"""Replies that were written down to pairs, and what is told of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from rlspeech.config_dpo import ChoosingConfig
from rlspeech.data.pairs import Pair
from rlspeech.maths.detectors import REFUSES
from rlspeech.maths.preferences import Candidate, Rules, Why, choose
from rlspeech.stages.examining import Examiner
from rlspeech.types import Sample

WHY: Mapping[Why, str] = {
    "alike": "all replies equal",
    "clean": "nothing wrong with any reply",
    "no_clean": "something wrong with every reply",
    "length": "too different in length",
    "margin": "no wide enough margin",
}
ADVICE: Mapping[Why, str] = {
    "alike": "raise replies.temperatures",
    "clean": "raise replies.temperatures or lower detectors.thresholds",
    "no_clean": "name a teacher, whose reply is then preferred, or set choosing.reference",
    "length": "raise choosing.length_ratio",
    "margin": "lower choosing.margin",
}


@dataclass
class Pairing:
    """Pairs of one prompt after another, and counts of all."""

    examiner: Examiner
    rules: ChoosingConfig
    prompts: int = 0
    replies: int = 0
    judged: int = 0  # of the replies, by the judges beside detectors
    faulty: Counter[str] = field(default_factory=Counter)  # replies of the student by what is wrong with them
    without: Counter[Why] = field(default_factory=Counter)  # prompts by why they have no pair

    def pairs(self, sample: Sample, audio_s: float | None, replies: Sequence[Mapping[str, Any]]) -> list[Pair]:
        """`replies`: text, ended, and origin, nats_per_byte, judged where they are known."""
        candidates = [self._candidate(sample, audio_s, one) for one in replies]
        known = {"ended": True, "origin": "reference"}
        if self.rules.reference and sample.reference:
            candidates.append(self.examiner.candidate(sample, audio_s, sample.reference, **known))
        if self.rules.refusal:
            refusal = self.examiner.candidate(sample, audio_s, self.rules.refusal, **known)
            candidates += [refusal] if {*refusal.faults} & {*REFUSES} else []
        own = [one for one in candidates if one.origin == "student"]
        self.prompts += 1
        self.replies += len(own)
        self.judged += sum(one.judged is not None for one in own)
        self.faulty.update(name for one in own for name in one.faults)

        def shorten(one: Candidate, longest: int) -> Candidate | None:
            return self.examiner.shortened(sample, audio_s, one, longest)

        usable = [one for one in candidates if one.origin == "student" or one.is_clean or {*one.faults} & {*REFUSES}]
        chosen, why = choose(usable, Rules(**self.rules.model_dump(exclude={"reference", "refusal"})), shorten)
        if why is not None:
            self.without[why] += 1
        return [
            Pair(
                sample,
                chosen=one.chosen.text,
                rejected=one.rejected.text,
                chosen_ended=one.chosen.ended,
                rejected_ended=one.rejected.ended,
                chosen_origin=one.chosen.origin,
                reason=one.reason,
                evidence=one.rejected.evidence,
                margin=one.margin,
                chosen_nats_per_byte=one.chosen.nats_per_byte,
                rejected_nats_per_byte=one.rejected.nats_per_byte,
            )
            for one in chosen
        ]

    def _candidate(self, sample: Sample, audio_s: float | None, one: Mapping[str, Any]) -> Candidate:
        more = {name: one[name] for name in ("origin", "nats_per_byte", "judged") if name in one}
        return self.examiner.candidate(sample, audio_s, one["text"], ended=one["ended"], **more)

    def told_why(self) -> str:
        return ", ".join(f"{WHY[why]}: {count}" for why, count in self.without.most_common()) or "no replies"

    def advice(self) -> str:
        return ADVICE[self.without.most_common(1)[0][0]] if self.without else "data.train has no samples"


def report(pairing: Pairing, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Counts of reasons and origins, and how margins and lengths spread; `lines`: the same as text."""
    reasons = Counter(name for pair in pairs for name in pair.reason)
    origins = Counter(pair.chosen_origin for pair in pairs)
    ratios = [len(pair.rejected) / max(1, len(pair.chosen)) for pair in pairs]
    told = {
        "prompts": pairing.prompts,
        "replies": pairing.replies,
        "faulty_replies": dict(pairing.faulty.most_common()),
        "pairs": len(pairs),
        "reasons": dict(reasons.most_common()),
        "chosen_origin": dict(origins),
        "without_pair": dict(pairing.without.most_common()),
        "margin": _spread([pair.margin for pair in pairs]),
        "length_ratio": _spread(ratios),
        "chosen_characters": _spread([float(len(pair.chosen)) for pair in pairs]),
        "rejected_characters": _spread([float(len(pair.rejected)) for pair in pairs]),
    }
    if pairing.judged:
        told["unjudged_replies"] = pairing.replies - pairing.judged
    return {**told, "lines": list(_lines(told, pairing))}


def _lines(told: Mapping[str, Any], pairing: Pairing) -> list[str]:
    def counts(found: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in found.items()) or "none"

    def spread(name: str) -> str:
        found = told[name]
        return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})" if found else "none"

    unjudged = told.get("unjudged_replies", 0)
    return [
        *([f"replies that got no score: {unjudged} of {told['replies']}"] if unjudged else []),
        f"replies {told['replies']} to {told['prompts']} prompts; faults: {counts(told['faulty_replies'])}",
        f"pairs {told['pairs']}; reasons: {counts(told['reasons'])}; preferred from: {counts(told['chosen_origin'])}",
        f"prompts without a pair: {pairing.told_why() if pairing.without else 'none'}",
        f"margin {spread('margin')}; rejected to preferred length {spread('length_ratio')} (median, tenths)",
    ]


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the tenth and ninetieth of a hundred."""
    if not values:
        return {}
    cuts = quantiles(values, n=10, method="inclusive") if len(values) > 1 else [values[0]] * 9
    return {"low": cuts[0], "median": cuts[4], "high": cuts[8]}
