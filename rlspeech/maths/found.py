"""What detectors look at, and what they find."""

from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[int, int]  # characters of the reply as it stands, half-open


@dataclass(frozen=True)
class Reply:
    """A reply with what is known about its audio. Nothing is normalised: a normaliser would hide "ha ha ha ha"."""

    text: str
    transcript: str | None = None  # None: unknown; without a word: nothing is said, there is silence or noise
    audio_s: float | None = None
    ended: bool = True  # it came to its own end, and was not cut off by the length limit
    lang: str = "en"
    instruction: str = ""
    is_answerable: bool | None = None  # whether what is asked is in the speech; None: not known


@dataclass(frozen=True)
class Found:
    """How strong a sign is, in 0..1, and where it is: ordered spans that do not overlap."""

    score: float
    spans: tuple[Span, ...] = ()


NOTHING = Found(0.0)

Detector = Callable[[Reply], Found | None]  # None: it does not apply, or what it needs is not known


def joined(spans: list[Span]) -> tuple[Span, ...]:
    """Ordered, those that touch or overlap as one."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        elif start < end:
            found.append((start, end))
    return tuple(found)
