"""Precision and recall of each detector on replies with planted faults; its threshold is chosen on the other half.

The clean replies are written by hand (data/detectors.jsonl): answers, lists, summaries, transcripts, with misspelt
names, numbers in digits, choruses, answers that sound like refusals. The faults are planted by the rules of
detectors_faults.py, seeded. Half of the recordings choose the thresholds, the other half judges. The recordings of
data/detectors_held_out.jsonl were written after the rules, and nothing was mended by them.
"""

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectors_faults import ALSO, PLANTS

from rlspeech.maths.detectors import DETECTORS, THRESHOLDS
from rlspeech.maths.found import Reply

DATA = Path(__file__).parent / "data"
ROWS, HELD_OUT = DATA / "detectors.jsonl", DATA / "detectors_held_out.jsonl"
REFUSALS = ["That was not said.", "The recording does not mention it.", "It is not known.", "No information is given."]
UNHEARD = ["There is no speech.", "Nothing is said in the recording.", "Silence.", "[inaudible]", "", "Only noise."]
UNSPOKEN = ["", "[noise]", "(music)"]
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
    unseen = held_out(seed)
    print(f"{len(choosing)} replies to choose by, {len(judging)} to judge by, {len(unseen)} held out\n")
    print("| detector | threshold | precision | recall | planted | clean and flagged |\n|---|---|---|---|---|---|")
    for name in DETECTORS:
        threshold = chosen_threshold(name, choosing)
        note = "" if threshold == THRESHOLDS[name] else f" (in use: {THRESHOLDS[name]:g})"
        print(f"| `{name}` | {threshold:g}{note} | {' | '.join(told(name, threshold, judging))} |")
    print("\nHeld out:\n\n| detector | precision | recall | planted | clean and flagged |\n|---|---|---|---|---|")
    for name in DETECTORS:
        print(f"| `{name}` | {' | '.join(told(name, THRESHOLDS[name], unseen))} |")


def told(name: str, threshold: float, cases: Sequence[Case]) -> tuple[str, str, str, str]:
    """Precision, recall, planted, clean and flagged; - where there is nothing to divide by."""
    hits, misses, wrong = counts(name, threshold, cases)
    precision = f"{hits / (hits + wrong):.2f}" if hits + wrong else "-"
    recall = f"{hits / (hits + misses):.2f}" if hits + misses else "-"
    return precision, recall, str(hits + misses), str(wrong)


def halves(seed: int) -> tuple[list[Case], list[Case]]:
    """By recording, so that nothing of a recording is in both."""
    rng = random.Random(seed)
    rows = _rows(ROWS)
    rng.shuffle(rows)
    parts = rows[::2], rows[1::2]
    first, second = ([case for row in part for case in cases_of(row, part, rng)] for part in parts)
    return first, second


def held_out(seed: int) -> list[Case]:
    rows, rng = _rows(HELD_OUT), random.Random(seed)
    return [case for row in rows for case in cases_of(row, rows, rng)]


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def chosen_threshold(name: str, cases: Sequence[Case]) -> float:
    """The middle of those with the best F1: as far from what is clean as from what is planted."""
    found = scores(name, cases)

    def f1(threshold: float) -> float:
        hits, misses, wrong = counted(found, threshold)
        return 2 * hits / max(1, 2 * hits + misses + wrong)

    asked = [round(STEP * step, 2) for step in range(1, 21)]
    most = max(map(f1, asked))
    best = [one for one in asked if f1(one) > most - 1e-9]
    return best[(len(best) - 1) // 2]


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
        for name, plants in PLANTS.items():
            for plant in plants:
                planted = plant(clean, other, rng)
                if planted is not None:
                    yield Case(planted, ALSO.get(name, (name,)))
    for text in row["negated"]:
        yield Case(Reply(text, **asked), ("negation",))
    for text in REFUSALS:
        yield Case(Reply(text, **asked, is_answerable=False))
        yield Case(Reply(text, **asked, is_answerable=True), ("refused",))
        if other is not row:
            more = f"{text[:-1]}, but {other['clean'][0]}"
            yield Case(Reply(more, **asked, is_answerable=False), ("not_said",))
    yield Case(Reply(rng.choice(row["clean"]), **asked, is_answerable=False), ("not_said",))
    yield from _quiet(row, asked, rng)


def _quiet(row: dict, asked: dict, rng: random.Random) -> Iterator[Case]:
    """The same audio with nothing in it but noise."""
    quiet = {**asked, "transcript": rng.choice(UNSPOKEN)}
    for text in UNHEARD:
        yield Case(Reply(text, **quiet))
    text = rng.choice(row["clean"])
    leads = ["Nobody knows that ", "There is a noise, and then "] if row["lang"] == "en" else []
    for lead in ["", *leads]:
        yield Case(Reply(lead + text, **quiet), ("silence",))


if __name__ == "__main__":
    main()
