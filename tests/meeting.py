"""A synthesiser of `rlspeech synth`: meetings of half an hour, no two sentences of which are alike."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rlspeech.types import Sample, Turn

VOICES = {"Marta": "en-gb-x-rp", "Liam": "en-us", "Ines": "en-us+f3", "Oskar": "en-gb-scotland"}
TOPICS = ("the museum", "the ferry", "the archive", "the bridge", "the market", "the school")
PLACES = ("Lisbon", "Turin", "Ghent", "Porto", "Malmo", "Graz", "Cork")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
ITEMS = 250  # of about 7.4 s


@dataclass(frozen=True)
class Synth:
    split: str = "train"
    count: int = 1
    seed: int = 0

    def __call__(self, samples: Iterable[Sample] = ()) -> Iterator[Sample]:
        for number in range(self.count):
            draw = random.Random(f"{self.split}:{self.seed}:{number}")
            turns = [_turn(draw, item) for item in range(1, ITEMS + 1)]
            transcript = " ".join(turn.text for turn in turns)
            for kind, instruction, answer in (
                ("who", f"Who reports on item {ITEMS}?", turns[-1].speaker),
                ("what", "What is the first item about?", "It is about the ferry."),
            ):
                yield Sample(
                    id=f"{self.split}-{number}/{kind}",
                    instruction=instruction,
                    transcript=transcript,
                    reference=answer,
                    tags={"kind": kind},
                    turns=tuple(turns),
                )


def _turn(draw: random.Random, item: int) -> Turn:
    speaker = draw.choice([*VOICES])
    text = (
        f"Item {item}. {speaker} reports on {draw.choice(TOPICS)} in {draw.choice(PLACES)}, and we decide on it by "
        f"{draw.choice(DAYS)}, at a quarter past {draw.randint(1, 12)}."
    )
    return Turn(speaker, text, VOICES[speaker], draw.randint(150, 180), draw.randint(40, 70), 0.6)
