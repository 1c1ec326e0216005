"""Do two words sound or look alike, so that the one may be a speech recogniser's spelling of the other?"""

import re
import unicodedata
from functools import lru_cache

from rapidfuzz import fuzz
from rapidfuzz.distance import Levenshtein

ALIKE = 82.0  # of 100, rapidfuzz's ratio: "Okonko" for "Okonkwo"
SHORTEST = 5  # letters: of shorter words a letter more or less makes another word
SHORTEST_NAME = 7  # letters of a name in which one may be another
STEM = 3  # letters at the beginning that two forms of a word have in common: "deciding", "decided"
STEM_SHARE = 0.5  # of the longer one

# Letters that sound alike in English and its neighbours, after Philips, "Hanging on the Metaphone" (Computer Language
# 7/12, 1990), with fewer rules.
_CONSONANTS = [
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
        (r"(?<!^)h|w", ""),
        (r"([^aeiouy])\1+", r"\1"),
    )
]
_SILENT_E = re.compile(r"(?:^[^aeiouy]*([aeiouy])([^aeiouy])|[aeiouy].*[^aeiouy])e$")
_VOWELS = re.compile(r"[aeiouyAEIOU]+")
_FIRST = {"ai": "A", "ay": "A", "ei": "A", "ey": "A", "ee": "E", "ea": "E", "ie": "E", "oo": "u", "ou": "u", "y": "i"}
_LAST = {"ee": "i", "ey": "i", "ie": "i", "ay": "A", "ei": "A", "y": "i"}
_LAST_LETTERS = """
s es ed d ing er ers or ors e y ies ied ly ily al ion ions ation ations ment ments ness n en em st t te ten ter tet
et end est is as os a o i ia é ée és ées ez ons ent ait aient ant ante re ir era erai ar ado ada ados adas ando
iendo ía ían ó ió iera ido ida idos idas an amos ere ire are ato ata ati ate ito uto ono ano ino iamo ou eu iu ando
endo"""
_ENDINGS = frozenset(_LAST_LETTERS.split())


@lru_cache(maxsize=65536)
def key(word: str) -> str:
    """The consonants of a word as they sound, with its first vowel, and its last where the word ends in it.

    Vowels between them are hardly heard. A capital is a long vowel, - says that there are more than one.

    >>> key("John"), key("Jon"), key("Kowalsky"), key("Kowalski"), key("Jack"), key("Jake")
    ('jon', 'jon', 'koflsk-i', 'koflsk-i', 'jak', 'jAk')
    """
    sound = unicodedata.normalize("NFKD", word.lower())
    for pattern, replacement in _CONSONANTS:
        sound = pattern.sub(replacement, sound)
    sound = _without_silent_e(sound)
    vowels = [*_VOWELS.finditer(sound)]
    if not vowels:
        return sound
    first, last = vowels[0], vowels[-1]
    head = sound[: first.start()] + _first_vowel(first[0])
    if first is last:
        return head + sound[first.end() :]
    between = _VOWELS.sub("", sound[first.end() : last.start()])
    is_heard = last.end() == len(sound)
    return f"{head}{between}-{_last_vowel(last[0]) if is_heard else sound[last.end() :]}"


def _without_silent_e(sound: str) -> str:
    """It makes the vowel before it long: "Mike" is not "Mick"."""
    match = _SILENT_E.search(sound)
    if match is None:
        return sound
    return sound[:-1] if match[1] is None else f"{sound[: match.start(1)]}{match[1].upper()}{match[2]}"


def _first_vowel(letters: str) -> str:
    return _FIRST.get(letters[:2]) or _FIRST.get(letters[0], letters[0])


def _last_vowel(letters: str) -> str:
    """At the end of a word the last letter tells: "Maria" ends in an a, "Marie" in an i."""
    return _LAST.get(letters) or _LAST.get(letters[-1], letters[-1])


def alike(one: str, other: str) -> bool:
    """The same word to the ear, or nearly the same letters.

    >>> alike("Kowalsky", "kowalski"), alike("Jon", "John"), alike("Emma", "Anna"), alike("Thursday", "Tuesday")
    (True, True, False, False)
    """
    one, other = one.lower(), other.lower()
    if one == other or key(one) == key(other) != "":
        return True
    return min(len(one), len(other)) >= SHORTEST and fuzz.ratio(one, other) > ALIKE


def same_name(one: str, other: str) -> bool:
    """As `alike`, for names, of which one letter makes another: only a long one may have one, and within it.

    >>> same_name("Catherine", "Katherine"), same_name("Okonko", "Okonkwo"), same_name("Iran", "Iraq")
    (True, True, False)
    """
    one, other = one.lower(), other.lower()
    if one == other or key(one) == key(other) != "":
        return True
    is_long = max(len(one), len(other)) >= SHORTEST_NAME and one[:1] == other[:1] and one[-1:] == other[-1:]
    return is_long and Levenshtein.distance(one, other, score_cutoff=1) == 1


def same_stem(one: str, other: str) -> bool:
    """Forms of one word: they begin with the same letters, and what is left of each is an ending or nothing.

    >>> same_stem("deciding", "decided"), same_stem("lamps", "lamp"), same_stem("market", "marry")
    (True, True, False)
    >>> same_stem("internet", "interview"), same_stem("planned", "plan")
    (False, True)
    """
    one, other = one.lower(), other.lower()
    common = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if common < max(STEM, STEM_SHARE * max(len(one), len(other))):
        return False
    return any(_are_endings(one[:place], one[place:], other[place:]) for place in (common, common - 1) if place >= STEM)


def _are_endings(stem: str, *rests: str) -> bool:
    """A consonant may be doubled before an ending: "planned"."""
    return all(not rest or rest in _ENDINGS or (rest[0] == stem[-1] and rest[1:] in _ENDINGS) for rest in rests)
