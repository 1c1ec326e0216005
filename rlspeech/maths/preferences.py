"""Which of a prompt's replies make pairs: the one is without a fault, the other has one that the pair is to unteach."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

Origin = Literal["student", "teacher", "reference"]  # preferred in this order
Why = Literal["alike", "clean", "no_clean", "length", "margin"]
UNLIKELY, JUDGED = "unlikely", "judged"  # reasons beside the names of detectors


@dataclass(frozen=True)
class Rules:
    """Of `PairsConfig.choosing`."""

    margin: float = 0.2
    length_ratio: float = 2.0  # of the longer reply to the shorter, in characters
    per_prompt: int = 2
    unlikely_nats: float | None = None  # a byte
    judged: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A reply with what is known of it: `scores` of each detector, and the names of those that find a fault in it."""

    text: str
    ended: bool = True
    origin: Origin = "student"
    scores: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    nats_per_byte: float | None = None  # log-likelihood that the teacher gives
    judged: float | None = None

    @property
    def is_clean(self) -> bool:
        return self.ended and not self.faults and bool(self.text.strip())


@dataclass(frozen=True)
class Choice:
    chosen: Candidate
    rejected: Candidate
    reason: tuple[str, ...]
    margin: float


Shorten = Callable[[Candidate, int], Candidate | None]


def choose(candidates: Sequence[Candidate], rules: Rules, shorten: Shorten) -> tuple[list[Choice], Why | None]:
    """Pairs of one prompt's replies, at most `per_prompt`; where there is none, why.

    The preferred reply is the likeliest for the teacher (then the best judged, then the shortest) of those that are
    clean, the student's own before the teacher's, and that before the reference. Rejected is a reply with a fault that
    the preferred one has less of by `margin`; that the teacher finds less likely by `unlikely_nats` a byte; or that is
    judged worse by `judged`; never one that is judged better by so much. Worst first, and reasons that no pair has yet
    before those that one has. What is longer than `length_ratio` allows is `shorten`ed to so many characters, where its
    fault is still in there: a loop is one long before its end.

    Why: alike, there is one text only; clean, nothing is wrong with any; no_clean, something with all; length, margin:
    what a fault was found in does not go with the preferred one.
    """
    distinct = _distinct(candidates)
    if len(distinct) < 2:
        return [], "alike"
    clean = [one for one in distinct if one.is_clean]
    if not clean:
        return [], "no_clean"
    chosen = max(clean, key=_worth)
    found: list[Choice] = []
    missed: Counter[Why] = Counter()
    for one in distinct:
        if one is not chosen:
            choice, why = _against(chosen, one, rules, shorten)
            found += [choice] if choice else []
            missed.update([why] if why else [])
    if found:
        return list(_varied(found, rules.per_prompt)), None
    return [], missed.most_common(1)[0][0] if missed else "clean"


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """One of each text, the first that came to its end where one did: of two equal ones the other was cut off."""
    found: dict[str, Candidate] = {}
    for one in sorted(candidates, key=lambda one: not one.ended):
        found.setdefault(one.text.strip(), one)
    kept = {id(one) for one in found.values()}
    return [one for one in candidates if id(one) in kept]


def _worth(one: Candidate) -> tuple[int, float, float, int]:
    judged = -1e9 if one.judged is None else one.judged
    likely = -1e9 if one.nats_per_byte is None else one.nats_per_byte
    return -get_args(Origin).index(one.origin), likely, judged, -len(one.text)


def _against(chosen: Candidate, other: Candidate, rules: Rules, shorten: Shorten) -> tuple[Choice | None, Why | None]:
    """The pair of the two, or why there is none; neither where nothing is wrong with the other."""
    if not _reasons(chosen, other, rules) or _is_judged_better(other, chosen, rules):
        return None, "margin" if other.faults else None
    longest = int(rules.length_ratio * len(chosen.text))
    if len(other.text) > longest:
        cut = shorten(other, longest)
        if cut is None or cut.text.strip() == chosen.text.strip():
            return None, "length"
        other = cut
    if len(chosen.text) > rules.length_ratio * len(other.text):
        return None, "length"
    reasons = _reasons(chosen, other, rules)
    if not reasons:
        return None, "length"
    return Choice(chosen, other, tuple(reasons), max(reasons.values())), None


def _is_judged_better(one: Candidate, other: Candidate, rules: Rules) -> bool:
    """By as much as rejects a reply: then detectors and judge are of two minds, and there is nothing to teach."""
    if rules.judged is None or one.judged is None or other.judged is None:
        return False
    return one.judged - other.judged >= rules.judged


def _reasons(chosen: Candidate, other: Candidate, rules: Rules) -> dict[str, float]:
    """By how much the other reply is worse, by what."""
    found = {name: other.scores.get(name, 0.0) - chosen.scores.get(name, 0.0) for name in other.faults}
    found = {name: by for name, by in found.items() if by >= rules.margin}
    for name, least, ours, theirs in (
        (UNLIKELY, rules.unlikely_nats, chosen.nats_per_byte, other.nats_per_byte),
        (JUDGED, rules.judged, chosen.judged, other.judged),
    ):
        if least is not None and ours is not None and theirs is not None and ours - theirs >= least:
            found[name] = ours - theirs
    return found


def _varied(found: Sequence[Choice], count: int) -> Iterator[Choice]:
    """The widest margins, but first those that teach what none before them does."""
    left, taught = sorted(found, key=lambda one: (-one.margin, one.rejected.text)), set[str]()
    for _ in range(min(count, len(left))):
        one = next((one for one in left if not taught >= {*one.reason}), left[0])
        left.remove(one)
        taught |= {*one.reason}
        yield one
