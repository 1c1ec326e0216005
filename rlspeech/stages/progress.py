"""A progress bar on a terminal, plain lines in a log."""

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0


@dataclass
class Ticker:
    """`tick(done, metrics)` shows how far a job is."""

    name: str
    total: int
    bar: Any = None
    task: Any = None
    started_s: float = field(default_factory=time.monotonic)
    said_s: float = 0.0

    def __call__(self, done: int, metrics: Mapping[str, float] = {}) -> None:
        shown = "  ".join(f"{name.rpartition('/')[2]} {value:.4g}" for name, value in metrics.items())
        if self.bar is not None:
            self.bar.update(self.task, completed=done, shown=shown)
            return
        now = time.monotonic()
        if done >= self.total or now - self.said_s >= LINE_EVERY_S:
            self.said_s = now
            log.info("%s %d/%d  %s  (%.0f s)", self.name, done, self.total, shown, now - self.started_s)


@contextmanager
def progress(name: str, total: int) -> Iterator[Ticker]:
    if not sys.stderr.isatty():
        yield Ticker(name, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        yield Ticker(name, total, bar, bar.add_task(name, total=total, shown=""))
