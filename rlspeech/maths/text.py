"""Normalised text and its words: what word error rates and answers are compared on.

English is normalised in Whisper's way (arXiv 2212.04356, appendix C) by the class that transformers ships, without the
British-to-American table, which does not come with it. Other languages lose case, punctuation and symbols, and keep
their marks: the vowel signs of Hindi or Thai are marks, and a word without them is another word.
"""

import unicodedata
from functools import lru_cache

import regex
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

_ENGLISH = EnglishTextNormalizer({})
NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_CHARACTER = rf"[{NO_SPACES}]\p{{M}}*"
_NORMALISED_WORD = regex.compile(rf"{_CHARACTER}|[^\s{NO_SPACES}]+")
_LETTER = rf"(?![{NO_SPACES}])[\p{{L}}\p{{N}}]\p{{M}}*"
_RAW_WORD = regex.compile(rf"{_CHARACTER}|(?:{_LETTER})+(?:'(?:{_LETTER})+)*")
_OWN_MARK = regex.compile(r"(?V1)[\p{M}--\p{Script=Inherited}]")  # a mark of one script, not an accent or a variant
_NOISE = regex.compile(r"(?:[\p{P}\p{S}\p{Cc}\p{Z}]\p{M}*)+")
_UNSEEN = regex.compile(r"\p{Cf}")  # joiners, soft hyphens, directions: within a word, and no part of it
_BRACKETS = regex.compile(r"[()\[\]{}<>]")
_APOSTROPHE = "\N{RIGHT SINGLE QUOTATION MARK}"
_O_PREFIX = regex.compile(r"\bo'(?=\p{L})")
_CACHED = 65536


@lru_cache(maxsize=_CACHED)
def normalise(text: str, lang: str = "en") -> str:
    """Text as it is compared: words and single spaces. What is left without a letter or a digit is dropped.

    Beside Whisper's normaliser, in English: what stands in brackets is text (Whisper drops it, so that a student that
    learns from a reward could write there what it likes), a typographic apostrophe is an apostrophe, and the o' of
    "o'clock" and "O'Neil" is not the digit 0 (Whisper reads "7 o'clock" as "70 clock"). A text with marks of a script
    of its own is normalised as that script whatever `lang` says.

    >>> normalise("It's twenty-one dollars, Mr. Smith.")
    'it is $21 mister smith'
    >>> normalise("नमस्ते, दुनिया!", "hi")
    'नमस्ते दुनिया'
    """
    text = _lower(text)
    if lang.lower().split("-")[0] != "en" or _OWN_MARK.search(text):
        return " ".join(_NOISE.sub(" ", unicodedata.normalize("NFKC", text)).split())
    normalised = _ENGLISH(_O_PREFIX.sub("o", _BRACKETS.sub(" ", text)))
    return " ".join(word for word in normalised.split() if any(map(str.isalnum, word)))


def words(text: str, lang: str = "en") -> list[str]:
    """Words of the normalised text. In scripts without spaces (Chinese, Japanese, Thai, ...) a character is a word.

    >>> words("Hello, world: 你好")
    ['hello', 'world', '你', '好']
    """
    return _NORMALISED_WORD.findall(normalise(text, lang))


def raw_words(text: str, *, cased: bool = False) -> list[str]:
    """Words of the text as it stands but for punctuation and, unless `cased`, case: nothing rewritten or left out.

    >>> raw_words("Uh, no - don't.")
    ['uh', 'no', "don't"]
    """
    return _RAW_WORD.findall(_plain(text) if cased else _lower(text))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of the text as it stands are, in characters.

    >>> word_spans("Uh, don't.")
    [(0, 2), (4, 9)]
    """
    return [match.span() for match in _RAW_WORD.finditer(text.replace(_APOSTROPHE, "'"))]


def is_spaced(text: str) -> bool:
    """False where the text has characters of a script that puts no spaces between words."""
    return regex.search(rf"[{NO_SPACES}]", text) is None


def _lower(text: str) -> str:
    return _plain(text).lower()


def _plain(text: str) -> str:
    return _UNSEEN.sub("", text).replace(_APOSTROPHE, "'")
