"""Counts of word errors. maths.biasing makes them: one alignment for rewards, held-out numbers and `score`."""

from typing import NamedTuple


class Edits(NamedTuple):
    """Errors of a hypothesis against a reference of `words` words."""

    substitutions: int
    insertions: int
    deletions: int
    words: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.insertions + self.deletions
