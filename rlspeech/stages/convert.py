"""`rlspeech convert`: a folder of a student in another layout of its family."""

import logging
from pathlib import Path

from rlspeech.catalog import fetch, resolve
from rlspeech.config import ConvertConfig
from rlspeech.engines.loading import family_of
from rlspeech.errors import UserError, did_you_mean

log = logging.getLogger(__name__)


def run(config: ConvertConfig) -> None:
    """Raises UserError before anything is written: for a layout that the family lacks, a model that is not whole."""
    resolved = resolve(config.model, kind="speech")
    known = family_of(resolved).CONVERSIONS
    if config.to not in known:
        what = did_you_mean(config.to, known) or "; the family has one layout"
        raise UserError(f"--to {config.to}: nothing that {resolved.family} is converted to{what}")
    conversion = known[config.to]
    if conversion.base and config.base is None:
        raise UserError(f"--to {config.to}: give --base, {conversion.base}")
    if config.base is not None and not conversion.base:
        raise UserError(f"--base: --to {config.to} takes no second folder")
    folder, base = fetch(resolved), {} if config.base is None else {"base": config.base}
    for source in (folder, *base.values()):
        _check_apart(source, config.out)
    conversion.run(folder, config.out, **base)
    log.info("%s: written to %s", config.model, config.out)


def _check_apart(source: Path, out: Path) -> None:
    if not source.is_dir():
        raise UserError(f"--base: no folder {source}")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--out {out}: within {source}, which is read; give a folder beside it")
