"""Signs of a degenerate reply, read off the RAW text: a normaliser would hide them."""

from rlspeech.maths.text import is_spaced, raw_words

LONGEST_PHRASE = 8  # words
LONGEST_PHRASE_UNSPACED = 24  # characters, in scripts without spaces between words
TIMES = 3  # repetitions in a row that make a loop
REPETITIVE = 0.3  # share of the words in loops that makes a reply repetitive


def repetition_share(text: str) -> float:
    """Share in 0..1 of the words that lie in an immediate loop: a phrase said at least TIMES times in a row.

    A phrase has 1 to LONGEST_PHRASE words. Case and the punctuation between words do not count; a last repetition that
    breaks off belongs to the loop. A text without words is judged by its other characters, spaces apart. Empty: 0.

    >>> repetition_share("How to Get Away - How to Get Away - How to Get Away")
    1.0
    >>> repetition_share("she said no no no and left")
    0.42857142857142855
    """
    tokens = raw_words(text) or list("".join(text.split()))
    if not tokens:
        return 0.0
    looped = [False] * len(tokens)
    longest = LONGEST_PHRASE if is_spaced(text) else LONGEST_PHRASE_UNSPACED
    for period in range(1, min(longest, len(tokens) // TIMES) + 1):
        _mark_loops(tokens, period, looped)
    return sum(looped) / len(tokens)


def is_repetitive(text: str) -> bool:
    """At least a share of REPETITIVE of the words lie in loops."""
    return repetition_share(text) >= REPETITIVE


def _mark_loops(tokens: list[str], period: int, looped: list[bool]) -> None:
    """Marks every run of tokens that equals itself shifted by `period` for TIMES - 1 periods or more. Linear."""
    start = period  # first token of the run that repeats the token one period before it
    for index in range(period, len(tokens) + 1):
        if index < len(tokens) and tokens[index] == tokens[index - period]:
            continue
        if index - start >= (TIMES - 1) * period:
            looped[start - period : index] = [True] * (index - start + period)
        start = index + 1
