"""The biasing reward of a rollout beside one made of jiwer's alignment and difflib, over the same replies."""

import difflib
import random
import time

import jiwer
from machine import describe

from rlspeech.engines.reward_functions import load_reward
from rlspeech.maths.text import normalise, words
from rlspeech.plugins import load_class
from rlspeech.types import Completion, Prompt, Rollout

REPLIES = 2000


def main() -> None:
    rollouts = replies()
    ours = load_reward("biasing", {"false_insertion": 0.0})
    ours(rollouts[:2])
    normalise.cache_clear()
    started_s = time.perf_counter()
    values = ours(rollouts)
    ours_s = time.perf_counter() - started_s
    print(f"{describe()}; {len(rollouts)} replies; ours {1e6 * ours_s / len(rollouts):.0f} us a reply")
    for name, reward in (("jiwer", by_jiwer), ("difflib", by_difflib)):
        normalise.cache_clear()  # what was normalised for the one before
        started_s = time.perf_counter()
        found = [reward(rollout) for rollout in rollouts]
        theirs_s = time.perf_counter() - started_s
        same = sum(one == other for one, other in zip(found, values, strict=True)) / len(values)
        print(f"{name}: {1e6 * theirs_s / len(rollouts):.0f} us, ratio {theirs_s / ours_s:.1f}, equal {same:.0%}")


def replies() -> list[Rollout]:
    """Sentences with rare names, some of their words misheard."""
    rng = random.Random(0)
    samples = list(load_class("data_synth", "calls", "Synth", {"count": REPLIES // 8})())
    made = []
    for sample in samples:
        for _ in range(8):
            heard = [word if rng.random() > 0.15 else word[:-1] + "x" for word in sample.reference.split()]
            made.append(Rollout(sample, Prompt(()), Completion((), (), " ".join(heard), "stop")))
    return made


def by_jiwer(rollout: Rollout) -> float:
    said, heard, rare = parts(rollout)
    (chunks,) = jiwer.process_words([" ".join(said)], [" ".join(heard)]).alignments
    return cost(
        ((c.type, c.ref_start_idx, c.ref_end_idx, c.hyp_start_idx, c.hyp_end_idx) for c in chunks), said, heard, rare
    )


def by_difflib(rollout: Rollout) -> float:
    said, heard, rare = parts(rollout)
    return cost(difflib.SequenceMatcher(None, said, heard, autojunk=False).get_opcodes(), said, heard, rare)


def parts(rollout: Rollout) -> tuple[list[str], list[str], set[str]]:
    rare = {word for phrase in rollout.sample.rare_words for word in words(phrase)}
    return words(rollout.sample.reference or ""), words(rollout.completion.text), rare


def cost(codes, said: list[str], heard: list[str], rare: set[str]) -> float:
    total = 0.0
    for kind, start, end, from_, to in codes:
        if kind == "equal":
            continue
        for i in range(max(end - start, to - from_)):
            word = said[start + i] if start + i < end else heard[from_ + i]
            total += 1 + 5 * (word in rare)
    return -min(total, 50.0)


if __name__ == "__main__":
    main()
