"""Reads a CTranslate2 `model.bin`: named arrays, little-endian, no code in it.

The layout is that of CTranslate2's C++ reader (src/models/model.cc): a version, the model's name and revision, the
variables as (name, shape, type, bytes), and aliases.
"""

import struct
from pathlib import Path

import numpy as np

from rlspeech.errors import UserError

DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
OLDEST_VERSION = 5  # the first that stores a variable's type


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a model file, by name. Raises UserError where the file is not one or is cut short."""
    try:
        return _Reader(path.read_bytes()).variables()
    except (struct.error, KeyError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path}: not a whole CTranslate2 model ({error})") from error


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int:
        value = struct.unpack_from("<" + code, self.data, self.at)[0]
        self.at += struct.calcsize(code)
        return value

    def string(self) -> str:
        length = self.number("H")  # counts a closing zero
        text = self.data[self.at : self.at + length - 1].decode()
        self.at += length
        return text

    def variable(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(DTYPES[self.number("B")])
        size = self.number("I")
        values = np.frombuffer(self.data, dtype, size // dtype.itemsize, self.at).reshape(shape)
        self.at += size
        return values

    def variables(self) -> dict[str, np.ndarray]:
        if (version := self.number("I")) < OLDEST_VERSION:
            raise ValueError(f"version {version}, expected {OLDEST_VERSION} or later")
        self.string()
        self.number("I")
        found = {self.string(): self.variable() for _ in range(self.number("I"))}
        for _ in range(self.number("I")):
            alias, target = self.string(), self.string()
            found[alias] = found[target]
        if self.at != len(self.data):
            raise ValueError(f"{len(self.data) - self.at} bytes after its end")
        return found
