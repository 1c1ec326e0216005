"""Speech translation: BLEU or chrF of the reply against the reference translation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from rlspeech.types import Rollout

Metric = Literal["bleu", "chrf"]


@dataclass(frozen=True)
class Reward:
    """sacrebleu's sentence score in 0..1: chrF2 (Popovic 2015), or BLEU with effective order (Papineni et al. 2002).

    `separator`: a reply that thinks first, such as a transcript and then `<sep>` and the translation, is judged by what
    stands behind its last separator, and one without it has 0. BLEU cuts Chinese by character and other languages as
    13a does. None where the sample has no reference, or an empty one; an empty reply has 0.
    """

    metric: Metric = "chrf"
    separator: str = ""

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric must be bleu or chrf, got {self.metric!r}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [self._value(rollout) for rollout in rollouts]

    def _value(self, rollout: Rollout) -> float | None:
        reference, reply = rollout.sample.reference, rollout.completion.text
        if not (reference or "").strip():
            return None
        if self.separator:
            _, found, reply = reply.rpartition(self.separator)
            if not found:
                return 0.0
            _, _, reference = (reference or "").rpartition(self.separator)
        scorer = self._chrf if self.metric == "chrf" else self._bleu(rollout.sample.lang)
        return scorer.sentence_score(reply.strip(), [(reference or "").strip()]).score / 100

    @cached_property
    def _chrf(self) -> Any:
        from sacrebleu import CHRF

        return CHRF()

    def _bleu(self, lang: str) -> Any:
        from sacrebleu import BLEU

        chinese = lang.lower().split("-")[0] in ("zh", "yue")
        return BLEU(effective_order=True, tokenize="zh" if chinese else "13a")
