"""What a reply says to tell that something is not in the speech: "That was not said."."""

import regex

from rlspeech.maths.clauses import clauses
from rlspeech.maths.found import Span
from rlspeech.maths.text import is_spaced, word_spans

LONGEST_REFUSAL = 12  # words: what is longer and says so says more than that
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


def says_not_said(text: str) -> bool:
    """
    >>> says_not_said("That was not said."), says_not_said("Der Name wird nicht erwähnt."), says_not_said("It is red.")
    (True, True, False)
    """
    return _SAYS_SO.search(text) is not None


def is_short(text: str) -> bool:
    """At most LONGEST_REFUSAL words; twice as many characters, in scripts without spaces."""
    return len(word_spans(text)) <= LONGEST_REFUSAL * (1 if is_spaced(text) else 2)


def denials(text: str) -> list[Span]:
    """The clauses that say no more than that something is not said: what is said beside them is not excused by them.

    >>> denials("It was not said who, but pirates stole the gold.")
    [(0, 19)]
    """
    return [span for clause, span in clauses(text) if says_not_said(clause) and is_short(clause)]


def beside_denial(clause: str) -> str:
    """The clause without the words that say so.

    >>> beside_denial("Anna does not say hello")
    'Anna does  hello'
    """
    return _SAYS_SO.sub("", clause)
