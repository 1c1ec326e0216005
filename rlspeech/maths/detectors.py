"""All detectors by name, and from which score on a reply has the fault: docs/detectors.md has how good they are."""

from collections.abc import Mapping, Sequence

from rlspeech.maths.detect import character_loop, compression, cut_loop, runaway, word_loop
from rlspeech.maths.found import Detector, Found, Reply
from rlspeech.maths.lists import repeated_lines
from rlspeech.maths.names import names
from rlspeech.maths.negations import negation
from rlspeech.maths.refusals import not_said, refused, silence
from rlspeech.maths.support import content, date_values, number_values, quotes

REPEATS = ("word_loop", "character_loop", "repeated_lines", "compression", "runaway", "cut_loop")
UNSUPPORTED = ("names", "numbers", "dates", "quotes", "content", "negation", "not_said", "silence")
REFUSES = ("refused",)
NEEDS_TRANSCRIPT = ("names", "numbers", "dates", "quotes", "content", "negation", "silence")

DETECTORS: Mapping[str, Detector] = {
    "word_loop": word_loop,
    "character_loop": character_loop,
    "repeated_lines": repeated_lines,
    "compression": compression,
    "runaway": runaway,
    "cut_loop": cut_loop,
    "names": names,
    "numbers": number_values,
    "dates": date_values,
    "quotes": quotes,
    "content": content,
    "negation": negation,
    "not_said": not_said,
    "refused": refused,
    "silence": silence,
}
THRESHOLDS: Mapping[str, float] = {  # chosen by benchmarks/detectors.py
    "word_loop": 0.15,
    "character_loop": 0.1,
    "repeated_lines": 0.25,
    "compression": 0.25,
    "runaway": 0.15,
    "cut_loop": 0.5,
    "names": 0.15,
    "numbers": 0.15,
    "dates": 0.25,
    "quotes": 0.5,
    "content": 0.65,
    "negation": 0.4,
    "not_said": 0.5,
    "refused": 0.5,
    "silence": 0.5,
}


def examine(reply: Reply, names: Sequence[str] | None = None) -> dict[str, Found]:
    """What each detector finds, those left out that do not apply. `names`: of those to ask; default: all."""
    found = {name: DETECTORS[name](reply) for name in (DETECTORS if names is None else names)}
    return {name: one for name, one in found.items() if one is not None}


def flags(found: Mapping[str, Found], thresholds: Mapping[str, float] = THRESHOLDS) -> tuple[str, ...]:
    """The detectors whose score is at or above its threshold."""
    return tuple(name for name, one in found.items() if one.score > 0 and one.score >= thresholds[name])
