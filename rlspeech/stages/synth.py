"""`rlspeech synth`: what a synthesiser says, rendered by eSpeak NG to 16 kHz wav files and a manifest a set.

A set is whole once its manifest is there; `{set}.synth.json` beside it tells what it was made from.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspeech.config import SynthConfig
from rlspeech.data import audio, manifest
from rlspeech.data.rows import recording_of, rows_of
from rlspeech.embedded.espeak import render
from rlspeech.errors import UserError
from rlspeech.plugins import load_class
from rlspeech.run_dir import write_text
from rlspeech.stages.progress import Ticker, progress
from rlspeech.types import Audio, Sample

if TYPE_CHECKING:
    from rlspeech.protocols import Synth  # imports torch

log = logging.getLogger(__name__)

OURS = ("split", "count", "seed")  # fields of a synthesiser that the stage fills in
FILE_NAME = re.compile(r"\w[\w.+-]*")  # what a set or a recording may be called: it names a file


def run(config: SynthConfig) -> None:
    """Renders the sets whose manifests are not there.

    Raises UserError, before anything is rendered, where a manifest is there that was made with other settings, and
    where the synthesiser or its options are not known.
    """
    _check(config)
    synths = {name: _synthesiser(config, name) for name in config.sets}
    missing = [name for name, synth in synths.items() if not _is_there(config, name, synth)]
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{config.out}: {error.strerror}; choose another --out") from error
    for name in missing:
        _render_set(config, name, synths[name])


def settings_of(config: SynthConfig, name: str, synth: Synth) -> dict[str, Any]:
    """All that the recordings of a set depend on, and a hash of it."""
    source = Path(inspect.getfile(type(synth))).read_bytes()
    settings = {
        "synth": config.synth,
        "synth_sha256": hashlib.sha256(source).hexdigest(),
        "set": name,
        "recordings": config.sets[name],
        **config.model_dump(mode="json", include={"seed", "noise_share", "snr_db", "max_silence_s", "options"}),
    }
    return settings | {"sha256": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}


def _check(config: SynthConfig) -> None:
    for name in config.sets:
        if not FILE_NAME.fullmatch(name):
            raise UserError(f"sets: {name!r} cannot name a file; use letters, digits, '_', '-'")
    for field in OURS:
        if field in config.options:
            where = {"split": "the name of the set", "count": "sets", "seed": "seed"}[field]
            raise UserError(f"options.{field}: comes from {where}; leave it out of the options")
    if config.snr_db[0] > config.snr_db[1]:
        raise UserError(f"snr_db: from {config.snr_db[0]:g} to {config.snr_db[1]:g} is no range; put the lower first")


def _synthesiser(config: SynthConfig, name: str) -> Synth:
    options = {"split": name, "count": config.sets[name], "seed": config.seed, **config.options}
    return load_class("data_synth", config.synth, "Synth", options)


def _is_there(config: SynthConfig, name: str, synth: Synth) -> bool:
    path, made_from = config.out / f"{name}.jsonl", config.out / f"{name}.synth.json"
    if not path.exists():
        return False
    if not made_from.is_file():
        raise UserError(f"{path}: there already, but no {made_from.name} tells how it was made; choose another --out")
    before = _settings_in(made_from)
    now = settings_of(config, name, synth)
    if changed := [key for key in now if before.get(key) != now[key]]:
        key = changed[0]
        change = f"{key} was {before.get(key)}, now {now[key]}" if key != "synth_sha256" else "by another Synth"
        raise UserError(f"{path}: made with other settings ({change}); remove it or choose another --out")
    log.info("%s: there already, made with the same settings", path)
    return True


def _settings_in(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path}: does not tell how its manifest was made; choose another --out") from error


def _render_set(config: SynthConfig, name: str, synth: Synth) -> None:
    path = config.out / f"{name}.jsonl"
    with progress(f"synth {name}", config.sets[name]) as tick:
        spoken = list(_spoken(config, name, synth, tick))
    made_from = json.dumps(settings_of(config, name, synth), indent=1)
    write_text(config.out / f"{name}.synth.json", made_from + "\n")
    rows = [row | {"duration_s": round(audio.duration_s(Audio(row["audio"])), 4)} for row in rows_of(spoken)]
    manifest.write(path, rows)  # last: with it the set is whole
    minutes = sum(row["duration_s"] for row in rows) / 60
    voices = {turn.voice for sample in spoken for turn in sample.turns}
    counts = f"{len(rows)} recordings, {minutes:.1f} minutes, {len(voices)} voices, {len(spoken)} instructions"
    log.info("%s: %s", path, counts)


def _spoken(config: SynthConfig, name: str, synth: Synth, tick: Ticker) -> Iterator[Sample]:
    """The samples with their audio, written, and the times of its words."""
    done: set[str] = set()
    for recording, group in groupby(synth([]), key=recording_of):
        samples = list(group)
        _check_recording(recording, samples, done)
        draw = random.Random(f"{config.seed}:{recording}")
        snr_db = draw.uniform(*config.snr_db) if draw.random() < config.noise_share else None
        silence_s = (draw.uniform(0, config.max_silence_s), draw.uniform(0, config.max_silence_s))
        heard = render(samples[0].turns, snr_db=snr_db, silence_s=silence_s, seed=draw.getrandbits(32))
        file = config.out / "audio" / name / f"{recording}.wav"
        audio.write(file, heard.wave)
        yield from (replace(sample, audio=Audio(file), words=heard.words) for sample in samples)
        done.add(recording)
        tick(len(done))


def _check_recording(recording: str, samples: Sequence[Sample], done: set[str]) -> None:
    """A synthesiser of the user's own may break its promise."""
    if not FILE_NAME.fullmatch(recording):
        raise UserError(f"synth: recording {recording!r} cannot name a file; ids are '{{recording}}/{{kind}}'")
    if recording in done:
        raise UserError(f"synth: recording {recording!r} comes twice; its samples must follow one another")
    if not samples[0].turns:
        raise UserError(f"synth: sample {samples[0].id!r} has no turns to speak")
    if any((sample.turns, sample.transcript) != (samples[0].turns, samples[0].transcript) for sample in samples):
        raise UserError(f"synth: the samples of recording {recording!r} differ in what is said")
