"""Signs of a degenerate reply, read off the RAW text: a normaliser would hide them."""

import zlib
from dataclasses import replace
from itertools import pairwise

from rlspeech.maths.found import NOTHING, Found, Reply, Span, joined
from rlspeech.maths.heard import heard
from rlspeech.maths.text import is_spaced, word_spans

LONGEST_PHRASE = 8  # words
LONGEST_PHRASE_UNSPACED = 24  # characters, in scripts without spaces between words
LONGEST_PERIOD = 24  # characters of a loop within words
TIMES = 3  # repetitions in a row that make a loop
LAST_TIMES = 2  # that make one where they end the text, of a phrase of so many words, or characters of such a script
SHORTEST_LAST, SHORTEST_LAST_UNSPACED, LONGEST_LAST = 3, 6, 24
TIMES_OF_CHARACTERS = 5
REPETITIVE = 0.3  # share of the words in loops that makes a reply repetitive

FEWEST_BYTES = 80  # shorter texts compress badly, whatever they say
WORDS_PER_S, CHARACTERS_PER_S = 4.0, 8.0  # of fast speech; characters in scripts without spaces
GRACE = 15  # words that a reply may always have


def repetition_share(text: str) -> float:
    """Share in 0..1 of the words that lie in an immediate loop: a phrase said at least TIMES times in a row.

    A phrase has 1 to LONGEST_PHRASE words. Case and the punctuation between words do not count; a last repetition that
    breaks off belongs to the loop. A text without words is judged by its other characters, spaces apart. Empty: 0.

    >>> repetition_share("How to Get Away - How to Get Away - How to Get Away")
    1.0
    >>> repetition_share("she said no no no and left")
    0.42857142857142855
    """
    _, _, looped = _loops(text)
    return sum(looped) / len(looped) if looped else 0.0


def is_repetitive(text: str) -> bool:
    """At least a share of REPETITIVE of the words lie in loops."""
    return repetition_share(text) >= REPETITIVE


def word_loop(reply: Reply) -> Found:
    """Phrases that are said again and again at once: `repetition_share`, in which a phrase of SHORTEST_LAST to
    LONGEST_LAST words that ends the reply needs LAST_TIMES alone. What the transcript says as often is none. The neural
    text degeneration of Holtzman et al. (arXiv 1904.09751), across punctuation.

    >>> word_loop(Reply("Yes. How to Get Away - How to Get Away - How to")).spans
    ((5, 47),)
    """
    spans, tokens, looped = _loops(reply.text)
    _mark_ends(tokens, looped, is_plain=is_spaced(reply.text), is_cut=not reply.ended)
    if any(looped) and reply.transcript:
        _unmark_said(reply, spans, looped)
    found = [span for span, is_looped in zip(spans, looped, strict=True) if is_looped]
    return Found(sum(looped) / len(looped), _runs(spans, looped)) if found else NOTHING


def _unmark_said(reply: Reply, spans: list[Span], looped: list[bool]) -> None:
    """A run of looped words that the transcript has, too, word by word, is read, and no loop."""
    for start, end in _stretches(looped):
        if heard(reply).has_row(reply.text[spans[start][0] : spans[end - 1][1]]):
            looped[start:end] = [False] * (end - start)


def _stretches(looped: list[bool]) -> list[Span]:
    edges = [i for i, (a, b) in enumerate(pairwise([False, *looped, False])) if a != b]
    return [*zip(edges[::2], edges[1::2], strict=True)]


def character_loop(reply: Reply) -> Found:
    """Share of the characters in loops of 1 to LONGEST_PERIOD characters, TIMES_OF_CHARACTERS in a row, with a letter.

    For what has no words to compare: "hahahaha", "na-na-na-na", a script without spaces.

    >>> character_loop(Reply("hahahahaha yes")).spans
    ((0, 10),)
    """
    text = "".join(low if len(low := character.lower()) == 1 else character for character in reply.text)
    looped = [False] * len(text)
    for period in range(1, min(LONGEST_PERIOD, len(text) // TIMES_OF_CHARACTERS) + 1):
        _mark_loops(text, period, looped, times=TIMES_OF_CHARACTERS)
    spans = [span for span in _runs([(i, i + 1) for i in range(len(text))], looped) if _has_letter(text, span)]
    return Found(sum(end - start for start, end in spans) / len(text), tuple(spans)) if spans else NOTHING


def compression(reply: Reply) -> Found:
    """How much shorter zlib makes the text than it makes prose of that length: 1 - ratio / ratio of prose, at least 0.

    Whisper (arXiv 2212.04356, 4.5) decodes anew where a text compresses too well. The ratio of prose at n bytes is
    fitted to English: see `prose_ratio`. Texts below FEWEST_BYTES, and those that the transcript has, have 0.
    """
    raw = reply.text.encode("utf-8", "surrogatepass")
    if len(raw) < FEWEST_BYTES or (reply.transcript and heard(reply).has_row(reply.text)):
        return NOTHING
    score = 1 - len(zlib.compress(raw, 9)) / len(raw) / prose_ratio(len(raw))
    return Found(score, ((0, len(reply.text)),)) if score > 0 else NOTHING


def prose_ratio(size: int) -> float:
    """Compressed over raw bytes of English prose of so many bytes: LibriSpeech's transcripts, within 0.02 from 80 to
    5,000 bytes (tests/test_detectors.py).
    """
    return 0.461 + 10.65 / size**0.74


def runaway(reply: Reply) -> Found | None:
    """A reply with more words than can be said in that time: 1 - most / words, at least 0.

    Most: WORDS_PER_S (in scripts without spaces CHARACTERS_PER_S characters) and GRACE. None where the time is unknown.
    """
    if reply.audio_s is None:
        return None
    spans = word_spans(reply.text)
    most = GRACE + reply.audio_s * (WORDS_PER_S if is_spaced(reply.text) else CHARACTERS_PER_S)
    if len(spans) <= most:
        return NOTHING
    return Found(1 - most / len(spans), ((spans[int(most)][0], spans[-1][1]),))


def cut_loop(reply: Reply) -> Found:
    """1 where the reply was cut off by the length limit within a loop of words or characters, else 0.

    The last word may be cut off, too.
    """
    if reply.ended:
        return NOTHING
    words = word_spans(reply.text)
    for end in [len(reply.text), *(start for start, _ in words[-1:])]:
        part = replace(reply, text=reply.text[:end])
        for found in (word_loop(part), character_loop(part)):
            if found.spans and not word_spans(part.text[found.spans[-1][1] :]):
                return Found(1.0, found.spans[-1:])
    return NOTHING


def _loops(text: str) -> tuple[list[Span], list[str], list[bool]]:
    """The words (where there are none, the characters that are no spaces), and which of them lie in loops."""
    spans = word_spans(text) or [(i, i + 1) for i, character in enumerate(text) if not character.isspace()]
    tokens = [text[start:end].lower() for start, end in spans]
    looped = [False] * len(tokens)
    longest = LONGEST_PHRASE if is_spaced(text) else LONGEST_PHRASE_UNSPACED
    for period in range(1, min(longest, len(tokens) // TIMES) + 1):
        _mark_loops(tokens, period, looped)
    return spans, tokens, looped


def _mark_ends(tokens: list[str], looped: list[bool], *, is_plain: bool, is_cut: bool) -> None:
    """Marks the end where it repeats what is one period before it; of a reply that was cut off, the last word may be
    the beginning of one. Figures alone are no phrase: "555 123 99 555 123 99" is a number.
    """
    shortest = SHORTEST_LAST if is_plain else SHORTEST_LAST_UNSPACED
    for period in range(shortest, min(LONGEST_LAST, len(tokens) // LAST_TIMES) + 1):
        whole = [*tokens]
        if is_cut and tokens[-1 - period].startswith(tokens[-1]):
            whole[-1] = tokens[-1 - period]
        start = len(whole)
        while start > period and whole[start - 1] == whole[start - 1 - period]:
            start -= 1
        has_words = any(not token.isdigit() for token in whole[-period:])
        if len(whole) - start >= (LAST_TIMES - 1) * period and has_words:
            looped[start - period :] = [True] * (len(whole) - start + period)


def _mark_loops(tokens: list[str] | str, period: int, looped: list[bool], *, times: int = TIMES) -> None:
    """Marks every run of tokens that equals itself shifted by `period` for `times` - 1 periods or more. Linear."""
    start = period  # first token of the run that repeats the token one period before it
    for index in range(period, len(tokens) + 1):
        if index < len(tokens) and tokens[index] == tokens[index - period]:
            continue
        if index - start >= (times - 1) * period:
            looped[start - period : index] = [True] * (index - start + period)
        start = index + 1


def _runs(spans: list[Span], looped: list[bool]) -> tuple[Span, ...]:
    """From the first to the last of each run of tokens in loops, what stands between them included."""
    found: list[Span] = []
    goes_on = False
    for (start, end), is_looped in zip(spans, looped, strict=True):
        if is_looped and goes_on:
            found[-1] = (found[-1][0], end)
        elif is_looped:
            found.append((start, end))
        goes_on = is_looped
    return joined(found)


def _has_letter(text: str, span: Span) -> bool:
    return any(character.isalnum() for character in text[span[0] : span[1]])
