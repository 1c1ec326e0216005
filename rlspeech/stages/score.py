"""`rlspeech score biasing`: WER, U-WER and B-WER of systems' transcripts, and the listed words that they find."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlspeech.config_rewards import ScoreConfig
from rlspeech.errors import UserError
from rlspeech.maths.biasing import BiasedEdits, Found, biased_edits, found_phrases, lost_phrases, summed
from rlspeech.maths.edits import Edits
from rlspeech.maths.text import words
from rlspeech.run_dir import write_json

log = logging.getLogger(__name__)

Split = Callable[[str], list[str]]


@dataclass(frozen=True)
class Reference:
    text: str
    rare: tuple[str, ...]
    listed: tuple[str, ...]  # where the file has no such column, the rare ones


@dataclass(frozen=True)
class System:
    """What is found of one system."""

    name: str
    edits: BiasedEdits
    phrases: Found
    missing: int  # references without a transcript

    def lines(self) -> list[str]:
        """As the published result files have them."""
        named = {"WER": self.edits.total, "U-WER": self.edits.unbiased, "B-WER": self.edits.biased}
        return [
            f"{name}: error_rate={_rate(found)}, ref_words={found.words}, subs={found.substitutions}, "
            f"ins={found.insertions}, dels={found.deletions}"
            for name, found in named.items()
        ]


def run(config: ScoreConfig) -> None:
    """Prints lines and a table. Raises UserError in one line where a file is not as it has to be."""
    check_out(config.out)
    names = _names(config.hyps)
    references = read_references(config.refs)
    split: Split = {
        "none": str.split,
        "english": partial(words, lang="en"),
        "neutral": partial(words, lang="mul"),
    }[config.normalise]
    _warn_of_lost_phrases(references, split)
    systems = []
    for name, file in zip(names, config.hyps, strict=True):
        texts = read_hypotheses(file, references, lenient=config.lenient)
        systems.append(score_system(name, references, texts, split, config))
    for system in systems:
        if len(systems) > 1:
            print(f"# {system.name}")
        print("\n".join(system.lines()))
        if system.missing:
            log.warning("%s: %d of %d references have no transcript", system.name, system.missing, len(references))
    Console(highlight=False).print(_table(systems))
    if config.out is not None:
        write_json(config.out, {system.name: _told(system) for system in systems})


def check_out(path: Path | None) -> None:
    """Before the work for it: raises UserError where the file cannot be written."""
    if path is None:
        return
    folder = next(one for one in path.absolute().parents if one.exists())
    if path.is_dir() or not folder.is_dir():
        what = "a folder, where a file is to be written" if path.is_dir() else f"{folder} is no folder"
        raise UserError(f"{path}: {what}; choose another --out")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {folder} cannot be written to; choose another --out")


def _names(files: Sequence[Path]) -> list[str]:
    """The name of each file, or its path where several have one name."""
    twice = next((file for place, file in enumerate(files) if file in files[:place]), None)
    if twice is not None:
        raise UserError(f"hyps: {twice} is given twice")
    names = [file.name for file in files]
    return [name if names.count(name) == 1 else str(file) for name, file in zip(names, files, strict=True)]


def _warn_of_lost_phrases(references: Mapping[str, Reference], split: Split) -> None:
    lost = []
    for key, reference in references.items():
        places = lost_phrases(split(reference.text), [tuple(split(phrase)) for phrase in reference.rare])
        lost += [f"{reference.rare[place]!r} of {key}" for place in places]
    if lost:
        total = sum(len(reference.rare) for reference in references.values())
        told = "%d of %d rare words are not in their reference as it is split, and count as others (the first: %s)"
        log.warning(told, len(lost), total, lost[0])


def score_system(
    name: str, references: Mapping[str, Reference], texts: Mapping[str, str], split: Split, config: ScoreConfig
) -> System:
    known = [(reference, texts[key]) for key, reference in references.items() if key in texts]
    told = [split(reference.text) for reference, _ in known]
    heard = [split(text) for _, text in known]
    rare = [[tuple(split(phrase)) for phrase in reference.rare] for reference, _ in known]
    listed = [{tuple(split(phrase)) for phrase in reference.listed} for reference, _ in known]
    edits = summed(biased_edits(told, heard, rare, unit=config.unit, workers=config.workers))
    return System(name, edits, found_phrases(told, heard, listed), len(references) - len(known))


def read_references(path: Path) -> dict[str, Reference]:
    """By id. Raises UserError naming the line that is not as it has to be."""
    found: dict[str, Reference] = {}
    for number, line in enumerate(_lines(path), 1):
        columns = line.split("\t")
        if not 3 <= len(columns) <= 4:
            raise UserError(f"{path}:{number}: {len(columns)} columns; want id, text, rare words and biasing words")
        key, text, *lists = columns
        if key in found:
            raise UserError(f"{path}:{number}: {key!r} comes twice")
        rare, *listed = [_list(cell, f"{path}:{number}") for cell in lists]
        found[key] = Reference(text, rare, listed[0] if listed else rare)
    return found


def read_hypotheses(path: Path, references: Mapping[str, Reference], *, lenient: bool) -> dict[str, str]:
    """By id; a line without a second column is an empty transcript."""
    found: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        key, _, text = line.partition("\t")
        if key not in references:
            raise UserError(f"{path}:{number}: {key!r} is not among the references")
        if key in found:
            raise UserError(f"{path}:{number}: {key!r} comes twice")
        found[key] = text.partition("\t")[0]
    absent = [key for key in references if key not in found]
    if absent and not lenient:
        raise UserError(f"{path}: no transcript of {absent[0]} (of {len(absent)}); --lenient leaves them out")
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    if not text:
        raise UserError(f"{path}: empty")
    return text.removesuffix("\n").split("\n")  # splitlines() would cut at U+2028 and its like, too


def _list(cell: str, where: str) -> tuple[str, ...]:
    try:
        found = json.loads(cell)
    except ValueError as error:
        raise UserError(f"{where}: not a JSON list: {cell[:40]}") from error
    if not isinstance(found, list) or not all(isinstance(word, str) for word in found):
        raise UserError(f"{where}: not a JSON list of words: {cell[:40]}")
    return tuple(found)


def _rate(edits: Edits) -> float:
    """Per cent, as it is published; 0 errors of 0 words are 0."""
    return 100.0 * edits.errors / edits.words if edits.words else 0.0


def _table(systems: Sequence[System]) -> Table:
    table = Table(title="per cent")
    table.add_column("system", overflow="fold")
    for column in ("WER", "U-WER", "B-WER", "precision", "recall", "F1"):
        table.add_column(column, justify="right")
    for system in systems:
        rates = [_rate(edits) for edits in (system.edits.total, system.edits.unbiased, system.edits.biased)]
        shares = [system.phrases.precision, system.phrases.recall, system.phrases.f1]
        cells = [f"{rate:.2f}" for rate in rates]
        cells += ["-" if share is None else f"{100 * share:.2f}" for share in shares]
        table.add_row(system.name, *cells)
    return table


def _told(system: System) -> dict[str, Any]:
    named = {"wer": system.edits.total, "u_wer": system.edits.unbiased, "b_wer": system.edits.biased}
    phrases = system.phrases
    shares = {"precision": phrases.precision, "recall": phrases.recall, "f1": phrases.f1}
    return {
        **{name: {**edits._asdict(), "error_rate": _rate(edits) / 100} for name, edits in named.items()},
        "phrases": {**phrases._asdict(), **shares},
        "missing": system.missing,
    }
