"""Speech translation: BLEU or chrF of the reply against the reference translation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import regex

from rlspeech.types import Rollout

Metric = Literal["bleu", "chrf"]

CHINESE, BY_CHARACTER = ("zh", "yue"), ("ja", "th", "lo", "km", "my")
_BY_CHARACTER = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_HAN = regex.compile(r"\p{Han}")


@dataclass(frozen=True)
class Reward:
    """sacrebleu's sentence score in 0..1: chrF2 (Popovic 2015), or BLEU with effective order (Papineni et al. 2002).

    `separator`: a reply that thinks first, such as a transcript and then `<sep>` and the translation, is judged by what
    stands behind its last separator, and one without it has 0. BLEU cuts a translation into Chinese by sacrebleu's
    `zh`, into Japanese, Thai, Lao, Khmer and Burmese by character, and into other languages by `13a`; the language is
    `target_lang` or, without one, told by the script of the reference (a sample's `lang` is that of its audio). None
    where the sample has no reference, or an empty one; an empty reply has 0.
    """

    metric: Metric = "chrf"
    separator: str = ""
    target_lang: str = ""  # such as "zh"; of BLEU alone

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise ValueError(f"metric must be bleu or chrf, got {self.metric!r}")
        if self.target_lang and self.metric != "bleu":
            raise ValueError(f"target_lang says how BLEU cuts words: it has no part in {self.metric}")

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        return [self._value(rollout) for rollout in rollouts]

    def _value(self, rollout: Rollout) -> float | None:
        reference, reply = rollout.sample.reference or "", rollout.completion.text
        if not reference.strip():
            return None
        if self.separator:
            _, found, reply = reply.rpartition(self.separator)
            if not found:
                return 0.0
            _, _, reference = reference.rpartition(self.separator)
        scorer = _chrf() if self.metric == "chrf" else _bleu(_tokenizer(self.target_lang, reference))
        return scorer.sentence_score(reply.strip(), [reference.strip()]).score / 100


def _tokenizer(target_lang: str, reference: str) -> str:
    """sacrebleu's name of it."""
    lang = target_lang.lower().split("-")[0]
    if lang in BY_CHARACTER or (not lang and _BY_CHARACTER.search(reference)):
        return "char"
    return "zh" if lang in CHINESE or (not lang and _HAN.search(reference)) else "13a"


@lru_cache
def _chrf() -> Any:
    from sacrebleu import CHRF

    return CHRF()


@lru_cache
def _bleu(tokenize: str) -> Any:
    from sacrebleu import BLEU

    return BLEU(effective_order=True, tokenize=tokenize)
