"""Several teachers: each sample is scored by the one that its row names, and counts with that teacher's weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlspeech.protocols import Teacher
from rlspeech.types import Answer, Completion, Sample, Scored

MAIN = ""  # what Sample.teacher is where a row names none


@dataclass
class RoutedTeacher:
    """All teachers of one run tell the same: their hidden states, or their top tokens."""

    teachers: Mapping[str, Teacher]  # by the name in the data; MAIN: the others' rows
    weights: Mapping[str, float]

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.teachers[sample.teacher].messages(sample)

    def head(self) -> None:
        """None: teachers in several processes or with several heads tell their top tokens."""

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        def ask(teacher: Teacher, mine: Sequence[int]) -> list[Scored]:
            return teacher.score([samples[index] for index in mine], [replies[index] for index in mine])

        scored = self._each(samples, ask)
        return [replace(one, weight=self.weights[s.teacher]) for one, s in zip(scored, samples, strict=True)]

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        return self._each(
            samples, lambda teacher, mine: teacher.reply([samples[index] for index in mine], max_tokens=max_tokens)
        )

    def _each(self, samples: Sequence[Sample], ask: Callable[[Teacher, Sequence[int]], Sequence[Any]]) -> list[Any]:
        found: dict[int, Any] = {}
        for name, teacher in self.teachers.items():
            mine = [index for index, sample in enumerate(samples) if sample.teacher == name]
            if mine:
                found |= dict(zip(mine, ask(teacher, mine), strict=True))
        return [found[index] for index in range(len(samples))]
