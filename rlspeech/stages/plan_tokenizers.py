"""What a distillation compares: one tokenizer or two, by which estimator, and how many tokens stand alone on both."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlspeech.catalog import Resolved, is_url, resolve, source
from rlspeech.config import DistillConfig, TeacherConfig
from rlspeech.stages.peek import first_rows
from rlspeech.stages.plan_problems import teacher_names

ROWS = 64  # of the manifest, whose answers and transcripts are the sample text
TEXT = (
    "The committee met at half past nine on Tuesday, 14 March, and agreed on a budget of 2,350 euros.",
    "Ms. Okonkwo asked whether the Reykjavík office had replied; nobody knew, so Jim will call them today.",
    "Summary: three risks were named - late delivery, unclear ownership, and the cost of GPU hours.",
)


def scoring(config: DistillConfig, models: Mapping[str, Resolved], *, measure: bool) -> Iterator[str]:
    """What is compared of each teacher; with `measure`, how much of two tokenizers' tokens stands alone."""
    for role, name in teacher_names(config).items():
        reading = _reading(config, role)
        ours, theirs = models["student"], _tokenizer_of(name, reading)
        named = (_called(ours), _called(theirs) if theirs else "the student's, which its server has to confirm")
        if theirs is None or named[0] == named[1]:
            yield f"{role}: one tokenizer ({named[0]}); {config.loss}"
            continue
        alike, share = _compared(ours, theirs, config) if measure else (False, "")
        if alike:
            yield f"{role}: one tokenizer under two names ({named[0]}, {named[1]}); {config.loss}"
            continue
        both = f"{named[0]} of the student, {named[1]} of the teacher"
        yield f"{role}: cross-tokenizer ({both})"
        yield f"{role}: {_estimator(config.loss, reading)}"
        if measure:
            yield f"{role}: {share}"


def sampling_problems(config: DistillConfig, models: Mapping[str, Resolved]) -> Iterator[str]:
    """Spans are compared by the log-probs of what was sampled."""
    sampling = config.sampling
    if (sampling.temperature, sampling.top_p) == (1, 1):
        return
    for role, name in teacher_names(config).items():
        theirs = _tokenizer_of(name, _reading(config, role))
        known = [model.entry.tokenizer if model and model.entry else None for model in (theirs, models["student"])]
        if None not in known and known[0] != known[1]:
            yield (
                f"{role}: has another tokenizer than the student, so sampling wants temperature 1 and top_p 1, got "
                f"{sampling.temperature:g} and {sampling.top_p:g}"
            )


def _reading(config: DistillConfig, role: str) -> TeacherConfig:
    for name, route in config.teachers.items():
        if role == f"teacher {name!r}" and route.reading:
            return route.reading
    return config.reading


def _tokenizer_of(teacher: str, reading: TeacherConfig) -> Resolved | None:
    """The model whose tokenizer the teacher has; None where that is said to be the student's."""
    name = reading.tokenizer if is_url(teacher) else teacher
    return resolve(name, kind="text") if name else None


def _called(model: Resolved) -> str:
    """The tokenizer's name in the catalog; of a folder, whose tokenizer has none, the folder."""
    return (model.entry.tokenizer if model.entry else None) or model.name


def _estimator(loss: str, reading: TeacherConfig) -> str:
    spans = "the sampled k1 of their span"
    if loss == "k1":
        return f"k1: every token by {spans}"
    return f"{loss} on the top {reading.top_k} tokens where a token stands alone on both sides, elsewhere {spans}"


def _compared(ours: Resolved, theirs: Resolved, config: DistillConfig) -> tuple[bool, str]:
    """Whether they segment alike after all, and a line about the share of tokens that stand alone."""
    absent = [model.name for model in (ours, theirs) if source(model) not in ("folder", "cache")]
    if absent:
        return False, f"one-to-one share not measured: {' and '.join(absent)} not at hand"
    from transformers import AutoTokenizer

    from rlspeech.catalog import fetch
    from rlspeech.engines.retokenise import Rereader
    from rlspeech.engines.teacher_text import same_tokenizer

    mine, other = (AutoTokenizer.from_pretrained(fetch(model)) for model in (ours, theirs))
    if same_tokenizer(mine, other):
        return True, ""
    texts, of_what = _sample_text(config.data.train)
    rereader = Rereader.of(mine, mine.eos_token_id, other)
    read = rereader.read([mine(text, add_special_tokens=False).input_ids for text in texts])
    spans = sum(one.spans.number for one in read)
    alone = sum(int(one.spans.alone().sum()) for one in read)
    return False, f"{100 * alone / max(1, spans):.0f} % of {spans:,} spans are one-to-one, measured on {of_what}"


def _sample_text(manifest: Path) -> tuple[Sequence[str], str]:
    texts = [row.get(key) for row in first_rows(manifest, ROWS) for key in ("reference", "transcript")]
    texts = [text for text in texts if isinstance(text, str) and text]
    return (texts, f"{manifest}") if texts else (TEXT, "a text of the library's own")
