"""Replies that should say that something is not in the speech, and do not; and those that say so, and should not."""

import regex

from rlspeech.maths.clauses import clauses
from rlspeech.maths.denials import beside_denial, is_short, says_not_said
from rlspeech.maths.found import NOTHING, Found, Reply
from rlspeech.maths.heard import Heard, has_speech, heard, is_speech, texts, without_sounds
from rlspeech.maths.quantities import language, numbers
from rlspeech.maths.small_words import is_small, negates
from rlspeech.maths.support import content
from rlspeech.maths.text import is_spaced, word_spans

INVENTED = 0.5  # share of the content words of what a reply says beside a refusal: more is an answer of its own
THE_SAME = 0.75  # share of the words of a clause that the speech has in one clause
MOST_BESIDE_SILENCE = 1  # words with content that no sound is called by
_SILENCE = regex.compile(
    r"""\b(?:silen\w+|noise|inaudible|empty|nothing|no\s+(?:\w+\s+)?(?:speech|words?|voice|one|sound|audio)|nobody|unintelligible
    |stille|rauschen|nichts|niemand|silence|bruit|rien|personne|silencio|ruido|nada|nadie|silenzio|rumore|niente|nessuno)\b
    |沉默|噪音|没有""",
    regex.VERBOSE | regex.IGNORECASE,
)

_OF_SOUNDS = """
silence silent noise noises noisy loud quiet inaudible audible background static hum humming hiss hissing buzzing
buzz music musical playing plays sound sounds heard hear hearing voice voices word words spoken empty blank contain
contains contained unintelligible clear clearly unable determine determined answered detected present available
information provided wind rain traffic clip file engine car door footsteps birds bird dog barking bark laughter
laughing clapping applause crying cough coughing breathing knocking ringing phone beep beeping only just"""
_SOUNDS = frozenset(_OF_SOUNDS.split())


def not_said(reply: Reply) -> Found | None:
    """1 where what is asked is known not to be in the speech and the reply does not say so, else 0.

    Also where it says so and tells beside it what nobody says. None where it is not known: most samples. SQuAD 2.0's
    unanswerable questions (arXiv 1806.03822), of speech.
    """
    if reply.is_answerable is not False:
        return None
    parts = [clause for clause, _ in clauses(reply.text)]
    if not any(map(says_not_said, parts)):
        return _whole(reply)
    if has_speech(reply):
        beside = content(reply)
        return _whole(reply) if beside is not None and beside.score > INVENTED else NOTHING
    return NOTHING if all(map(says_not_said, parts)) or is_short(reply.text) else _whole(reply)


def refused(reply: Reply) -> Found | None:
    """1 where what is asked is known to be in the speech and the reply says no more than that it is not, else 0.

    What the speech itself says in such words ("She doesn't know.") is no refusal. The counterpart of `not_said`: a
    student that learns from pairs about unanswerable questions alone ends in refusing all. Over-refusal: Röttger et
    al., "XSTest", NAACL 2024 (arXiv 2308.01263).
    """
    if not reply.is_answerable:
        return None
    denying = [clause for clause, _ in clauses(reply.text) if says_not_said(clause)]
    if not denying or not is_short(reply.text):
        return NOTHING
    if has_speech(reply) and all(_is_said(clause, heard(reply)) for clause in denying):
        return NOTHING
    return _whole(reply)


def _is_said(clause: str, said: Heard) -> bool:
    """The speech has a clause that denies, too, with the clause's content; of one without content, with its words.

    What the question asks about is no content: a refusal names it.
    """
    asked = {*texts(said.instruction)}
    own = [word for word in texts(beside_denial(clause)) if not is_small(word, said.lang) and word not in asked]
    own = [word for word in own if not negates(word, said.lang)]
    return any(
        _has(other.words, own or texts(clause), said.lang) for other in said.clauses if says_not_said(other.text)
    )


def _has(others: tuple[str, ...], words: tuple[str, ...] | list[str], lang: str) -> bool:
    is_negated = any(negates(other, lang) for other in others)
    found = sum(word in others or (is_negated and negates(word, lang)) for word in words)
    return found >= THE_SAME * len(words)


def silence(reply: Reply) -> Found | None:
    """1 where nothing is said in the audio and the reply tells of more than silence or sounds, else 0.

    A transcript or a reply of sounds alone, "[noise]", has no speech. None where there is speech, or it is not known
    whether there is. Whisper's hallucinations in silence: Koenecke et al., "Careless Whisper", FAccT 2024
    (arXiv 2402.08021).

    >>> silence(Reply("There was a noise and then Kevin shouted.", transcript="[noise]")).score
    1.0
    """
    if reply.transcript is None or is_speech(reply.transcript):
        return None
    text = without_sounds(reply.text)
    if not word_spans(text) or ((says_not_said(text) or _SILENCE.search(text)) and _tells_of_sounds(text, reply)):
        return NOTHING
    return _whole(reply)


def _tells_of_sounds(text: str, reply: Reply) -> bool:
    lang = language(reply.lang)
    if not is_spaced(text):
        return is_short(text)
    spelt = [text[start:end] for start, end in word_spans(text)]
    allowed = _SOUNDS | {*texts(reply.instruction)}
    own = [word for word in spelt if word.lower() not in allowed and not _SILENCE.fullmatch(word)]
    for known in {lang, "en"}:  # many answer in English whatever is asked
        own = [word for word in own if not is_small(word.lower(), known) and not negates(word.lower(), known)]
    names = [word for word in own if word[0].isupper() and word != spelt[0] and lang != "de"]
    beside = [word for word in texts(beside_denial(" ".join(own)))]
    return not names and not numbers(text, lang) and len(beside) <= MOST_BESIDE_SILENCE


def _whole(reply: Reply) -> Found:
    spans = word_spans(reply.text)
    return Found(1.0, ((spans[0][0], spans[-1][1]),) if spans else ())
