"""Names of models to folders and loaded students: in this process or in an actor's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlspeech.catalog import Resolved, fetch, resolve, source
from rlspeech.config import EvaluateConfig, Stage
from rlspeech.config_dpo import PairsConfig
from rlspeech.errors import UserError
from rlspeech.plugins import find_class
from rlspeech.protocols import Student


@dataclass(frozen=True)
class StudentPlace:
    """Where a student is loaded from, and by which family: small enough to hand to another process."""

    folder: Path
    family: str
    windows_at_once: int | None = None  # of audio in one pass of the encoder; None: the family's own

    @classmethod
    def of(cls, name: str, *, trust_remote_code: bool = False, windows_at_once: int | None = None) -> StudentPlace:
        """Raises UserError where no family reads the model, or its folder comes with code that is not trusted."""
        resolved = resolve(name, kind="speech")
        family = family_of(resolved)
        folder = fetch(resolved)
        family.check_layout(folder)
        return cls(trusted(folder, trust_remote_code), family.family(), windows_at_once)

    def load(self, *, dtype: torch.dtype = torch.float32, weights: bool = True) -> Student:
        family: Any = find_class("students", self.family, "Student")
        student = family.load(self.folder, dtype=dtype, weights=weights)
        if self.windows_at_once is not None:
            student.windows_at_once = self.windows_at_once
        return student


def family_of(model: Resolved) -> Any:
    """The class `Student` of the file that reads this model. Raises UserError where none does."""
    if model.family is None:
        raise UserError(f"{model.name}: no student family reads this architecture; docs/students.md has those that do")
    return find_class("students", model.family, "Student")


def student_place(config: Stage | PairsConfig | EvaluateConfig, name: str) -> StudentPlace:
    """As `StudentPlace.of`, with what a recipe says of loading."""
    given = {"trust_remote_code": config.trust_remote_code, "windows_at_once": config.audio.windows_at_once}
    return StudentPlace.of(name, **given)


def teacher_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    return trusted(fetch(resolve(name, kind="text")), trust_remote_code)


def tokenizer_place(name: str, trust_remote_code: bool = False) -> Path | str:
    """Where the tokenizer of a text model is read from, without its weights where they are not here."""
    resolved = resolve(name, kind="text")
    if source(resolved) == "hub":
        return str(resolved.repo)
    return trusted(fetch(resolved), trust_remote_code)


def trusted(folder: Path, trust_remote_code: bool) -> Path:
    if not trust_remote_code and any(folder.glob("*.py")):
        raise UserError(f"{folder}: comes with Python code; read it, then allow it by --trust-remote-code")
    return folder
