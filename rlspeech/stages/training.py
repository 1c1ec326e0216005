"""What every learning stage does around its steps: start or resume, record, checkpoint, finish."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlspeech.config import Stage
from rlspeech.engines.cluster import Lost
from rlspeech.errors import RunFailed, UserError
from rlspeech.protocols import Learned, Learner, Loss
from rlspeech.run_dir import RunDir
from rlspeech.stages.models import card
from rlspeech.stages.progress import progress
from rlspeech.types import TokenBatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """The micro-batches of one step, what is to be recorded beside the learner's metrics, and who looks at the step."""

    batches: Sequence[TokenBatch]
    metrics: Mapping[str, float]
    look: Callable[[Learned], Mapping[str, float]] = lambda learned: {}
    updates: int = 1  # steps of the optimizer on these batches; 0: there is nothing to learn from


@contextmanager
def open_run(config: Stage, *, resume: bool) -> Iterator[RunDir]:
    """The run's folder, held until the block ends. A mistake found before the first step leaves no used folder."""
    run = RunDir.open(config.run_dir, config, resume=resume)
    try:
        if run.finished:
            log.info("%s: finished before; nothing to do", run.path)
        yield run
    except UserError:
        run.abandon()
        raise
    finally:
        run.close()


def resume_step(run: RunDir, learner: Learner) -> int:
    """Restores the newest whole training state, drops the records past it, and returns the steps done."""
    latest = run.latest_state()
    step = latest[0] if latest else 0
    if latest:
        learner.restore(latest[1])
        log.info("%s: resumed after step %d", run.path, step)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        run.truncate(name, step if latest else -1)
    return step


Watch = Callable[[int, Mapping[str, Any]], str | None]  # steps done, metrics -> why the run is to stop


@dataclass(frozen=True)
class Recovery:
    """What to do when the learner is lost in the middle of a step: `restart` it, and go on from the newest state."""

    restarts: int
    restart: Callable[[], None]


def learn(
    run: RunDir,
    config: Stage,
    learner: Learner,
    loss: Loss,
    prepare: Callable[[int], Prepared],
    *,
    name: str,
    temperature: float = 1.0,
    recovery: Recovery | None = None,
    watch: Watch = lambda step, metrics: None,
) -> dict[str, Any]:
    """All steps that are left; the last step's metrics.

    Raises RunFailed where the learner is lost too often, and where `watch` says so, with the training state saved.
    """
    lost_times = 0
    while True:
        try:
            return _steps(run, config, learner, loss, prepare, name=name, temperature=temperature, watch=watch)
        except Lost as lost:
            lost_times += 1
            if recovery is None or lost_times > recovery.restarts:
                raise RunFailed(f"{lost}; the learner was lost {lost_times} times") from lost
            log.warning("%s; the learner is started again (%d of %d restarts)", lost, lost_times, recovery.restarts)
            recovery.restart()


def _steps(
    run: RunDir,
    config: Stage,
    learner: Learner,
    loss: Loss,
    prepare: Callable[[int], Prepared],
    *,
    name: str,
    temperature: float,
    watch: Watch,
) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    with progress(name, config.optim.steps) as tick:
        for step in range(resume_step(run, learner), config.optim.steps):
            started_s = time.monotonic()
            prepared = prepare(step)
            ready_s = time.monotonic()
            learned = Learned({"train/loss": 0.0}, {})  # of a step that has nothing to learn from
            if not prepared.updates and prepared.batches:
                learned = learner.evaluate(prepared.batches, loss, temperature=temperature)
            for _ in range(prepared.updates):
                learned = learner.step(prepared.batches, loss, temperature=temperature)
            ended_s = time.monotonic()
            metrics = {**learned.metrics, **prepared.metrics}
            metrics |= {"time/step_s": ended_s - started_s, "time/learn_s": ended_s - ready_s}
            metrics["learn/positions"] = positions = _positions(prepared.batches)
            metrics["learn/padding_share"] = _padding_share(prepared.batches)
            metrics["learn/tokens_per_s"] = positions / (ended_s - ready_s)
            metrics |= prepared.look(learned)
            run.append("metrics.jsonl", {"step": step + 1, **metrics})
            tick(step + 1, {"train/loss": metrics["train/loss"]})
            _keep(run, config, learner, step + 1, why=watch(step + 1, metrics))
    return metrics


def _keep(run: RunDir, config: Stage, learner: Learner, step: int, *, why: str | None) -> None:
    """The training state where it is due, or where the run is to stop. After the last step there is nothing to stop."""
    if step == config.optim.steps:
        if why:
            log.warning("%s, at the last step", why)
        return
    if why or step % config.checkpoints.every_steps == 0:
        with run.new_state(step, keep=config.checkpoints.keep) as folder:
            learner.save(folder)
    if why:
        _, state = run.latest_state() or (step, run.path)
        raise RunFailed(f"{why}; nothing is lost: --resume goes on from {state}")


def finish(run: RunDir, config: Stage, learner: Learner, metrics: Mapping[str, Any], *, stage: str, start: str) -> None:
    """Writes the checkpoint folder and marks the run as done. `start` is what the stage began with."""
    with run.new_checkpoint() as folder:
        learner.export(folder)
        (folder / "README.md").write_text(card(config, dict(metrics), stage=stage, start=start))
    run.finish({"stage": stage, "start": start, "metrics": dict(metrics)})
    log.info("%s: done, checkpoint in %s", stage, run.checkpoint)


def _padding_share(batches: Sequence[TokenBatch]) -> float:
    return 1 - _positions(batches) / max(1, sum(batch.branch.numel() for batch in batches))


def _positions(batches: Sequence[TokenBatch]) -> float:
    """That went through the model, padding apart."""
    return float(sum((batch.branch >= 0).sum() for batch in batches))
