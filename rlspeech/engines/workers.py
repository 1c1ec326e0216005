"""The vLLM engines as actors: one that writes the student's replies, one that is a teacher. See cluster.Worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlspeech.config_engines import VllmConfig
from rlspeech.engines import rollout_vllm, teacher_vllm, vllm_engine
from rlspeech.engines.cluster import Worker
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.teacher_text import Reading
from rlspeech.engines.wire import PackedReplies, PackedScores
from rlspeech.protocols import Sampling
from rlspeech.types import Answer, Prompt, Sample


class RolloutWorker(Worker):
    """Audio comes once a call: prompts of one audio share its array."""

    def __init__(self, place: StudentPlace, settings: VllmConfig, layout: vllm_engine.Layout) -> None:
        self.place, self.settings, self.layout = place, settings, layout

    def start(self) -> None:
        llm = vllm_engine.start(self.place.folder, self.settings, self.layout)
        student = self.place.load(weights=False)
        self.rollouts = rollout_vllm.VllmRollouts(llm, student, self.settings, on_progress=self.moved)

    def generate(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling) -> PackedReplies:
        return PackedReplies.of([one.completion for one in self.rollouts.generate(samples, prompts, sampling)])

    def join_transfer(self, init_info: Mapping[str, Any]) -> None:
        self.rollouts.join_transfer(init_info)

    def leave_transfer(self) -> None:
        self.rollouts.leave_transfer()

    def begin_update(self) -> None:
        self.rollouts.begin_update()

    def receive(self, update_info: Mapping[str, Any]) -> None:
        self.rollouts.receive(update_info)

    def update(self, bucket: Path) -> None:
        self.moved()
        self.rollouts.update(bucket)

    def end_update(self, version: int) -> None:
        self.rollouts.end_update(version)

    def load_adapter(self, folder: Path, version: int) -> None:
        self.rollouts.load_adapter(folder, version)

    def sleep(self) -> None:
        self.rollouts.sleep()

    def wake(self) -> None:
        self.rollouts.wake()


class TeacherWorker(Worker):
    def __init__(
        self, folder: Path, reading: Reading, top_k: int, settings: VllmConfig, layout: vllm_engine.Layout
    ) -> None:
        self.folder, self.reading, self.top_k, self.settings, self.layout = folder, reading, top_k, settings, layout

    def start(self) -> None:
        llm = vllm_engine.start(self.folder, self.settings, self.layout)
        self.teacher = teacher_vllm.VllmTeacher(llm, self.reading, self.top_k, on_progress=self.moved)

    def score(self, samples: Sequence[Sample], replies: PackedReplies) -> PackedScores:
        return PackedScores.of(self.teacher.score(samples, replies.replies()))

    def reply(self, samples: Sequence[Sample], max_tokens: int) -> list[Answer]:
        return self.teacher.reply(samples, max_tokens=max_tokens)
