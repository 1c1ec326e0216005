"""Faults that are planted in clean replies, by the detector that should find them."""

import random
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from rlspeech.maths.detect import CHARACTERS_PER_S, GRACE, WORDS_PER_S
from rlspeech.maths.found import Reply
from rlspeech.maths.quantities import dates, number_values_in, numbers
from rlspeech.maths.small_words import is_small

NAMES = {
    "en": ["Tom", "Lucy", "Henry", "Grace", "Walker", "Oxford", "Norway", "Fatima"],
    "fr": ["Camille", "Julien", "Lyon", "Moreau"],
    "es": ["Pablo", "Lucía", "Bilbao", "Moreno"],
    "it": ["Paolo", "Chiara", "Napoli", "Ricci"],
    "pt": ["Pedro", "Beatriz", "Lisboa", "Moreira"],
}
NEAR = {
    "Anna": "Hannah", "Emma": "Anna", "Helen": "Ellen", "Peter": "Petra", "Susan": "Suzanne", "Victor": "Vincent",
    "Marie": "Maria", "Mary": "Maria", "David": "Daniel", "Oscar": "Oliver", "Ingrid": "Astrid", "Carmen": "Carla",
    "Javier": "Xavier", "Giulia": "Giulio", "Marco": "Mario", "Gérard": "Bernard", "Lisbon": "Dublin",
    "Boston": "Austin", "Denver": "Dover", "Galway": "Galloway", "Accra": "Ankara", "Leeds": "Leicester",
    "Nantes": "Nancy", "Sevilla": "Segovia", "Alicante": "Albacete", "Torino": "Trento", "Kowalski": "Kowalczyk",
    "Miller": "Muller", "Okonkwo": "Okafor", "Solheim": "Sondheim", "Ortega": "Ortiz", "Lefèvre": "Lefort",
    "Manchester": "Winchester", "Stockport": "Southport", "John": "Joan", "Tim": "Tom", "Tom": "Tim", "Iran": "Iraq",
    "Iraq": "Iran", "Lisa": "Louise", "Martin": "Martha", "Oliver": "Olivia", "Christina": "Christopher",
    "Jack": "Jake", "Paul": "Paula", "Austria": "Australia", "Slovenia": "Slovakia", "Harry": "Henry",
}  # fmt: skip
LISTS = {
    "en": ("The items are", "and"),
    "de": ("Genannt werden", "und"),
    "fr": ("On cite", "et"),
    "es": ("Se citan", "y"),
    "it": ("Si citano", "e"),
    "pt": ("Citam-se", "e"),
}


def _looped(reply: Reply, other: dict, rng: random.Random) -> Reply:
    phrase = " ".join(reply.text.split()[: rng.randint(1, 5)]).strip(".,;:!?")
    mark = rng.choice([" ", " - ", ", ", ". "])
    return replace(reply, text=f"{reply.text} {mark.join([phrase] * rng.randint(6, 12))}")


def _stammered(reply: Reply, other: dict, rng: random.Random) -> Reply:
    piece = rng.choice(["ha", "la", "na-", "o", "ho ho", "哈"])
    return replace(reply, text=f"{reply.text} {piece * rng.randint(20, 40)}")


def _doubled(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    """A phrase twice, as the reply ends."""
    if reply.lang == "zh":
        return None
    words = reply.text.rstrip(".!?").replace("\n", " ").split()
    size = rng.randint(3, 7)
    if len(words) < size + 1:
        return None
    return replace(reply, text=" ".join([*words, rng.choice(["-", "–"]), *words[-size:]]))  # noqa: RUF001


def _listed(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    items = re.split(r"\n|, ", reply.text.rstrip("."))
    if len(items) < 3 or any(". " in item for item in items if "\n" not in reply.text):
        return None
    again = [
        item.rstrip(".") if rng.random() < 0.5 else item.upper()
        for item in rng.choices(items, k=rng.randint(2, 2 * len(items)))
    ]
    return replace(reply, text=("\n" if "\n" in reply.text else ", ").join([*items, *again]))


def _listed_once(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    """One item again, in a list within a sentence or of lines."""
    lead, join = LISTS.get(reply.lang, ("", ""))
    words = {word for word in re.findall(r"[^\W\d_]{5,}", reply.text) if not is_small(word.lower(), reply.lang)}
    if not lead or len(words) < 3:
        return None
    items = rng.sample(sorted(words), 3)
    items.insert(rng.randint(1, 3), rng.choice(items))
    if rng.random() < 0.5:
        return replace(reply, text="\n".join(f"{place}. {item}" for place, item in enumerate(items, 1)))
    return replace(reply, text=f"{lead} {', '.join(items[:-1])}, {join} {items[-1]}.")


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
    """Another name of the language."""
    return _with_name(reply, rng, lambda name: rng.choice(NAMES[reply.lang]))


def _nearly_renamed(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    """A name that is near."""
    return _with_name(reply, rng, NEAR.get)


def _with_name(reply: Reply, rng: random.Random, new: Callable[[str], str | None]) -> Reply | None:
    if reply.lang not in NAMES:
        return None
    found = [m for m in re.finditer(r"(?<=\w )[A-Z]\w+", reply.text) if not dates(m[0], reply.lang)]
    for match in rng.sample(found, len(found)):
        name = new(match[0])
        if name is not None and name not in (reply.transcript or ""):
            return replace(reply, text=reply.text[: match.start()] + name + reply.text[match.end() :])
    return None


def _listed_names(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    """A list with a name that nobody says."""
    names = [m[0] for m in re.finditer(r"(?<=\w )[A-Z]\w+", reply.text) if not dates(m[0], reply.lang)]
    unsaid = [name for name in NAMES.get(reply.lang, []) if name not in (reply.transcript or "")]
    if not unsaid or not names:
        return None
    items = [*names[:3], rng.choice(unsaid)]
    rng.shuffle(items)
    return replace(reply, text="\n".join(f"{place}. {item}" for place, item in enumerate(items, 1)))


def _miscounted(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    return _with_number(reply, rng, lambda value: rng.randint(601, 699))


def _misheard(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    """13 for 30 and 30 for 13, of others one more or less, or two digits in the wrong order."""

    def near(value: int) -> int:
        teens = {10 + unit: 10 * unit for unit in range(3, 10)}
        known = teens | {ten: teen for teen, ten in teens.items()}
        turned = int(str(value)[::-1])
        return known.get(value) or (turned if turned != value and value > 12 else value + rng.choice([1, 2, 10]))

    return _with_number(reply, rng, near)


def _with_number(reply: Reply, rng: random.Random, new: Callable[[int], int]) -> Reply | None:
    """One of the reply's whole numbers as another one, in digits."""
    found = [one for one in numbers(reply.text, reply.lang) if not re.match(r"\d+\.\s", reply.text[one.span[0] :])]
    found = [one for one in found if isinstance(one.value, Fraction) and one.value.denominator == 1 and one.value > 0]
    if not found:
        return None
    one = rng.choice(found)
    value = new(int(Fraction(one.value)))
    if value in number_values_in(reply.transcript or "", reply.lang):
        return None
    return replace(reply, text=f"{reply.text[: one.span[0]]}{value}{reply.text[one.span[1] :]}")


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
    opens, closes = rng.choice(['""', "“”", "''", "‘’", "«»"])  # noqa: RUF001
    return replace(reply, text=f"{reply.text} {opens}{' '.join(other['said'].split()[:6])}{closes}")


def _invented(reply: Reply, other: dict, rng: random.Random) -> Reply | None:
    if other["said"] == reply.transcript:
        return None
    return replace(reply, text=f"{rng.choice(other['clean'][-2:])} {other['clean'][0]}")


PLANTS: dict[str, tuple[Callable[[Reply, dict, random.Random], Reply | None], ...]] = {
    "word_loop": (_looped, _doubled),
    "character_loop": (_stammered,),
    "repeated_lines": (_listed, _listed_once),
    "compression": (_said_again,),
    "runaway": (_run_away,),
    "cut_loop": (_cut,),
    "names": (_renamed, _nearly_renamed, _listed_names),
    "numbers": (_miscounted, _misheard),
    "dates": (_misdated,),
    "quotes": (_misquoted,),
    "content": (_invented,),
}
ALSO = {"cut_loop": ("cut_loop", "word_loop")}  # faults that are two
