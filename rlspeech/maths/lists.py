"""Lines and items of a list that say what one before them says."""

import re
from collections import Counter
from collections.abc import Iterator

import regex
from rapidfuzz import fuzz, process

from rlspeech.maths.clauses import ABBREVIATED
from rlspeech.maths.found import NOTHING, Found, Reply, Span, joined
from rlspeech.maths.heard import heard
from rlspeech.maths.phonetics import alike
from rlspeech.maths.quantities import language
from rlspeech.maths.small_words import is_small, negates
from rlspeech.maths.text import is_spaced, word_spans

ALIKE = 85.0  # of 100: two items whose words are then compared one by one
FEWEST_ITEMS = 3
SHORTEST_ITEM, SHORTEST_UNSPACED = 3, 2  # letters of an item
LONGEST_ITEM = 8  # words: what is longer is a clause
MOST_ITEMS = 400  # each is compared with all before it
ENUMERATOR = re.compile(r"\s*(?:[-*•–—]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])\s+")  # noqa: RUF001
_INLINE = re.compile(r"[;,、，；•](?!\d)|\s[-–—]\s|(?<!\S)\(?\d{1,2}[.)]\s")  # noqa: RUF001
_SENTENCE = regex.compile(
    rf"(?:[^.!?。！？\n]|(?<=\d)\.(?=\d)|(?<=(?<!\S)\(?\d\d?)\.(?=\s)|{ABBREVIATED})+"  # noqa: RUF001
)
_JOIN = re.compile(r"^(?:and|or|und|oder|sowie|et|ou|y|e|o|u|ed)\s+", re.IGNORECASE)
_LAST_JOIN = re.compile(r"\s(?:and|or|und|oder|sowie|et|ou|y|e|ed|o)\s", re.IGNORECASE)


def repeated_lines(reply: Reply) -> Found:
    """Of n lines, or items of a list within a sentence, that say what one before them says: n / (n + 1).

    But for case, what numbers them, "and", and the spelling of a word. Items that have no content, other digits, or
    stand in the transcript in the same row are none.

    >>> repeated_lines(Reply("1. The Crown\\n2. Lost\\n3. The Crown\\n4. The crown")).spans
    ((21, 33), (34, 46))
    >>> repeated_lines(Reply("The items are oranges, lamps, and oranges.")).score
    0.5
    """
    found = {
        span
        for items, is_inline in _lists(reply.text)
        for span in _again(reply, items[:MOST_ITEMS], is_inline=is_inline)
    }
    return Found(len(found) / (len(found) + 1), joined([*found])) if found else NOTHING


def _again(reply: Reply, items: list[Span], *, is_inline: bool) -> Iterator[Span]:
    lang = language(reply.lang)
    words = [_words(reply.text, span) for span in items]
    plain = [" ".join(one) for one in words]
    digits = [Counter(re.findall(r"\d+", one)) for one in plain]
    for place in range(1, len(items)):
        if not any(not is_small(word, lang) and not negates(word, lang) for word in words[place]):
            continue
        near = process.extract(plain[place], plain[:place], scorer=fuzz.ratio, score_cutoff=ALIKE, limit=None)
        same = [at for _, _, at in near if digits[at] == digits[place] and _are_alike(words[at], words[place])]
        same += [0] if is_inline and _leads_to(words[0], words[place]) else []
        if is_inline:  # a clause between them begins another list
            same = [at for at in same if all(len(one) <= LONGEST_ITEM for one in words[at + 1 : place])]
        row = reply.text[items[min(same)][0] : items[place][1]] if same else ""
        if same and not (reply.transcript and heard(reply).has_row(row)):
            yield items[place]


def _words(text: str, span: Span) -> list[str]:
    """Of an item, in lower case, without what numbers it or joins it to the one before."""
    item = ENUMERATOR.sub("", text[span[0] : span[1]], count=1)
    item = _JOIN.sub("", item.strip())
    return [item[start:end].lower() for start, end in word_spans(item)]


def _are_alike(one: list[str], other: list[str]) -> bool:
    return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))


def _leads_to(first: list[str], item: list[str]) -> bool:
    """The first item, with what leads to the list, ends as the item: "The items are oranges"."""
    return len(first) > len(item) > 0 and first[-len(item) :] == item


def _lists(text: str) -> Iterator[tuple[list[Span], bool]]:
    """The lines, and what stands between the separators of each sentence: of three items at least, with which it is."""
    lines = _pieces(text, 0, len(text), re.compile(r"\n"))
    if len(lines) >= FEWEST_ITEMS:
        yield lines, False
    for sentence in _SENTENCE.finditer(text):
        items = _pieces(text, *sentence.span(), _INLINE)
        if len(items) > 1:
            items[-1:] = _halves(text, items[-1])
        if len(items) >= FEWEST_ITEMS:
            yield items, True


def _halves(text: str, span: Span) -> list[Span]:
    """The last item of a sentence, cut where it joins two: "lamps and boxes"."""
    match = _LAST_JOIN.search(text, span[0] + 1, span[1])
    return [(span[0], match.start()), (match.end(), span[1])] if match else [span]


def _pieces(text: str, start: int, end: int, separator: re.Pattern[str]) -> list[Span]:
    """Without spaces and marks at their ends; those with too few letters are left out."""
    cuts = [edge for match in separator.finditer(text, start, end) for edge in match.span()]
    edges = [start, *cuts, end]
    shortest = SHORTEST_ITEM if is_spaced(text[start:end]) else SHORTEST_UNSPACED
    found = []
    for one, other in zip(edges[::2], edges[1::2], strict=True):
        piece = text[one:other]
        trimmed = (one + len(piece) - len(piece.lstrip()), one + len(piece.rstrip()))
        if sum(map(str.isalnum, piece)) >= shortest:
            found.append(trimmed)
    return found
