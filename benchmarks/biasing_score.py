"""The scorer of WER, U-WER and B-WER beside one in plain Python, on the LibriSpeech biasing files if they are here.

Test-clean eight times over, or as many invented words; each word is an object of its own.

Counts are compared, too. Prints seconds and their ratio; compiling (once for a machine) is told apart.
"""

import json
import os
import random
import sys
import time
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from machine import describe
from test_biasing import plainly

from rlspeech.maths.biasing import biased_edits, summed

SHARED = Path(os.environ.get("RLSPEECH_SHARED", "../shared")) / "data" / "librispeech_biasing"
TIMES = 8


def main() -> None:
    parts = [published() if SHARED.is_dir() else invented() for _ in range(TIMES)]
    references, hypotheses, rare = ([*chain.from_iterable(part[i] for part in parts)] for i in range(3))
    print(f"{describe()}; {len(references)} utterances, {sum(map(len, references))} words")
    listed = [[(word,) for word in words] for words in rare]
    started_s = time.perf_counter()
    biased_edits(references[:2], hypotheses[:2], listed[:2])
    print(f"first call (compiled, or read from the cache): {time.perf_counter() - started_s:.2f} s")
    ours_s, ours = timed(lambda: summed(biased_edits(references, hypotheses, listed)))
    both_s, _ = timed(lambda: summed(biased_edits(references, hypotheses, listed, workers=2)))
    pairs = [*zip(references, hypotheses, map(set, rare), strict=True)]
    plain_s, theirs = timed(lambda: summed(plainly(*pair) for pair in pairs), times=3)
    assert ours == theirs
    print(f"plain Python {plain_s:.2f} s; ours {1000 * ours_s:.1f} ms, with two threads {1000 * both_s:.1f} ms")
    print(f"ratio {plain_s / ours_s:.0f} (two threads {plain_s / both_s:.0f})")


def timed(work, *, times=30):
    """The fastest of so many."""
    best_s = float("inf")
    for _ in range(times):
        started_s = time.perf_counter()
        found = work()
        best_s = min(best_s, time.perf_counter() - started_s)
    return best_s, found


def published() -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    lines = (SHARED / "ref/test-clean.biasing_100.tsv").read_text().splitlines()
    references = {key: (text.split(), json.loads(rare)) for key, text, rare, _ in (line.split("\t") for line in lines)}
    heard = {}
    for line in (SHARED / "hyp/test-clean.b1.rnnt_baseline.tsv").read_text().splitlines():
        key, _, text = line.partition("\t")
        heard[key] = text.split()
    return (
        [text for text, _ in references.values()],
        [heard[key] for key in references],
        [r for _, r in references.values()],
    )


def invented() -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(3000)]
    references = [rng.choices(words, k=rng.randint(5, 40)) for _ in range(2600)]
    hypotheses = [[word for word in text if rng.random() > 0.03] for text in references]
    return references, hypotheses, [rng.sample(text, 2) for text in references]


if __name__ == "__main__":
    main()
