"""Samples of the manifests, and prompts of them: the audio is read once for all instructions about it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from rlspeech.config import SynthConfig, TestsConfig
from rlspeech.data import audio, manifest
from rlspeech.data.rows import Need
from rlspeech.errors import UserError
from rlspeech.protocols import Student
from rlspeech.recipe import find_recipe, load
from rlspeech.types import Prompt, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heard:
    """A recording's samples with their prompts."""

    samples: tuple[Sample, ...]
    prompts: tuple[Prompt, ...]


def read_samples(path: Path, data: TestsConfig, needs: Sequence[Need], *, kinds: Sequence[str] = ()) -> list[Sample]:
    """Samples of a manifest, made first where it is missing and `data.synth` says how; what is skipped is listed."""
    if not path.exists() and data.synth is not None:
        from rlspeech.stages import synth

        synth.run(load(SynthConfig, find_recipe(data.synth), {"out": str(path.parent)}))
    loaded = manifest.read(path, needs=needs, skip_bad=data.skip_bad)
    for line in loaded.skipped:
        log.warning("skipped %s", line)
    if loaded.skipped:
        log.warning("%s: %d bad rows skipped, listed above", path, len(loaded.skipped))
    samples = [sample for sample in loaded.samples if not kinds or sample.tags.get("kind") in kinds]
    if not samples:
        known = sorted({sample.tags.get("kind", "") for sample in loaded.samples})
        raise UserError(f"{path}: no instruction of kind {', '.join(kinds)}; it has {', '.join(known)}")
    return samples


def hear(student: Student, samples: Sequence[Sample]) -> list[Heard]:
    """Recordings in the order of the samples; consecutive samples of one audio are one recording."""
    heard = []
    for place, group in groupby(samples, key=lambda sample: sample.audio):
        together = tuple(group)
        if place is None:
            raise UserError(f"{together[0].id}: no audio")
        wave = audio.read(place)
        heard.append(Heard(together, tuple(student.render(sample, wave) for sample in together)))
    return heard


def recordings_of(samples: Sequence[Sample], count: int) -> list[Sample]:
    """The samples of the first recordings."""
    audios = list(dict.fromkeys(sample.audio for sample in samples))[:count]
    return [sample for sample in samples if sample.audio in audios]


def flat(recordings: Sequence[Heard]) -> tuple[list[Sample], list[Prompt]]:
    samples = [sample for recording in recordings for sample in recording.samples]
    prompts = [prompt for recording in recordings for prompt in recording.prompts]
    return samples, prompts
