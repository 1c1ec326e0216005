"""Do two words sound or look alike, so that the one may be a speech recogniser's spelling of the other?"""

import re
from functools import lru_cache

from rapidfuzz import fuzz

ALIKE = 82.0  # of 100, rapidfuzz's ratio: "Kowalsky" for "Kowalski"
SOUNDS_ALIKE = 60.0  # where the keys are equal: "Jon" for "John" passes, "Amy" for "Emma" does not
SHORTEST = 4  # letters: of shorter words a letter more or less makes another word
STEM = 5  # letters at the beginning that two forms of a word have in common: "deciding", "decided"

# Letters that sound alike in English and its neighbours, after Philips, "Hanging on the Metaphone" (Computer Language
# 7/12, 1990), with fewer rules.
_RULES = [
    (re.compile(pattern), sound)
    for pattern, sound in (
        (r"[^a-z]", ""),
        (r"^(?:kn|gn|pn)", "n"),
        (r"^wr", "r"),
        (r"^x", "s"),
        (r"mb$", "m"),
        (r"tch|sch|ch|sh|cz", "x"),
        (r"ph|v", "f"),
        (r"gh(?=[^aeiouy]|$)", ""),
        (r"dg(?=[eiy])|j", "j"),
        (r"c(?=[eiy])|z", "s"),
        (r"ck|c|q", "k"),
        (r"g(?=[eiy])", "j"),
        (r"th|dt", "t"),
        (r"x(?=t)", "ks"),
        (r"w(?=[aeiouy])", "f"),
        (r"[wh]", ""),
        (r"(.)\1+", r"\1"),
        (r"(?<=.)[aeiouy]", ""),
        (r"^[aeiouy]", "a"),
    )
]


@lru_cache(maxsize=65536)
def key(word: str) -> str:
    """The consonants of a word as they sound, its first vowel as a.

    >>> key("John"), key("Jon"), key("Kowalsky"), key("Anna")
    ('jn', 'jn', 'kflsk', 'an')
    """
    sound = word.lower()
    for pattern, replacement in _RULES:
        sound = pattern.sub(replacement, sound)
    return sound


def alike(one: str, other: str) -> bool:
    """The same word to the ear: nearly the same letters, or the same key and similar letters.

    >>> alike("Kowalsky", "kowalski"), alike("Jon", "John"), alike("Emma", "Anna"), alike("Thursday", "Tuesday")
    (True, True, False, False)
    """
    one, other = one.lower(), other.lower()
    if one == other:
        return True
    likeness = fuzz.ratio(one, other)
    if key(one) == key(other) != "":
        return likeness >= SOUNDS_ALIKE
    return min(len(one), len(other)) >= SHORTEST and likeness > ALIKE


def same_stem(one: str, other: str) -> bool:
    """Forms of one word, by their beginnings: all but an ending of up to four letters, or STEM letters.

    >>> same_stem("deciding", "decided"), same_stem("lamps", "lamp"), same_stem("market", "marry")
    (True, True, False)
    """
    one, other = one.lower(), other.lower()
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return common >= STEM or (common >= 3 and common >= max(len(one), len(other)) - 2)
