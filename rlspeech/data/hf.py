"""Hugging Face dataset folders with an Audio column, decoded by us: no torchcodec, no network."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlspeech.cache import cache_dir
from rlspeech.errors import UserError

SUFFIXES = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}  # anything else is most likely mp3


def rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("folder[row]", columns) for each row of a folder that `Dataset.save_to_disk` wrote; foreign.as_row reads them.

    One column is of type Audio: its file is under `audio`. Sound that lies within the data set is copied once into the
    cache (RLSPEECH_CACHE, by default rlspeech in the user's cache) under its hash.
    Raises UserError where the folder is no such data set, or has splits, or no Audio column.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{folder}: not a manifest, nor a data set folder of datasets' save_to_disk") from error
    if isinstance(dataset, datasets.DatasetDict):
        splits = ", ".join(str(folder / split) for split in dataset)
        raise UserError(f"{folder}: a data set of several splits; name one: {splits}")
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Audio)]
    if not columns:
        raise UserError(f"{folder}: no column of type Audio among {', '.join(dataset.column_names)}")
    column = "audio" if "audio" in columns else columns[0]
    dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    for index, fields in enumerate(dataset):
        sound = _file_of(fields[column])
        others = {key: value for key, value in fields.items() if key not in columns}
        yield f"{folder}[{index}]", {"audio": sound, **others}


def _file_of(sound: Mapping[str, Any] | None) -> str | None:
    """The file that holds an Audio cell, absolute: its own, or a copy of its bytes in the cache."""
    if sound is None:
        return None
    content, path = sound["bytes"], sound["path"]
    if content is None:
        return str(Path(path).absolute()) if path else None
    name = hashlib.sha256(content).hexdigest()[:32]
    suffix = Path(path).suffix if path else SUFFIXES.get(content[:4], ".mp3")
    file = (cache_dir().absolute() / "audio") / name[:2] / f"{name}{suffix}"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        beside.write_bytes(content)
        os.replace(beside, file)
    return str(file)
