"""Replies that should say that something is not in the speech, and do not; and those that say so, and should not."""

import regex

from rlspeech.maths.found import NOTHING, Found, Reply
from rlspeech.maths.text import word_spans

# "That was not said", "It is not mentioned", "no information", "unknown", "cannot tell", and the like.
_SAYS_SO = regex.compile(
    r"""
    \b(?:
        (?:not|n't|never|isn't|wasn't|doesn't|didn't|aren't|weren't|hasn't)\s+
            (?:\w+\s+){0,2}?(?:sa(?:id|y)|mention\w*|told|tell\w*|stat\w+|specif\w+|provid\w+|giv\w+|know\w*|clear
            |answer\w*|talk\w*|discuss\w*|contain\w*|include\w*|heard|indicat\w*|reveal\w*|describ\w*|address\w*|cover\w*|there)
      | (?:can(?:not|'t)|could\s+not|couldn't|unable\s+to)\s+(?:be\s+)?(?:\w+\s+){0,2}?
            (?:tell|say|know\w*|determin\w+|answer\w*)
      | no\s+(?:\w+\s+){0,2}?(?:information|mention|answer|indication|details?|word|data|speech|one\s+says)
      | nobody\s+(?:says|said|mentions|mentioned|tells) | nothing\s+(?:is|was)\s+(?:said|mentioned)
      | unknown | unclear | unspecified | unmentioned | undisclosed
      | nicht\s+(?:\w+\s+){0,2}?(?:gesagt|erwähnt|genannt|bekannt|klar|angegeben|beantwort\w+|die\s+rede)
      | (?:keine|kein)\s+(?:\w+\s+)?(?:angabe\w*|information\w*|antwort|erwähnung) | unbekannt
      | (?:pas|jamais)\s+(?:\w+\s+){0,2}?(?:dit|mentionné\w*|précisé\w*|indiqué\w*|donné\w*|connu\w*|évoqué\w*)
      | (?:aucune|pas\s+d[\u2019']?)\s*(?:information|mention|indication|réponse) | inconnu\w*
      | no\s+se\s+(?:dice|menciona|dijo|mencionó|sabe|indica|especifica)
      | no\s+(?:hay|da)\s+(?:\w+\s+)?(?:información|mención)
      | desconocid\w+
      | non\s+(?:si\s+|è\s+(?:stato\s+)?|viene\s+)?(?:dic\w+|dett\w+|menzionat\w+|sa\b|indicat\w+|specificat\w+|not\w+)
      | nessuna\s+(?:informazione|menzione|indicazione) | sconosciut\w+
    )
  | 没有(?:提到|说|提及|讲) | 未(?:提到|提及|说明) | 不(?:知道|清楚) | 言及されて | わかりません
    """,
    regex.VERBOSE | regex.IGNORECASE,
)
_SILENCE = regex.compile(
    r"""\b(?:silen\w+|noise|inaudible|empty|nothing|no\s+(?:\w+\s+)?(?:speech|words?|voice|one|sound|audio)|nobody|unintelligible
    |stille|rauschen|nichts|niemand|silence|bruit|rien|personne|silencio|ruido|nada|nadie|silenzio|rumore|niente|nessuno)\b
    |沉默|噪音|没有""",
    regex.VERBOSE | regex.IGNORECASE,
)


LONGEST_REFUSAL = 12  # words: a longer reply that says so says more than that


def says_not_said(text: str) -> bool:
    """
    >>> says_not_said("That was not said."), says_not_said("Der Name wird nicht erwähnt."), says_not_said("It is red.")
    (True, True, False)
    """
    return _SAYS_SO.search(text) is not None


def not_said(reply: Reply) -> Found | None:
    """1 where what is asked is known not to be in the speech and the reply does not say so, else 0.

    None where it is not known: most samples. SQuAD 2.0's unanswerable questions (arXiv 1806.03822), of speech.
    """
    if reply.is_answerable is not False:
        return None
    if says_not_said(reply.text):
        return NOTHING
    return _whole(reply)


def refused(reply: Reply) -> Found | None:
    """1 where what is asked is known to be in the speech and the reply says no more than that it is not, else 0.

    The counterpart of `not_said`: a student that learns from pairs about unanswerable questions alone ends in refusing
    all. Over-refusal: Röttger et al., "XSTest", NAACL 2024 (arXiv 2308.01263).
    """
    if not reply.is_answerable:
        return None
    if not says_not_said(reply.text) or len(word_spans(reply.text)) > LONGEST_REFUSAL:
        return NOTHING
    return _whole(reply)


def silence(reply: Reply) -> Found | None:
    """1 where nothing is said in the audio and the reply has words that do not say so, else 0.

    None where there is speech, or it is not known whether there is. Whisper's hallucinations in silence: Koenecke et
    al., "Careless Whisper", FAccT 2024 (arXiv 2402.08021).
    """
    if reply.transcript is None or word_spans(reply.transcript):
        return None
    if not word_spans(reply.text) or says_not_said(reply.text) or _SILENCE.search(reply.text):
        return NOTHING
    return _whole(reply)


def _whole(reply: Reply) -> Found:
    spans = word_spans(reply.text)
    return Found(1.0, ((spans[0][0], spans[-1][1]),) if spans else ())
