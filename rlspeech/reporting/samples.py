"""Samples as they are shown: sound in the page, the replies of every evaluation, the KL of each token as a level."""

import base64
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest

from rlspeech.data.audio import duration_s, read, wav_bytes
from rlspeech.errors import UserError
from rlspeech.maths.scores import TRANSCRIBE, is_right, word_errors
from rlspeech.reporting.read_runs import Evaluation, Job, Reply, Stage
from rlspeech.reporting.summary import percent
from rlspeech.types import Audio, Sample

LONGEST_S = 20.0  # of a sound in the page
LEVELS_NATS = (0.05, 0.2, 0.5, 1.0, 2.0)  # where a token's KL reaches the next level
ROLLOUTS = 3  # of a step


@dataclass(frozen=True)
class Token:
    """`level` 0..5 is where its KL stands among LEVELS_NATS; None where it was not measured."""

    text: str
    level: int | None
    told: str


@dataclass(frozen=True)
class Answer:
    """One reply to a sample. `right` None: not judged. `tokens`: of the last reply, to be coloured."""

    by: str
    text: str
    right: bool | None = None
    judged: str = ""
    cut: bool = False
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Sound:
    """A playable data: URI, or why there is none."""

    uri: str = ""
    told: str = ""


@dataclass(frozen=True)
class Shown:
    sample: Reply
    sound: Sound
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Step:
    """Rollouts of one step of learning."""

    step: int
    rollouts: tuple[tuple[Reply, Answer], ...]


def shown_samples(job: Job, count: int) -> list[Shown]:
    """`count` samples of the last evaluation that has any, with the replies of all evaluations."""
    having = [evaluation for evaluation in job.evaluations if evaluation.results.samples]
    if not having:
        return []
    last = having[-1]
    replies = [(found, {(s.set, s.id): s for s in found.results.samples}) for found in having]
    return [
        Shown(sample, sound_of(last, sample), tuple(_answers(sample, replies)))
        for sample in chosen(last.results.samples, count)
    ]


def chosen(samples: Sequence[Reply], count: int) -> list[Reply]:
    """Every kind and every set as early as can be, then the next of each; recordings not heard yet before others."""
    sets = list(dict.fromkeys(sample.set for sample in samples))
    kinds = list(dict.fromkeys(sample.kind for sample in samples))
    groups: dict[tuple[str, str | None], list[Reply]] = {
        (sets[(index + turn) % len(sets)], kind): [] for turn in range(len(sets)) for index, kind in enumerate(kinds)
    }
    for sample in samples:
        groups[sample.set, sample.kind].append(sample)
    heard: set[str | None] = set()
    picked: list[Reply] = []
    while len(picked) < count and any(groups.values()):
        for waiting in groups.values():
            if waiting and len(picked) < count:
                sample = next((sample for sample in waiting if sample.audio not in heard), waiting[0])
                waiting.remove(sample)
                heard.add(sample.audio)
                picked.append(sample)
    return picked


def sound_of(evaluation: Evaluation, sample: Reply) -> Sound:
    """16 kHz wav, the first LONGEST_S of it."""
    if sample.audio is None:
        return Sound(told="no recording is named")
    try:
        whole = Audio(evaluation.folder / sample.audio)
        whole_s = duration_s(whole)
        cut = whole_s > LONGEST_S
        wave = read(Audio(whole.path, end_s=LONGEST_S) if cut else whole)
    except UserError as error:
        return Sound(told=str(error))
    told = f"first {LONGEST_S:g} of {whole_s:.1f} s" if cut else f"{whole_s:.1f} s"
    return Sound("data:audio/wav;base64," + base64.b64encode(wav_bytes(wave)).decode(), told)


def first_and_last(stage: Stage) -> list[Step]:
    """The first and the last step whose rollouts were written down."""
    steps = sorted({rollout.step for rollout in stage.rollouts if rollout.step is not None})
    found = []
    for step in dict.fromkeys([steps[0], steps[-1]] if steps else []):
        rollouts = [rollout for rollout in stage.rollouts if rollout.step == step][:ROLLOUTS]
        found.append(Step(step, tuple((rollout, _plain(rollout)) for rollout in rollouts)))
    return found


def tokens_of(reply: Reply) -> tuple[Token, ...]:
    """None of them where no token was scored."""
    if not reply.kl_nats:
        return ()
    scored = zip_longest(reply.tokens, reply.kl_nats[: len(reply.tokens)])
    return tuple(
        Token(text, None, "not scored") if kl is None else Token(text, level(kl), f"{kl:.3f} nats")
        for text, kl in scored
    )


def level(kl_nats: float) -> int:
    """
    >>> [level(kl) for kl in (-0.2, 0.0, 0.05, 0.99, 2.0, 7.0)]
    [0, 0, 1, 3, 5, 5]
    """
    return bisect_right(LEVELS_NATS, kl_nats)


def legend() -> list[Token]:
    """What the levels mean."""
    edges = [f"{edge:g}" for edge in LEVELS_NATS]
    between = (f"{low} to {high}" for low, high in pairwise(edges))
    told = chain([f"under {edges[0]}"], between, [f"{edges[-1]} and more"])
    return [Token(text, index, f"{text} nats") for index, text in enumerate(told)]


def _answers(sample: Reply, replies: Sequence[tuple[Evaluation, Mapping[tuple[str, str], Reply]]]) -> list[Answer]:
    found = [(evaluation, asked.get((sample.set, sample.id))) for evaluation, asked in replies]
    answers = [
        _answer(evaluation.after, reply, coloured=evaluation is replies[-1][0])
        if reply
        else Answer(evaluation.after, "", judged="not asked")
        for evaluation, reply in found
    ]
    for by, text in (("cascade", sample.cascade_reply), ("teacher", sample.teacher_reply)):
        if text is not None:
            answers.append(Answer(by, text, *_judged(sample, text)))
    return answers


def _plain(rollout: Reply) -> Answer:
    """Not judged: a rollout does not name the words that a right answer holds."""
    return Answer("reply", rollout.reply or "", cut=rollout.finish == "length", tokens=tokens_of(rollout))


def _answer(by: str, reply: Reply, *, coloured: bool) -> Answer:
    text = reply.reply or ""
    cut = reply.finish == "length"
    return Answer(by, text, *_judged(reply, text), cut, tokens_of(reply) if coloured else ())


def _judged(asked: Reply, text: str) -> tuple[bool | None, str]:
    """Whether it is the right answer, and the word for it; of a transcript its word error rate."""
    if asked.reference is None:
        return None, ""
    kind = asked.kind or asked.id.rpartition("/")[2]
    tags = {"kind": kind} | ({"key": asked.key} if asked.key else {})
    sample = Sample(asked.id, asked.instruction or "", reference=asked.reference, lang=asked.lang, tags=tags)
    if kind == TRANSCRIBE:
        rate = word_errors([(sample, text)])["wer"]
        return (None, "") if rate is None else (rate == 0, f"WER {percent(rate, 0)}")
    found = is_right(sample, text)
    return found, "right" if found else "not right"
