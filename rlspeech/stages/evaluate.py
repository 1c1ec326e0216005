"""Held-out numbers: the student hears, its text teacher reads, and the cascade reads the student's own transcript."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlspeech.catalog import resolve
from rlspeech.config import EvaluateConfig
from rlspeech.config_dpo import DetectorsConfig
from rlspeech.data.manifest import relative
from rlspeech.data.rows import Need
from rlspeech.engines.build import build_rollouts, build_teacher
from rlspeech.engines.loading import student_place, teacher_folder
from rlspeech.engines.measure import measure
from rlspeech.errors import UserError
from rlspeech.maths.scores import TRANSCRIBE, score
from rlspeech.protocols import Sampling, Student, Teacher
from rlspeech.run_dir import RunDir
from rlspeech.stages.biasing_lists import Lists
from rlspeech.stages.examining import Examiner, all_faults, fault_shares
from rlspeech.stages.hearing import Data, Recording, flat, hear, listen, read_samples, recordings_of
from rlspeech.stages.held_out import divergence
from rlspeech.stages.models import use_threads
from rlspeech.stages.progress import progress
from rlspeech.stages.rollout_records import row
from rlspeech.types import Rollout, Sample

MICRO_BATCH = 8  # audios in one forward pass, at most


def run(config: EvaluateConfig) -> None:
    """Writes evaluation.json into the run folder: scores of each held-out set, and every sample with its replies."""
    if not config.data.tests:
        raise UserError("data.tests is empty: name at least one held-out set, such as --data.tests.voice voice.jsonl")
    resolve(config.student, kind="speech")
    if config.teacher:
        resolve(config.teacher, kind="text")
    needs: tuple[Need, ...] = ("audio", "transcript") if config.teacher else ("audio",)
    tests = {
        name: listen(recordings_of(read_samples(path, config.data, needs), config.evaluation.samples))
        for name, path in config.data.tests.items()
    }
    tests = Lists.of(config.lists, Data((), tests), seed=config.seed).tests()
    folder = RunDir.open(config.run_dir, config, resume=False)
    try:
        use_threads(config.threads, config.seed)
        trust = {"trust_remote_code": config.trust_remote_code}
        student = student_place(config, config.student).load()
        model = teacher_folder(config.teacher, **trust) if config.teacher else None
        teacher = build_teacher(model, config.reading, student, **trust) if model else None
        folder.write_json("evaluation.json", Evaluation(config, folder, student, teacher).of(tests))
        folder.finish({"stage": "evaluate"})
    except UserError:
        folder.abandon()
        raise
    finally:
        folder.close()


@dataclass
class Evaluation:
    config: EvaluateConfig
    folder: RunDir
    student: Student
    teacher: Teacher | None
    examiner: Examiner = field(default_factory=lambda: Examiner.of(DetectorsConfig()))

    def of(self, tests: Mapping[str, Sequence[Recording]]) -> dict[str, Any]:
        key = self._teacher_key(tests)
        known = _known_replies(self.config.reuse, key)
        sets, rows = {}, []
        with progress("evaluate", len(tests)) as tick:
            for done, (name, recordings) in enumerate(tests.items(), 1):
                sets[name], found = self._set(name, recordings, known)
                rows += found
                tick(done)
        return {
            "student": self.config.student,
            "teacher": self.config.teacher,
            "after": self.config.after,
            "teacher_key": key,
            "sets": sets,
            "samples": rows,
        }

    def _set(
        self, name: str, recordings: Sequence[Recording], known: Mapping[tuple[str, str], str]
    ) -> tuple[dict, list[dict]]:
        """Scores of student, teacher and cascade, and a row for each sample."""
        rollouts = self._rollouts(recordings)
        samples = [rollout.sample for rollout in rollouts]
        replies = [rollout.completion.text for rollout in rollouts]
        audio_s = [one.audio_s for one in recordings for _ in one.samples]
        ended = [rollout.completion.finish == "stop" for rollout in rollouts]
        faults = all_faults(self.examiner, samples, audio_s, replies, ended)
        own = {**asdict(score(samples, replies)), **fault_shares(samples, faults)}
        scores: dict[str, Any] = {"student": own}
        columns: dict[str, list[str | None]] = {}
        kl_of: Mapping[int, Sequence[float]] = {}
        if self.teacher is not None:
            read = [known.get((name, sample.id)) for sample in samples]
            if None in read:
                answers = self.teacher.reply(samples, max_tokens=self.config.evaluation.max_tokens)
                read = [answer.text for answer in answers]
            theirs = fault_shares(samples, all_faults(self.examiner, samples, audio_s, read))
            scores["teacher"] = {**asdict(score(samples, read)), **theirs}
            columns["teacher_reply"] = read
        if self.teacher is not None and (scores["student"]["wer"] or 0) < self.config.evaluation.compare_below_wer:
            kl_of = self._divergence(self.teacher, rollouts)
            scores["student"]["kl_nats"] = _mean([value for values in kl_of.values() for value in values])
            columns["cascade_reply"] = cascade = self._cascade(self.teacher, samples, replies)
            heard = [index for index, reply in enumerate(cascade) if reply is not None]
            scores["cascade"] = asdict(score([samples[i] for i in heard], [cascade[i] for i in heard]))
        rows = []
        for index, rollout in enumerate(rollouts):
            own = row(rollout, kl_of.get(index, ()), self.student)
            path = rollout.sample.audio.path if rollout.sample.audio else None
            place = {"set": name, "kind": rollout.sample.tags.get("kind"), "key": rollout.sample.tags.get("key")}
            audio = {"audio": relative(path, self.config.run_dir) if path else None, "faults": faults[index]}
            rows.append({**own, **place, **audio, **{key: values[index] for key, values in columns.items()}})
        return scores, rows

    def _rollouts(self, recordings: Sequence[Recording]) -> list[Rollout]:
        limits = self.config.evaluation
        engine = build_rollouts(self.student, limits.batch, limits.batch_tokens)
        sampling = Sampling(max_tokens=limits.max_tokens, seed=self.config.seed)
        return engine.generate(*flat(hear(self.student, recordings, reply_tokens=limits.max_tokens)), sampling)

    def _divergence(self, teacher: Teacher, rollouts: Sequence[Rollout]) -> dict[int, Sequence[float]]:
        """KL(student || teacher) of each token, by the index of the rollout, of the kinds that the teacher is asked."""
        kinds = self.config.reading.kinds
        asked = [i for i, rollout in enumerate(rollouts) if not kinds or rollout.sample.tags.get("kind") in kinds]
        if not asked:
            return {}
        evaluate = partial(measure, self.student)
        limits = {"micro_batch": MICRO_BATCH, "micro_batch_tokens": self.config.evaluation.batch_tokens}
        learned = divergence(teacher, self.student, [rollouts[i] for i in asked], evaluate, **limits)
        return {asked[place]: values for place, values in learned.token_kl_nats.items()}

    def _cascade(self, teacher: Teacher, samples: Sequence[Sample], replies: Sequence[str]) -> list[str | None]:
        """The teacher's replies to the student's own transcripts; the transcript itself for `transcribe`.

        None where the student was not asked for a transcript. An empty one is answered by nothing.
        """
        kinds = [sample.tags.get("kind") for sample in samples]
        transcripts = {
            (s.audio, s.more_audio): r for s, r, kind in zip(samples, replies, kinds, strict=True) if kind == TRANSCRIBE
        }
        found: list[str | None] = [transcripts.get((sample.audio, sample.more_audio)) for sample in samples]
        asked = [index for index, kind in enumerate(kinds) if kind != TRANSCRIBE and found[index]]
        heard = [replace(samples[index], transcript=found[index]) for index in asked]
        written = teacher.reply(heard, max_tokens=self.config.evaluation.max_tokens)
        for index, answer in zip(asked, written, strict=True):
            found[index] = answer.text
        return found

    def _teacher_key(self, tests: Mapping[str, Sequence[Recording]]) -> str | None:
        """Changes with anything that the teacher's replies depend on, the weights of a folder apart."""
        if self.teacher is None:
            return None
        asked = [
            (name, sample.id, self.teacher.messages(sample))
            for name, recordings in tests.items()
            for recording in recordings
            for sample in recording.samples
        ]
        settings = (self.config.teacher, self.config.evaluation.max_tokens, self.config.reading.template_options)
        return hashlib.sha256(json.dumps([settings, asked]).encode()).hexdigest()


def _known_replies(folder: Path | None, key: str | None) -> dict[tuple[str, str], str]:
    """The teacher's replies of an earlier evaluation by set and id, where nothing that they depend on has changed."""
    file = folder / "evaluation.json" if folder else None
    if key is None or file is None or not file.is_file():
        return {}
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); leave out --reuse") from error
    if earlier.get("teacher_key") != key:
        return {}
    return {(row["set"], row["id"]): row["teacher_reply"] for row in earlier["samples"] if row.get("teacher_reply")}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
