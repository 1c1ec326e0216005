"""`pairs`: the student's own replies to each audio, examined; of them, pairs of a preferred and a rejected one.

Replies are written down as they come (replies.jsonl, a line for each batch of audios), so that a killed run goes on
where it was; pairs are chosen from them at the end.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rlspeech.catalog import is_url, resolve
from rlspeech.config_dpo import PairsConfig
from rlspeech.data.pairs import Pair, write
from rlspeech.engines.build import build_writers
from rlspeech.engines.reward_host import RewardHost
from rlspeech.errors import RunFailed, UserError
from rlspeech.protocols import RolloutEngine, Sampling, Teacher
from rlspeech.run_dir import RunDir
from rlspeech.stages.chain import starting_point
from rlspeech.stages.examining import Examiner
from rlspeech.stages.hearing import Heard, Recording, flat, hear, listen, read_samples, recordings_of
from rlspeech.stages.models import use_threads
from rlspeech.stages.on_policy import check_lengths
from rlspeech.stages.pairing import Pairing, report
from rlspeech.stages.progress import progress
from rlspeech.types import Answer, Rollout, Sample

log = logging.getLogger(__name__)

REPLIES = "replies.jsonl"


def run(config: PairsConfig, *, resume: bool = False) -> None:
    """Writes pairs.jsonl, pairs.parquet and pairs.json, the report, into the run folder.

    Raises UserError before any model loads where the settings or the data will not do; RunFailed where no two replies
    make a pair.
    """
    _check_engines(config)
    resolve(config.student, kind="speech")
    if config.teacher and not is_url(config.teacher):
        resolve(config.teacher, kind="text")
    examiner = Examiner.of(config.detectors)
    needs = ("audio", "transcript") if config.teacher else ("audio",)
    samples = read_samples(config.data.train, config.data, needs, kinds=config.data.kinds)
    if config.recordings is not None:
        samples = recordings_of(samples, config.recordings)
    examiner.check(samples)
    recordings = listen(samples)
    with RewardHost.of(config.rewards) if config.rewards else nullcontext() as rewards:
        # Pairs are chosen at the end, of replies that are written down: until then they can be chosen otherwise.
        free = () if (config.run_dir / "pairs.jsonl").exists() else ("choosing", "detectors")
        folder = RunDir.open(config.run_dir, config, resume=resume, may_change=free)
        try:
            if folder.finished:
                log.info("%s: finished before; nothing to do", folder.path)
                return
            _write_replies(config, folder, recordings, rewards)
            _choose(config, folder, recordings, examiner)
        finally:
            folder.close()


def _check_engines(config: PairsConfig) -> None:
    """Raises UserError where settings of the engines cannot go together, or cannot act."""
    engines, cluster, tokens = config.engines, config.cluster, config.replies.max_tokens
    served = config.teacher is not None and not is_url(config.teacher)
    if engines.learner != "torch":
        raise UserError(f"engines.learner = {engines.learner!r}: nobody learns here; leave it out")
    if engines.teacher != "transformers" and not served:
        raise UserError(f"engines.teacher = {engines.teacher!r}: there is no teacher to load; leave it out")
    if "vllm" in (engines.rollouts, engines.teacher) and tokens >= config.vllm.max_model_len:
        room = f"vllm.max_model_len = {config.vllm.max_model_len}"
        raise UserError(f"replies.max_tokens = {tokens} leaves no room for a prompt in {room}")
    if config.choosing.unlikely_nats is not None and not config.teacher:
        raise UserError("choosing.unlikely_nats: cannot act without a teacher; name one, or leave it out")
    if config.choosing.judged is not None and not config.rewards:
        raise UserError("choosing.judged: cannot act without [rewards]; name one, or leave it out")
    if cluster is None:
        return
    if engines.rollouts != "vllm":
        raise UserError(f"[cluster] wants engines.rollouts = 'vllm', got {engines.rollouts!r}")
    if served and engines.teacher != "vllm":
        raise UserError(f"[cluster] wants engines.teacher = 'vllm' or a URL as teacher, got {engines.teacher!r}")
    for name, plain in (("learners", 1), ("colocated", False), ("sync", "merged")):
        if (value := getattr(cluster, name)) != plain:
            raise UserError(f"cluster.{name} = {value!r}: nobody learns here; leave it out")


def _write_replies(
    config: PairsConfig, folder: RunDir, recordings: Sequence[Recording], rewards: RewardHost | None
) -> None:
    """All that are not written yet."""
    batches = [recordings[start : start + config.batch] for start in range(0, len(recordings), config.batch)]
    done = len(folder.records(REPLIES))
    folder.truncate(REPLIES, done)
    if done == len(batches):
        return
    use_threads(config.threads, config.seed)
    start = starting_point(config)
    if rewards is not None:
        rewards.start()
    with build_writers(config, start) as engines, progress("pairs", len(batches)) as tick:
        heard = hear(engines.student, recordings, reply_tokens=config.replies.max_tokens)
        if config.engines.rollouts == "vllm":
            check_lengths(heard, config.replies.max_tokens, config.vllm)
        writer = _Writer(config, engines.rollouts, engines.teacher, rewards)
        for number in range(done, len(batches)):
            started_s = time.monotonic()
            first = number * config.batch
            found = writer.replies(heard[first : first + config.batch], number)
            folder.append(REPLIES, {"step": number + 1, "seconds": time.monotonic() - started_s, "samples": found})
            tick(number + 1)


@dataclass
class _Writer:
    """The student's replies, with what teacher and judges say of them."""

    config: PairsConfig
    rollouts: RolloutEngine
    teacher: Teacher | None
    rewards: RewardHost | None

    def replies(self, heard: Sequence[Heard], number: int) -> list[dict[str, Any]]:
        """Of each sample of a batch of audios."""
        samples, prompts = flat(heard)
        written: list[Rollout] = []
        for place, temperature in enumerate(self.config.replies.temperatures):
            seed = (self.config.seed * 1_000_003 + number) * 101 + place
            settings = self.config.replies
            sampling = Sampling(
                max_tokens=settings.max_tokens,
                temperature=temperature,
                top_p=settings.top_p,
                n=settings.n,
                seed=seed % 2**31,
            )
            written += self.rollouts.generate(samples, prompts, sampling)
        replies: dict[str, list[dict[str, Any]]] = {sample.id: [] for sample in samples}
        likely, judged = self._likelihoods(written), self._judged(written)
        for index, rollout in enumerate(written):
            one = rollout.completion
            told = {"nats_per_byte": likely[index], "judged": judged[index]}
            replies[rollout.sample.id].append({"text": one.text, "ended": one.finish == "stop", **told})
        for sample, answer in self._teachers(samples):
            replies[sample.id].append({"text": answer.text, "ended": answer.ended, "origin": "teacher"})
        return [{"id": sample.id, "replies": replies[sample.id]} for sample in samples]

    def _asked(self, sample: Sample) -> bool:
        kinds = self.config.reading.kinds
        return not kinds or sample.tags.get("kind") in kinds

    def _likelihoods(self, written: Sequence[Rollout]) -> list[float | None]:
        """log p of each reply given the transcript, in nats a byte; None where the teacher is not asked."""
        found: list[float | None] = [None] * len(written)
        if self.teacher is None:
            return found
        asked = [index for index, one in enumerate(written) if self._asked(one.sample) and one.completion.text]
        scored = self.teacher.score([written[i].sample for i in asked], [written[i].completion for i in asked])
        for index, one in zip(asked, scored, strict=True):
            found[index] = float(one.logprobs.sum()) / len(written[index].completion.text.encode())
        return found

    def _judged(self, written: Sequence[Rollout]) -> list[float | None]:
        if self.rewards is None:
            return [None] * len(written)
        found = list(self.rewards.score(written).total)
        if all(value is None for value in found):
            names = ", ".join(self.config.rewards)
            raise UserError(f"rewards: {names} gave none of {len(found)} replies a score; --resume goes on behind them")
        return found

    def _teachers(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        """Its own replies: they are preferred where the student has none without a fault."""
        asked = [sample for sample in samples if self._asked(sample)]
        if self.teacher is not None and asked:
            answers = self.teacher.reply(asked, max_tokens=self.config.replies.max_tokens)
            yield from zip(asked, answers, strict=True)


def _choose(config: PairsConfig, folder: RunDir, recordings: Sequence[Recording], examiner: Examiner) -> None:
    """From all replies that are written down; the same each time."""
    written = {one["id"]: one["replies"] for record in folder.records(REPLIES) for one in record["samples"]}
    pairing = Pairing(examiner, config.choosing)
    pairs: list[Pair] = []
    for recording in recordings:
        for sample in recording.samples:
            pairs += pairing.pairs(sample, recording.audio_s, written[sample.id])
    told = report(pairing, pairs)
    folder.write_json("pairs.json", told)
    for line in told["lines"]:
        log.info("%s", line)
    if not pairs:
        raise RunFailed(
            f"{folder.path}: no pair of {pairing.prompts} prompts ({pairing.told_why()}); {pairing.advice()}"
        )
    for name in ("pairs.jsonl", "pairs.parquet"):
        write(folder.path / name, pairs)
    folder.finish({"stage": "pairs", "pairs": len(pairs)})
    log.info("pairs: %d of %d prompts, in %s", len(pairs), pairing.prompts, folder.path / "pairs.jsonl")
