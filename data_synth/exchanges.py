"""Short spoken exchanges of one to three speakers, with instructions whose answers the grammar knows.

A text belongs to the held-out side or to the learning side by its own hash, so that no held-out text can occur in
training, whatever the seeds and counts are.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rlspeech.types import Sample, Turn

NAMES = "Anna Peter Mary John David Susan Laura Kevin Emma Oscar Helen Victor".split()
PLACES = "library market station museum bakery office garden school airport hotel park bank".split()
ITEMS = "apples lamps books chairs flowers pencils tickets bottles candles boxes oranges towels".split()
COLORS = "red green blue black white yellow".split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
AMOUNTS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TIMES = ["one", *NUMBERS, "noon"]
VERBS = {"buy": "buys", "bring": "brings", "sell": "sells", "find": "finds", "send": "sends", "clean": "cleans"}

TRAIN_VOICES = (
    "en-us en en-gb-x-rp en-us+f2 en-us+f3 en-us+m3 en-us+m1 en+f4 en+m2 en-us-nyc en-gb-scotland en-us+Alex".split()
)
HELD_OUT_VOICES = "en-us+f1 en+m5 en-us+Andy en-gb-x-rp+f5".split()
HELD_OUT_SHARE = 0.1  # of all texts
NOT_SAID = "Not said."

QUESTIONS = {
    "who": "Who will {verb} the {item}?",
    "who_meets": "Who will meet {name}?",
    "who_has": "Who has the {item}?",
    "what": "What will {name} {verb}?",
    "when": "On what day?",
    "time": "At what time?",
    "where": "Where?",
    "how_many": "How many {item}?",
    "price": "How much do the {item} cost?",
    "color": "What color are the {item}?",
}
TRANSCRIBE = "Transcribe the speech."
SUMMARISE = "Summarize in one sentence."
LIST_ITEMS = "List the items mentioned."


@dataclass(frozen=True)
class Scene:
    """What happens: the lines as (speaker, text), a summary, the items, and answers by kind of question."""

    lines: tuple[tuple[str, str], ...]
    summary: str
    items: tuple[str, ...]
    questions: tuple[tuple[str, str, str], ...]  # (kind, question, answer)

    @property
    def transcript(self) -> str:
        return " ".join(text for _, text in self.lines)


@dataclass(frozen=True)
class Synth:
    """`count` exchanges of one split. Splits differ in voices (`test_voice`) or in texts (`test_text`) from `train`."""

    split: Literal["train", "test_voice", "test_text"] = "train"
    count: int = 100
    seed: int = 0
    rate_low_wpm: int = 165
    rate_high_wpm: int = 215

    def __post_init__(self) -> None:
        if self.split not in ("train", "test_voice", "test_text"):
            raise ValueError(f"split must be train, test_voice or test_text, got {self.split!r}")
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
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
            for kind, instruction, answer in _tasks(scene, rng):
                yield Sample(
                    id=f"{self.split}-{index:05d}/{kind}",
                    instruction=instruction,
                    transcript=scene.transcript,
                    reference=answer,
                    tags={"kind": kind, "split": self.split},
                    turns=turns,
                )

    def _new_scene(self, rng: random.Random, seen: set[str]) -> Scene:
        while True:
            scene = rng.choice(SCENES)(rng)
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


def _tasks(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """Kind, instruction and answer of each task of a scene; two of its questions and one it does not answer."""
    tasks = [("transcribe", TRANSCRIBE, scene.transcript), ("summarize", SUMMARISE, scene.summary)]
    tasks += rng.sample(scene.questions, min(2, len(scene.questions)))
    if scene.items:
        tasks.append(("list", LIST_ITEMS, ", ".join(scene.items)))
    tasks.append(("not_said", _unanswered(scene, rng), NOT_SAID))
    return tasks


def _unanswered(scene: Scene, rng: random.Random) -> str:
    answered = {kind for kind, _, _ in scene.questions}
    said = scene.transcript.split()
    item = rng.choice(scene.items or [i for i in ITEMS if i not in said])
    options = [kind for kind in ("when", "time", "where", "how_many", "price", "color") if kind not in answered]
    return QUESTIONS[rng.choice(options)].format(item=item)


def _purchase(rng: random.Random) -> Scene:
    name, place, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS)
    (first, second), (n, m) = rng.sample(ITEMS, 2), rng.choices(NUMBERS, k=2)
    verb = rng.choice(["buy", "sell"])
    text = f"{name} will {verb} {n} {first} and {m} {second} at the {place} on {day}."
    return Scene(
        (("A", text),),
        f"{name} {VERBS[verb]} {first} and {second} on {day}.",
        (first, second),
        (
            ("who", QUESTIONS["who"].format(verb=verb, item=first), f"{name}."),
            ("what", QUESTIONS["what"].format(name=name, verb=verb), f"{first} and {second}.".capitalize()),
            ("when", QUESTIONS["when"], f"{day}."),
            ("where", QUESTIONS["where"], f"The {place}."),
            ("how_many", QUESTIONS["how_many"].format(item=first), f"{n}.".capitalize()),
        ),
    )


def _request(rng: random.Random) -> Scene:
    name, place, time, item = rng.choice(NAMES), rng.choice(PLACES), rng.choice(TIMES), rng.choice(ITEMS)
    verb = rng.choice(["bring", "send", "find", "clean"])
    where = f"to the {place}" if verb in ("bring", "send") else f"at the {place}"
    ask = f"{name}, can you {verb} the {item} {where}?"
    return Scene(
        (("A", ask), ("B", f"Yes, I will do it at {time}.")),
        f"{name} will {verb} the {item} {where} at {time}.",
        (item,),
        (
            ("who", QUESTIONS["who"].format(verb=verb, item=item), f"{name}."),
            ("what", QUESTIONS["what"].format(name=name, verb=verb), f"The {item}."),
            ("time", QUESTIONS["time"], f"{time}.".capitalize()),
            ("where", QUESTIONS["where"], f"The {place}."),
        ),
    )


def _meeting(rng: random.Random) -> Scene:
    (first, second), place = rng.sample(NAMES, 2), rng.choice(PLACES)
    day, time = rng.choice(DAYS), rng.choice(TIMES)
    return Scene(
        (("A", f"{first} will meet {second} at the {place} on {day} at {time}."),),
        f"{first} meets {second} at the {place} on {day}.",
        (),
        (
            ("who", QUESTIONS["who_meets"].format(name=second), f"{first}."),
            ("when", QUESTIONS["when"], f"{day}."),
            ("time", QUESTIONS["time"], f"{time}.".capitalize()),
            ("where", QUESTIONS["where"], f"The {place}."),
        ),
    )


def _price(rng: random.Random) -> Scene:
    name, item, color, amount = rng.choice(NAMES), rng.choice(ITEMS), rng.choice(COLORS), rng.choice(AMOUNTS)
    lines = (("A", f"How much are the {color} {item}?"), ("B", f"They cost {amount} dollars, {name}."))
    return Scene(
        lines,
        f"{name} asks for the {color} {item}, which cost {amount} dollars.",
        (item,),
        (
            ("price", QUESTIONS["price"].format(item=item), f"{amount} dollars.".capitalize()),
            ("color", QUESTIONS["color"].format(item=item), f"{color}.".capitalize()),
        ),
    )


def _search(rng: random.Random) -> Scene:
    name, place, item, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(ITEMS), rng.choice(DAYS)
    number = rng.choice(NUMBERS)
    return Scene(
        (
            ("A", f"Who has the {item}?"),
            ("B", f"{name} has {number} {item}."),
            ("C", f"They were at the {place} on {day}."),
        ),
        f"{name} has {number} {item} from the {place}.",
        (item,),
        (
            ("who", QUESTIONS["who_has"].format(item=item), f"{name}."),
            ("when", QUESTIONS["when"], f"{day}."),
            ("where", QUESTIONS["where"], f"The {place}."),
            ("how_many", QUESTIONS["how_many"].format(item=item), f"{number}.".capitalize()),
        ),
    )


SCENES = (_purchase, _request, _meeting, _price, _search)
