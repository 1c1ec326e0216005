"""Samples of the manifests, and prompts of them: the audio is read once for all instructions about it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rlspeech.config import Stage, SynthConfig, TestsConfig
from rlspeech.data import audio, manifest
from rlspeech.data.rows import Need
from rlspeech.engines.batches import reference_ids
from rlspeech.errors import UserError
from rlspeech.protocols import Student
from rlspeech.recipe import find_recipe, load
from rlspeech.types import Prompt, Sample, Waveform

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recording:
    """What is heard, with all samples about it."""

    samples: tuple[Sample, ...]
    waves: tuple[Waveform, ...]

    @property
    def audio_s(self) -> float:
        return sum(wave.duration_s for wave in self.waves)


@dataclass(frozen=True)
class Data:
    """What a stage learns from, and its held-out sets by name."""

    train: Sequence[Recording]
    tests: Mapping[str, Sequence[Recording]]


@dataclass(frozen=True)
class Heard:
    """A recording's samples with their prompts."""

    samples: tuple[Sample, ...]
    prompts: tuple[Prompt, ...]
    audio_s: float


def read_data(config: Stage, needs: Sequence[Need], *, kinds: Sequence[str] = (), train: bool = True) -> Data:
    """All sound that a stage learns from, and of each held-out set what it is measured on.

    `train` False: of a stage that learns from something else, such as pairs.
    """
    kinds = kinds or config.data.kinds
    heard = listen(read_samples(config.data.train, config.data, needs, kinds=kinds)) if train else []
    tests = {name: read_samples(path, config.data, needs, kinds=kinds) for name, path in config.data.tests.items()}
    count = config.held_out.samples
    return Data(heard, {name: listen(recordings_of(samples, count)) for name, samples in tests.items()})


def read_samples(path: Path, data: TestsConfig, needs: Sequence[Need], *, kinds: Sequence[str] = ()) -> list[Sample]:
    """Samples of a manifest, made first where it is missing and `data.synth` makes it; what is skipped is listed."""
    if not path.exists() and data.synth is not None:
        _make(path, data.synth)
    loaded = manifest.read(path, needs=needs, skip_bad=data.skip_bad)
    for line in loaded.skipped:
        log.warning("skipped %s", line)
    if loaded.skipped:
        log.warning("%s: %d bad rows skipped, listed above", path, len(loaded.skipped))
    known = {sample.tags.get("kind", "") for sample in loaded.samples}
    if kinds and not known & set(kinds):
        raise UserError(f"{path}: no instruction of kind {', '.join(kinds)}; it has {', '.join(sorted(known))}")
    return [sample for sample in loaded.samples if not kinds or sample.tags.get("kind") in kinds]


def _make(path: Path, recipe: Path) -> None:
    """Only a manifest that the recipe writes: a mistyped path makes nothing."""
    settings = load(SynthConfig, find_recipe(recipe), {})
    if path.resolve() in {(settings.out / f"{name}.jsonl").resolve() for name in settings.sets}:
        from rlspeech.stages import synth

        synth.run(settings)


def listen(samples: Sequence[Sample]) -> list[Recording]:
    """Consecutive samples of the same audio with its sound. Raises UserError where a file cannot be read as sound."""
    recordings = []
    for (first, more), group in groupby(samples, key=lambda sample: (sample.audio, sample.more_audio)):
        together = tuple(group)
        if first is None:
            raise UserError(f"{together[0].id}: no audio")
        recordings.append(Recording(together, tuple(audio.read(place) for place in (first, *more))))
    return recordings


def hear(student: Student, recordings: Sequence[Recording], *, reply_tokens: int | None = None) -> list[Heard]:
    """The prompts of recordings, in their order. Raises UserError where one does not fit into the model's context.

    `reply_tokens`: of the longest reply that is to fit behind them; None: each sample's reference.
    """

    def render(sample: Sample, waves: Sequence[Waveform]) -> Prompt:
        room = len(reference_ids(student, sample)) if reply_tokens is None else reply_tokens
        return student.render(sample, waves, reply_tokens=room)

    return [Heard(r.samples, tuple(render(sample, r.waves) for sample in r.samples), r.audio_s) for r in recordings]


def recordings_of(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The samples of the first recordings."""
    heard = list(dict.fromkeys((sample.audio, sample.more_audio) for sample in samples))[:count]
    return [sample for sample in samples if (sample.audio, sample.more_audio) in heard]


def audio_metrics(recordings: Sequence[Heard]) -> dict[str, float]:
    """Of what is heard in one step."""
    return {"data/audio_s": sum(recording.audio_s for recording in recordings)}


def flat(recordings: Sequence[Heard]) -> tuple[list[Sample], list[Prompt]]:
    samples = [sample for recording in recordings for sample in recording.samples]
    prompts = [prompt for recording in recordings for prompt in recording.prompts]
    return samples, prompts
