"""Short spoken exchanges of one to three speakers, with instructions whose answers the grammar knows.

A text belongs to the held-out side or to the learning side by its own hash, so that no held-out text can occur in
training, whatever the seeds and counts are.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rlspeech.types import Sample, Turn

NAMES = ["Anna", "Peter", "Mary", "John", "David", "Susan", "Laura", "Kevin", "Emma", "Oscar", "Helen", "Victor"]
PLACES = [
    "library",
    "market",
    "station",
    "museum",
    "bakery",
    "office",
    "garden",
    "school",
    "airport",
    "hotel",
    "park",
    "bank",
]
ITEMS = [
    "apples",
    "lamps",
    "books",
    "chairs",
    "flowers",
    "pencils",
    "tickets",
    "bottles",
    "candles",
    "boxes",
    "oranges",
    "towels",
]
COLORS = ["red", "green", "blue", "black", "white", "yellow"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
AMOUNTS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TIMES = ["one", *NUMBERS, "noon"]

TRAIN_VOICES = [
    "en-us",
    "en",
    "en-gb-x-rp",
    "en-us+f2",
    "en-us+f3",
    "en-us+m3",
    "en-us+m1",
    "en+f4",
    "en+m2",
    "en-us-nyc",
    "en-gb-scotland",
    "en-us+Alex",
]
HELD_OUT_VOICES = ["en-us+f1", "en+m5", "en-us+Andy", "en-gb-x-rp+f5"]
HELD_OUT_SHARE = 0.1  # of all texts
NOT_SAID = "Not said."

TRANSCRIBE = "Transcribe the speech."
SUMMARISE = "Summarize in one sentence."
LIST_ITEMS = "List the items mentioned."


@dataclass(frozen=True)
class Task:
    """An instruction and its answer. `key`: the words that any right answer holds."""

    kind: str
    instruction: str
    answer: str
    key: str


@dataclass(frozen=True)
class Scene:
    """What happens: the lines as (speaker, text), a summary, the items, and questions with answers."""

    lines: tuple[tuple[str, str], ...]
    summary: Task
    items: tuple[str, ...]
    questions: tuple[Task, ...]
    unanswered: tuple[str, ...]  # questions whose right answer is that it was not said

    @property
    def transcript(self) -> str:
        return " ".join(text for _, text in self.lines)


@dataclass(frozen=True)
class Synth:
    """`count` exchanges of one split. Splits differ in voices (`test_voice`) or in texts (`test_text`) from `train`."""

    split: Literal["train", "test_voice", "test_text"] = "train"
    count: int = 100
    seed: int = 0
    long_lists: float = 0.0  # share of the exchanges that name five to eight items
    rate_low_wpm: int = 190
    rate_high_wpm: int = 240

    def __post_init__(self) -> None:
        if self.split not in ("train", "test_voice", "test_text"):
            raise ValueError(f"split must be train, test_voice or test_text, got {self.split!r}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if not 0 <= self.long_lists <= 1:
            raise ValueError(f"long_lists must be in 0..1, got {self.long_lists}")
        if not 80 <= self.rate_low_wpm <= self.rate_high_wpm <= 400:
            raise ValueError("rates must satisfy 80 <= rate_low_wpm <= rate_high_wpm <= 400")

    def __call__(self, samples: Iterable[Sample] = ()) -> Iterator[Sample]:
        """An exchange gives several samples with one transcript, consecutive, ids `{exchange}/{kind}`."""
        rng = random.Random(f"{self.split}:{self.seed}")
        seen: set[str] = set()
        for index in range(self.count):
            scene = self._new_scene(rng, seen)
            seen.add(scene.transcript)
            turns = self._voiced(scene, rng)
            for task in _tasks(scene, rng):
                yield Sample(
                    id=f"{self.split}-{index:05d}/{task.kind}",
                    instruction=task.instruction,
                    transcript=scene.transcript,
                    reference=task.answer,
                    tags={"kind": task.kind, "key": task.key, "split": self.split},
                    turns=turns,
                )

    def _new_scene(self, rng: random.Random, seen: set[str]) -> Scene:
        while True:
            is_long = self.long_lists > 0 and rng.random() < self.long_lists
            scene = _shopping(rng) if is_long else rng.choice(SCENES)(rng)
            if is_held_out(scene.transcript) == (self.split == "test_text") and scene.transcript not in seen:
                return scene

    def _voiced(self, scene: Scene, rng: random.Random) -> tuple[Turn, ...]:
        voices = HELD_OUT_VOICES if self.split == "test_voice" else TRAIN_VOICES
        speakers = list(dict.fromkeys(speaker for speaker, _ in scene.lines))
        cast = dict(zip(speakers, rng.sample(voices, len(speakers)), strict=True))
        manner = {s: (rng.randint(self.rate_low_wpm, self.rate_high_wpm), rng.randint(30, 70)) for s in speakers}
        return tuple(
            Turn(speaker, text, cast[speaker], *manner[speaker], pause_s=round(rng.uniform(0.05, 0.2), 3) if i else 0.0)
            for i, (speaker, text) in enumerate(scene.lines)
        )


def is_held_out(text: str) -> bool:
    """Whether a text is kept from training: a fixed tenth of all texts, by SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


def _tasks(scene: Scene, rng: random.Random) -> list[Task]:
    """Transcript, summary, two of the scene's questions, its items, and a question that it does not answer."""
    tasks = [Task("transcribe", TRANSCRIBE, scene.transcript, scene.transcript), scene.summary]
    tasks += rng.sample(scene.questions, min(2, len(scene.questions)))
    if scene.items:
        listed = _enumerated(scene.items)
        tasks.append(Task("list", LIST_ITEMS, f"The items are {listed}.", " ".join(scene.items)))
    tasks.append(Task("not_said", rng.choice(scene.unanswered), NOT_SAID, "not said"))
    return tasks


def _summary(answer: str, key: str) -> Task:
    return Task("summarize", SUMMARISE, answer, key)


def _purchase(rng: random.Random) -> Scene:
    name, place, day, verb = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS), rng.choice(["buy", "sell"])
    (first, second), (n, m) = rng.sample(ITEMS, 2), rng.choices(NUMBERS, k=2)
    text = f"{name} will {verb} {n} {first} and {m} {second} at the {place} on {day}."
    return Scene(
        (("A", text),),
        _summary(f"{name} will {verb} {first} and {second} on {day}.", f"{name} {first} {second}"),
        (first, second),
        (
            Task("who", f"Who will {verb} {first}?", f"{name} will {verb} {first}.", name),
            Task("what", f"What will {name} {verb}?", f"{name} will {verb} {first} and {second}.", f"{first} {second}"),
            Task("when", f"When will {name} {verb} {first}?", f"{name} will {verb} {first} on {day}.", day),
            Task("where", f"Where will {name} {verb} {first}?", f"{name} will {verb} {first} at the {place}.", place),
            Task("how_many", f"How many {first} will {name} {verb}?", f"{name} will {verb} {n} {first}.", n),
        ),
        (f"What color are the {first}?", f"How much do the {second} cost?", f"Who will go with {name}?"),
    )


def _request(rng: random.Random) -> Scene:
    name, place, time, item = rng.choice(NAMES), rng.choice(PLACES), rng.choice(TIMES), rng.choice(ITEMS)
    verb = rng.choice(["bring", "send", "find", "clean"])
    where = f"to the {place}" if verb in ("bring", "send") else f"at the {place}"
    return Scene(
        (("A", f"{name}, can you {verb} the {item} {where}?"), ("B", f"Yes, I will do it at {time}.")),
        _summary(f"{name} will {verb} the {item} {where} at {time}.", f"{name} {item} {place} {time}"),
        (item,),
        (
            Task("who", f"Who will {verb} the {item}?", f"{name} will {verb} the {item}.", name),
            Task("what", f"What will {name} {verb}?", f"{name} will {verb} the {item}.", item),
            Task("when", f"When will {name} {verb} the {item}?", f"{name} will {verb} the {item} at {time}.", time),
            Task("where", f"Where will {name} {verb} the {item}?", f"{name} will {verb} the {item} {where}.", place),
        ),
        (f"What color are the {item}?", f"How many {item} are there?", f"How much do the {item} cost?"),
    )


def _meeting(rng: random.Random) -> Scene:
    (first, second), place = rng.sample(NAMES, 2), rng.choice(PLACES)
    day, time = rng.choice(DAYS), rng.choice(TIMES)
    meet = f"{first} will meet {second}"
    return Scene(
        (("A", f"{meet} at the {place} on {day} at {time}."),),
        _summary(f"{meet} at the {place} on {day}.", f"{first} {second} {place} {day}"),
        (),
        (
            Task("who", f"Who will meet {second}?", f"{meet}.", first),
            Task("when", f"When will {first} meet {second}?", f"{meet} on {day} at {time}.", f"{day} {time}"),
            Task("where", f"Where will {first} meet {second}?", f"{meet} at the {place}.", place),
        ),
        (f"Why will {first} meet {second}?", f"What will {first} bring?", f"How will {second} travel?"),
    )


def _price(rng: random.Random) -> Scene:
    name, item, color, amount = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(COLORS), rng.choice(AMOUNTS)
    return Scene(
        (("A", f"How much are the {color} {item}?"), ("B", f"They cost {amount} dollars, {name}.")),
        _summary(f"The {color} {item} cost {amount} dollars.", f"{color} {item} {amount} dollars"),
        (item,),
        (
            Task(
                "how_much", f"How much do the {item} cost?", f"The {item} cost {amount} dollars.", f"{amount} dollars"
            ),
            Task("color", f"What color are the {item}?", f"The {item} are {color}.", color),
        ),
        (f"When will {name} buy the {item}?", f"Where are the {item}?", f"How many {item} are there?"),
    )


def _search(rng: random.Random) -> Scene:
    name, place, item, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(ITEMS), rng.choice(DAYS)
    number = rng.choice(NUMBERS)
    where = f"The {item} were at the {place}"
    return Scene(
        (
            ("A", f"Who has the {item}?"),
            ("B", f"{name} has {number} {item}."),
            ("C", f"They were at the {place} on {day}."),
        ),
        _summary(f"{name} has {number} {item} from the {place}.", f"{name} {number} {item}"),
        (item,),
        (
            Task("who", f"Who has the {item}?", f"{name} has the {item}.", name),
            Task("when", f"When were the {item} at the {place}?", f"{where} on {day}.", day),
            Task("where", f"Where were the {item}?", f"{where}.", place),
            Task("how_many", f"How many {item} does {name} have?", f"{name} has {number} {item}.", number),
        ),
        (f"What color are the {item}?", f"How much do the {item} cost?", f"When will {name} sell the {item}?"),
    )


def _shopping(rng: random.Random) -> Scene:
    """One long list: what a small student loses count of."""
    name, place, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS)
    items = tuple(rng.sample(ITEMS, rng.randint(5, 8)))
    listed = _enumerated(items)
    return Scene(
        (("A", f"What do we need from the {place}?"), ("B", f"{name} will buy {listed} on {day}.")),
        _summary(f"{name} will buy {listed}.", f"{name} {' '.join(items)}"),
        items,
        (
            Task("who", f"Who will buy {items[0]}?", f"{name} will buy {items[0]}.", name),
            Task("when", f"When will {name} buy {items[0]}?", f"{name} will buy {items[0]} on {day}.", day),
        ),
        (f"What color are the {items[0]}?", f"How much do the {items[1]} cost?", f"Who will go with {name}?"),
    )


def _enumerated(items: Sequence[str]) -> str:
    """As one says it: a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


SCENES = (_purchase, _request, _meeting, _price, _search)
