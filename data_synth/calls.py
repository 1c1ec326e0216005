"""Short sentences with rare names, for contextual speech recognition: those of the test set are never learned.

Names are made of syllables that English spelling tells how to say, with ends that few English words have. A name
belongs to one side by its own hash.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rlspeech.types import Sample, Turn

ONSETS = [*"bdfghjklmnprstvwz", "br", "dr", "fl", "gl", "kr", "pl", "sk", "sl", "st", "tr", "sh"]
MIDDLES = [*"bdgklmnprstvz", "ll", "nd", "nt", "rn", "rv", "st", "lm", "sk"]
VOWELS = [*"aeiou"]
ENDS = [*"oai", "ak", "ash", "az", "ek", "esh", "ez", "ik", "iz", "ok", "osh", "ov", "oz", "um", "uz"]

FRAMES = [
    "Please call {0} at {time}.",
    "{0} will meet {1} on {day}.",
    "Tell {0} that the {place} is open.",
    "We saw {0} at the {place} on {day}.",
    "Can {0} bring the {item} to {1}?",
    "{0} has {number} {item}.",
    "Ask {0} about the {item}.",
    "The {item} are for {0}.",
    "{0} and {1} went to the {place}.",
    "I will send {number} {item} to {0}.",
]
PLACES = ["library", "market", "station", "museum", "bakery", "office", "garden", "school", "airport", "hotel", "bank"]
ITEMS = ["apples", "lamps", "books", "chairs", "flowers", "tickets", "bottles", "candles", "boxes", "oranges", "towels"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
TIMES = [*NUMBERS, "noon"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

VOICES = ["en-us", "en", "en-us+f2", "en-us+f3", "en-us+m3", "en-us+m1", "en+f4", "en+m2"]
HELD_OUT_SHARE = 0.15  # of all names
TRANSCRIBE = "Transcribe the speech."


@dataclass(frozen=True)
class Synth:
    """`count` sentences with one or two rare names each. `test`: all of them with names that `train` never has."""

    split: Literal["train", "test"] = "train"
    count: int = 100
    seed: int = 0
    two_words: float = 0.15  # share of the names that are a first and a last name
    rate_low_wpm: int = 170
    rate_high_wpm: int = 210

    def __post_init__(self) -> None:
        if self.split not in ("train", "test"):
            raise ValueError(f"split must be train or test, got {self.split!r}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if not 0 <= self.two_words <= 1:
            raise ValueError(f"two_words must be in 0..1, got {self.two_words}")
        if not 80 <= self.rate_low_wpm <= self.rate_high_wpm <= 400:
            raise ValueError("rates must satisfy 80 <= rate_low_wpm <= rate_high_wpm <= 400")

    def __call__(self, samples: Iterable[Sample] = ()) -> Iterator[Sample]:
        """One sample a sentence, `rare_words` its names."""
        rng = random.Random(f"{self.split}:{self.seed}")
        for index in range(self.count):
            frame = rng.choice(FRAMES)
            names = [self._full_name(rng) for _ in range(frame.count("{0}") + frame.count("{1}"))]
            text = frame.format(
                *names,
                time=rng.choice(TIMES),
                day=rng.choice(DAYS),
                place=rng.choice(PLACES),
                item=rng.choice(ITEMS),
                number=rng.choice(NUMBERS),
            )
            rate, pitch = rng.randint(self.rate_low_wpm, self.rate_high_wpm), rng.randint(35, 65)
            yield Sample(
                id=f"{self.split}-{index:05d}/transcribe",
                instruction=TRANSCRIBE,
                transcript=text,
                reference=text,
                tags={"kind": "transcribe", "split": self.split},
                rare_words=tuple(dict.fromkeys(names)),
                turns=(Turn("A", text, rng.choice(VOICES), rate, pitch),),
            )

    def _full_name(self, rng: random.Random) -> str:
        names = [self._name(rng) for _ in range(2 if rng.random() < self.two_words else 1)]
        return " ".join(names)

    def _name(self, rng: random.Random) -> str:
        while True:
            middle = "".join(rng.choice(MIDDLES) + rng.choice(VOWELS) for _ in range(rng.choice([0, 0, 1])))
            name = rng.choice(ONSETS) + rng.choice(VOWELS) + middle + rng.choice(MIDDLES) + rng.choice(ENDS)
            if is_held_out(name) == (self.split == "test"):
                return name.capitalize()


def is_held_out(name: str) -> bool:
    """Whether a name is kept from training, by SHA-256."""
    return int.from_bytes(hashlib.sha256(name.lower().encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32
