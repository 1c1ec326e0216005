"""The detectors over rollouts, as a recipe has them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlspeech.config_dpo import DetectorsConfig
from rlspeech.errors import UserError, did_you_mean
from rlspeech.maths.detectors import (
    DETECTORS,
    NEEDS_TRANSCRIPT,
    REPEATS,
    THRESHOLDS,
    UNSUPPORTED,
    Found,
    Reply,
    examine,
    flags,
)
from rlspeech.maths.preferences import Candidate
from rlspeech.maths.refusals import says_not_said
from rlspeech.maths.scores import TRANSCRIBE
from rlspeech.types import Sample

NOT_SAID = "not_said"  # the kind of a question whose answer is not in the speech
SHOWN = 80  # characters of a piece of evidence


@dataclass(frozen=True)
class Examiner:
    names: tuple[str, ...]
    thresholds: Mapping[str, float]

    @classmethod
    def of(cls, config: DetectorsConfig) -> "Examiner":
        """Raises UserError where a name is no detector's."""
        for name in [*config.names, *config.thresholds]:
            if name not in DETECTORS:
                raise UserError(f"detectors: {name!r} is none{did_you_mean(name, DETECTORS)}")
        return cls(tuple(config.names or DETECTORS), {**THRESHOLDS, **config.thresholds})

    def check(self, samples: Iterable[Sample]) -> None:
        """Raises UserError where a detector needs the transcript of a sample that has none."""
        needing = [name for name in self.names if name in NEEDS_TRANSCRIPT]
        for sample in samples:
            if needing and sample.transcript is None:
                rest = ",".join(name for name in self.names if name not in needing)
                raise UserError(
                    f"{sample.id}: no transcript, which {needing[0]} needs; add it, or --detectors.names {rest}"
                )

    def found(self, sample: Sample, audio_s: float | None, text: str, *, ended: bool) -> dict[str, Found]:
        reply = Reply(
            text,
            transcript=sample.transcript,
            audio_s=audio_s,
            ended=ended,
            lang=sample.lang,
            instruction=sample.instruction,
            is_answerable=_is_answerable(sample),
        )
        return examine(reply, self.names)

    def candidate(self, sample: Sample, audio_s: float | None, text: str, *, ended: bool, **more: Any) -> Candidate:
        found = self.found(sample, audio_s, text, ended=ended)
        faults = flags(found, self.thresholds)
        spans = [span for name in faults for span in found[name].spans[:1]]
        evidence = tuple(dict.fromkeys(text[start:end][:SHOWN] for start, end in spans))
        scores = {name: one.score for name, one in found.items()}
        return Candidate(text, ended, scores=scores, faults=faults, evidence=evidence, **more)

    def shortened(self, sample: Sample, audio_s: float | None, one: Candidate, longest: int) -> Candidate | None:
        """The reply cut at a space before so many characters, where what repeats there is still found."""
        cut = one.text[: longest + 1].rpartition(" ")[0] or one.text[:longest]
        found = self.candidate(sample, audio_s, cut, ended=False)
        if not {*found.faults} & {*REPEATS}:
            return None
        return replace(found, origin=one.origin)


def _is_answerable(sample: Sample) -> bool | None:
    """By the data's own answer: None where there is none, or it says that it was not said."""
    if sample.tags.get("kind") == NOT_SAID:
        return False
    return True if sample.reference and not says_not_said(sample.reference) else None


def all_faults(
    examiner: Examiner,
    samples: Sequence[Sample],
    audio_s: Sequence[float | None],
    replies: Sequence[str],
    ended: Sequence[bool] | None = None,
) -> list[tuple[str, ...]]:
    """Of each reply. `ended`: whether each came to its own end; default: all did."""
    return [
        flags(examiner.found(sample, seconds, reply, ended=whole), examiner.thresholds)
        for sample, seconds, reply, whole in zip(samples, audio_s, replies, ended or [True] * len(replies), strict=True)
    ]


def fault_shares(samples: Sequence[Sample], faults: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Shares of the replies that repeat themselves, and that say what the transcript does not support.

    Transcripts do not count towards the second: their word errors are a measure of their own. None of no replies.
    """
    answers = [one for sample, one in zip(samples, faults, strict=True) if sample.tags.get("kind") != TRANSCRIBE]
    return {"repetitive": _share(faults, REPEATS), "unsupported": _share(answers, UNSUPPORTED)}


def _share(faults: Sequence[Sequence[str]], group: Sequence[str]) -> float | None:
    return sum(bool({*one} & {*group}) for one in faults) / len(faults) if faults else None
