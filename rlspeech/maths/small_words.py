"""Words that carry no content, by language: what a reply may say without the speech saying it."""

import re
from functools import lru_cache

_EN = """
a an the this that these those and or but if then than so as of at by for from in into on onto to with without about
over under after before between through during up down out off again once here there where when why how what which
who whom whose i you he she it we they me him her us them my your his its our their mine yours hers ours theirs is
am are was were be been being do does did doing done have has had having will would shall should can could may might
must not no nor never yes only own same other another some any each every both all few more most much many such very
too also just even still yet ever because while until since although though however therefore thus one ones someone
something anyone anything everyone everything nobody nothing none it's that's there's don't doesn't didn't isn't
wasn't aren't weren't can't couldn't won't wouldn't get gets got give gives given make makes made go goes going went
come comes came take takes taken say says said saying tell tells told ask asks asked talk talks talked speak speaks
speaking spoke spoken mention mentions mentioned state states stated speaker speakers speech audio recording
conversation transcript person people thing things called name named answer question according well like please okay
ok"""
_DE = """
der die das den dem des ein eine einen einem einer eines und oder aber wenn dann als so wie von bei für aus in im
ins auf an am zu zum zur mit ohne über unter nach vor zwischen durch während hier da dort wo wann warum was welche
welcher welches wer wen wem wessen ich du er sie es wir ihr mich dich ihn uns euch ihnen mein dein sein unser euer
ist bin bist sind seid war waren wird werden wurde wurden sein haben hat hatte habe hatten kann können könnte muss
müssen soll sollen will wollen darf nicht kein keine keinen nie nein ja nur auch noch schon sehr mehr viel viele
alle jeder jede jedes einige andere anderer man sich dass weil obwohl sondern denn doch mal sagt sagte sagen gesagt
fragt fragte erzählt erwähnt sprecher sprecherin rede gespräch aufnahme frage antwort person leute heißt"""
_FR = """
le la les l' un une des du de d' et ou mais si alors que qu' qui quoi dont où quand comment pourquoi comme par pour
avec sans sur sous dans en au aux chez vers entre pendant après avant je j' tu il elle on nous vous ils elles me te
se lui leur leurs mon ma mes ton ta tes son sa ses notre nos votre vos ce cet cette ces c' est suis es sommes êtes
sont était étaient été être a ai as avons avez ont avait avaient avoir fait faire va vont peut peuvent doit ne n'
pas non jamais rien aucun aucune oui aussi très plus moins encore déjà tout toute tous toutes autre autres même dit
disent dire demande parle parlent personne personnes enregistrement conversation question réponse orateur s'appelle"""
_ES = """
el la los las un una unos unas y e o u pero si entonces que quien quienes cual donde cuando como por para con sin
sobre bajo en de del al a desde hasta entre durante después antes yo tú él ella usted nosotros ustedes ellos ellas
me te se lo le les nos mi mis tu tus su sus nuestro este esta estos estas ese esa eso es soy eres somos son era eran
ser estar está están estaba fue fueron ha he has han había haber hay tiene tienen hace puede pueden debe no ni nunca
nada ningún ninguna sí también muy más menos ya todo toda todos todas otro otra otros mismo dice dicen decir dijo
pregunta habla hablan persona personas grabación conversación respuesta hablante llama"""
_IT = """
il lo la i gli le l' un uno una e ed o ma se allora che chi cui quale dove quando come perché per con senza su sotto
in di del della dei delle a al alla ai da dal dalla nel nella tra fra durante dopo prima io tu lui lei noi voi loro
mi ti si ci vi ne mio tuo suo nostro vostro questo questa questi queste quello quella è sono sei siamo siete era
erano essere stato ha ho hai abbiamo hanno aveva avere c'è fa può possono deve non né mai niente nulla nessuno sì
anche molto più meno già ancora tutto tutta tutti altre altro altri stesso dice dicono dire detto chiede parla
parlano persona persone registrazione conversazione domanda risposta oratore chiama"""
_PT = """
o a os as um uma uns umas e ou mas se então que quem qual quais onde quando como por para com sem sobre de do da dos
das em no na nos nas ao à aos às pelo pela entre até desde durante depois antes eu tu você ele ela nós vocês eles elas
me te lhe lhes meu minha teu tua seu sua seus suas nosso nossa este esta isto esse essa isso aquele aquela é és são sou
somos era eram ser estar está estão estava foi foram tem têm tinha ter há haver faz pode podem deve não nem nunca nada
ninguém nenhum nenhuma sim também muito mais menos já ainda todo toda todos todas outro outra outros mesmo diz dizem
disse dizer perguntar fala falam pessoa pessoas gravação conversa pergunta resposta chama"""
_WORDS = {"en": _EN, "de": _DE, "fr": _FR, "es": _ES, "it": _IT, "pt": _PT}
SHORT = 3  # letters: in other languages words of so many carry no content

NEGATIONS = {
    "en": "not no never none nobody nothing neither cannot",
    "de": "nicht kein keine keinen keinem keiner keines nie niemals niemand nichts weder",
    "fr": "ne n' pas jamais rien aucun aucune",
    "es": "no nunca jamás nada nadie ningún ninguno ninguna tampoco",
    "it": "non mai niente nulla nessuno nessuna",
    "pt": "não nunca jamais nada nem ninguém nenhum nenhuma tampouco",
}
_CHINESE_NEGATIONS = re.compile(
    r"(不过|不但|不仅|不同|不错|不久|差不多|非常|无论|特别|别人|别的|区别|个别|分别|性别|级别|告别|未来|(.)[不没]\2|有没有)"
    r"|没有|[不没未无非勿别]"
)
UNSPACED_NEGATIONS = {"zh": _CHINESE_NEGATIONS, "yue": _CHINESE_NEGATIONS}


@lru_cache(maxsize=16)
def _small(lang: str) -> frozenset[str]:
    return frozenset(_WORDS.get(lang, "").split())


@lru_cache(maxsize=16)
def _negations(lang: str) -> frozenset[str]:
    return frozenset(NEGATIONS.get(lang, "").split())


def is_small(word: str, lang: str) -> bool:
    """Of a lower-case word: it carries no content.

    >>> is_small("with", "en"), is_small("lamp", "en"), is_small("foo", "sv")
    (True, False, True)
    """
    return word in _small(lang) if lang in _WORDS else len(word) <= SHORT


def negates(word: str, lang: str) -> bool:
    """
    >>> negates("don't", "en"), negates("kein", "de"), negates("knot", "en")
    (True, True, False)
    """
    return word in _negations(lang) or (lang == "en" and word.endswith("n't"))


def without_negations(text: str, lang: str) -> tuple[str, int]:
    """Of a script without spaces: the text without what negates it, and how often it is negated.

    >>> without_negations("她不喜欢猫", "zh")
    ('她喜欢猫', 1)
    """
    if lang not in UNSPACED_NEGATIONS:
        return text, 0
    found = [match[1] is None for match in UNSPACED_NEGATIONS[lang].finditer(text)]
    return UNSPACED_NEGATIONS[lang].sub(lambda match: match[1] or "", text), sum(found)
