"""Precision and recall of each detector on replies with planted faults; its threshold is chosen on the other half.

The clean replies are written by hand (data/detectors.jsonl): answers, lists, summaries, transcripts, with misspelt
names, numbers in digits, choruses. The faults are planted by the rules below, seeded. Half of the recordings choose the
thresholds, the other half judges.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlspeech.maths.detect import CHARACTERS_PER_S, GRACE, WORDS_PER_S
from rlspeech.maths.detectors import DETECTORS, THRESHOLDS
from rlspeech.maths.found import Reply
from rlspeech.maths.quantities import dates, numbers

ROWS = Path(__file__).parent / "data" / "detectors.jsonl"
NAMES = ["Zoltan", "Fatima", "Brigitte", "Quentin", "Nkechi", "Dmitri"]
REFUSALS = ["That was not said.", "The recording does not mention it.", "It is not known.", "No information is given."]
UNHEARD = ["There is no speech.", "Nothing is said in the recording.", "Silence.", "[inaudible]", ""]
STEP = 0.05


@dataclass(frozen=True)
class Case:
    """A reply with the detectors that should find something in it."""

    reply: Reply
    faults: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the faults and of the halves")
    seed = parser.parse_args().seed
    choosing, judging = halves(seed)
    print(f"{len(choosing)} replies to choose by, {len(judging)} to judge by\n")
    print("| detector | threshold | precision | recall | planted | clean and flagged |\n|---|---|---|---|---|---|")
    for name in DETECTORS:
        threshold = chosen_threshold(name, choosing)
        hits, misses, wrong = counts(name, threshold, judging)
        precision = f"{hits / (hits + wrong):.2f}" if hits + wrong else "–"  # noqa: RUF001
        told = f"{precision} | {hits / max(1, hits + misses):.2f} | {hits + misses} | {wrong}"
        note = "" if threshold == THRESHOLDS[name] else f" (in use: {THRESHOLDS[name]:g})"
        print(f"| `{name}` | {threshold:g}{note} | {told} |")


def halves(seed: int) -> tuple[list[Case], list[Case]]:
    """By recording, so that nothing of a recording is in both."""
    rng = random.Random(seed)
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    rng.shuffle(rows)
    parts = rows[::2], rows[1::2]
    first, second = ([case for row in part for case in cases_of(row, part, rng)] for part in parts)
    return first, second


def chosen_threshold(name: str, cases: Sequence[Case]) -> float:
    """The highest of those with the best F1."""
    found = scores(name, cases)

    def f1(threshold: float) -> float:
        hits, misses, wrong = counted(found, threshold)
        return 2 * hits / max(1, 2 * hits + misses + wrong)

    return max((round(STEP * step, 2) for step in range(1, 21)), key=lambda one: (round(f1(one), 6), one))


def counts(name: str, threshold: float, cases: Sequence[Case]) -> tuple[int, int, int]:
    """Planted and found, planted and not found, found in what is clean. Replies with other faults do not count."""
    return counted(scores(name, cases), threshold)


def scores(name: str, cases: Sequence[Case]) -> list[tuple[float, bool]]:
    """Score and whether the fault was planted, of the replies that the detector applies to."""
    asked = [case for case in cases if not case.faults or name in case.faults]
    found = [(DETECTORS[name](case.reply), bool(case.faults)) for case in asked]
    return [(one.score, planted) for one, planted in found if one is not None]


def counted(found: Sequence[tuple[float, bool]], threshold: float) -> tuple[int, int, int]:
    flagged = [(score > 0 and score >= threshold, planted) for score, planted in found]
    return flagged.count((True, True)), flagged.count((False, True)), flagged.count((True, False))


def cases_of(row: dict, others: Sequence[dict], rng: random.Random) -> Iterator[Case]:
    """A recording's clean replies, and each with every fault that can be planted in it."""
    seconds = len(row["said"].split()) / 2.5 if row["lang"] != "zh" else len(row["said"]) / 4
    asked = {"transcript": row["said"], "audio_s": seconds, "lang": row["lang"], "instruction": "Answer the question."}
    other = rng.choice([one for one in others if one is not row and one["lang"] == row["lang"]] or [row])
    for text in [*row["clean"], row["said"]]:
        clean = Reply(text, **asked, is_answerable=True)
        yield Case(clean)
        for name, plant in PLANTS.items():
            planted = plant(clean, other, rng)
            if planted is not None:
                yield Case(planted, ALSO.get(name, (name,)))
    for text in row["negated"]:
        yield Case(Reply(text, **asked), ("negation",))
    for text in REFUSALS:
        yield Case(Reply(text, **asked, is_answerable=False))
        yield Case(Reply(text, **asked, is_answerable=True), ("refused",))
    yield Case(Reply(rng.choice(row["clean"]), **asked, is_answerable=False), ("not_said",))
    quiet = {**asked, "transcript": ""}
    for text in UNHEARD:
        yield Case(Reply(text, **quiet))
    yield Case(Reply(rng.choice(row["clean"]), **quiet), ("silence",))


def _looped(reply: Reply, other: dict, rng: random.Random) -> Reply:
    phrase = " ".join(reply.text.split()[: rng.randint(1, 5)]).strip(".,;:!?")
    mark = rng.choice([" ", " - ", ", ", ". "])
    return replace(reply, text=f"{reply.text} {mark.join([phrase] * rng.randint(6, 12))}")


def _stammered(reply: Reply, other: dict, rng: random.Random) -> Reply:
    piece = rng.choice(["ha", "la", "na-", "o", "ho ho", "哈"])
    return replace(reply, text=f"{reply.text} {piece * rng.randint(20, 40)}")


def _listed(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    items = re.split(r"\n|, ", reply.text)
    if len(items) < 3:
        return None
    again = [
        item.rstrip(".") if rng.random() < 0.5 else item.upper()
        for item in rng.choices(items, k=rng.randint(2, 2 * len(items)))
    ]
    return replace(reply, text=("\n" if "\n" in reply.text else ", ").join([*items, *again]))


def _said_again(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    """With a long period, which no loop of phrases is."""
    if len(reply.text.split()) < 9:
        return None
    return replace(reply, text=" ".join([reply.text, other["clean"][0]] * rng.randint(3, 6)))


def _run_away(reply: Reply, other: dict, rng: random.Random) -> Reply:
    words = [*other["said"]] if reply.lang == "zh" else other["said"].split()
    most = GRACE + (reply.audio_s or 0) * (CHARACTERS_PER_S if reply.lang == "zh" else WORDS_PER_S)
    words = rng.choices(words, k=int(most * rng.uniform(1.5, 6)) + 1)
    return replace(reply, text=("" if reply.lang == "zh" else " ").join(words))


def _cut(reply: Reply, other: dict, rng: random.Random) -> Reply:
    looped = _looped(reply, other, rng)
    return replace(looped, text=looped.text[: -rng.randint(1, 3)], ended=False)


def _renamed(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    found = [m for m in re.finditer(r"(?<=\w )[A-Z]\w+", reply.text) if not dates(m[0], reply.lang)]
    if not found or reply.lang in ("de", "zh"):
        return None
    match = rng.choice(found)
    return replace(reply, text=reply.text[: match.start()] + rng.choice(NAMES) + reply.text[match.end() :])


def _miscounted(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    found = [one for one in numbers(reply.text, reply.lang) if not re.match(r"\d+\.\s", reply.text[one.span[0] :])]
    if not found:
        return None
    start, end = rng.choice(found).span
    return replace(reply, text=f"{reply.text[:start]}{rng.randint(601, 699)}{reply.text[end:]}")


def _misdated(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    swaps = {"en": "Wednesday August", "de": "Donnerstag Dezember", "fr": "mardi avril", "es": "viernes mayo"}
    found = dates(reply.text, reply.lang)
    if not found or reply.lang not in swaps:
        return None
    one = rng.choice(found)
    day, month = swaps[reply.lang].split()
    new = day if str(one.value).startswith("day") else month
    if reply.transcript and new.lower() in reply.transcript.lower():
        return None
    return replace(reply, text=reply.text[: one.span[0]] + new + reply.text[one.span[1] :])


def _misquoted(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    if reply.lang == "zh" or other["said"] == reply.transcript:
        return None
    return replace(reply, text=f'{reply.text} "{" ".join(other["said"].split()[:6])}"')


def _invented(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    if other["said"] == reply.transcript:
        return None
    return replace(reply, text=f"{rng.choice(other['clean'][-2:])} {other['clean'][0]}")


PLANTS: dict[str, Callable[[Reply, dict, random.Random], Reply | None]] = {
    "word_loop": _looped,
    "character_loop": _stammered,
    "repeated_lines": _listed,
    "compression": _said_again,
    "runaway": _run_away,
    "cut_loop": _cut,
    "names": _renamed,
    "numbers": _miscounted,
    "dates": _misdated,
    "quotes": _misquoted,
    "content": _invented,
}
ALSO = {"cut_loop": ("cut_loop", "word_loop")}


if __name__ == "__main__":
    main()
