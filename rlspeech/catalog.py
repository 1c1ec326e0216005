"""Names of models to folders of weights: a short name of catalog.toml, a folder, or a hub id, accepted everywhere."""

import ast
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rlspeech.cache import cache_dir
from rlspeech.errors import UserError, did_you_mean
from rlspeech.plugins import shipped, shipped_names

Kind = Literal["speech", "text"]
Source = Literal["folder", "cache", "to assemble", "hub"]

MARK = "rlspeech.json"  # in a folder of ours: {"family": "tiny"}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Entry:
    """A model of the catalog, or what a folder's config.json tells of one. See catalog.toml."""

    kind: Kind
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    fused: bool = False  # query, key and value are one linear layer, and so are the MLP's gate and up
    rest: float = 0.0  # billions of parameters beside the language model
    family: str | None = None
    repo: str | None = None
    builder: str | None = None
    license: str = "unknown"
    tokenizer: str | None = None
    weights: str = "bfloat16"
    audio_tokens_per_s: float | None = None

    @property
    def parameters(self) -> float:
        """In billions.

        A layer holds the four projections of attention, hidden x (2 heads + 2 kv_heads) x head_dim, and the three of
        the gated MLP, 3 x hidden x intermediate; norms and biases are left out (below 0.1 %).
        """
        attention = self.hidden * (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        layers = self.layers * (attention + 3 * self.hidden * self.intermediate)
        return (layers + self.vocab * self.hidden * (1 if self.tied else 2)) / 1e9 + self.rest

    @property
    def bytes_each(self) -> int:
        """Of one weight."""
        return BYTES[self.weights]

    def lora_parameters(self, rank: int) -> float:
        """In billions, of an adapter on every linear layer of the language model: rank x (inputs + outputs) each."""
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * (self.hidden + query) + 2 * (self.hidden + keys)
        sides = attention + 3 * (self.hidden + self.intermediate)
        if self.fused:  # three inputs are shared with others
            sides -= 3 * self.hidden
        return self.layers * rank * sides / 1e9


@dataclass(frozen=True)
class Resolved:
    """What a name stands for. `family` is a file under rlspeech/students/, None where it is a text model or not known
    before the files are here; `entry` is None where nothing is known of its shape."""

    name: str
    family: str | None
    folder: Path | None
    repo: str | None
    entry: Entry | None


def resolve(name: str, *, kind: Kind | None = None) -> Resolved:
    """A short name, a folder (or run folder), or a hub id. Reads config.json at most; loads and fetches nothing.

    Raises UserError in one line where the name is none of these, or is not a model of this kind.
    """
    entry = entries().get(name)
    folder = Path(name).expanduser()
    if entry:
        resolved = Resolved(name, entry.family, None, entry.repo, entry)
    elif folder.is_dir():
        resolved = _of_folder(name, folder)
    elif _is_hub_id(name):
        resolved = _of_repo(name)
    else:
        raise UserError(_unknown(name, folder, kind))
    known = resolved.entry.kind if resolved.entry else None
    if kind and known and known != kind:
        others = ", ".join(short for short, other in entries().items() if other.kind == kind)
        raise UserError(f"{name}: a {known} model where a {kind} model is needed, such as {others}")
    return resolved


def is_url(name: str) -> bool:
    """Whether a teacher's name is the address of a server, which has no files here to resolve.

    >>> is_url("http://127.0.0.1:8000"), is_url("HTTPS://teacher.example/v1"), is_url("meta-llama/Llama-3.3-70B")
    (True, True, False)
    """
    return name.lower().startswith(("http://", "https://"))


def source(resolved: Resolved) -> Source:
    """Where the files of a model are now: "folder", "cache", or to be had: "to assemble", "hub"."""
    if resolved.folder:
        return "folder"
    if resolved.entry and resolved.entry.builder:
        made = re.compile(rf"{re.escape(resolved.name)}-\d+")
        models = cache_dir() / "models"
        found = models.is_dir() and any(made.fullmatch(path.name) for path in models.iterdir())
        return "cache" if found else "to assemble"
    assert resolved.repo is not None, resolved
    return "cache" if _in_hub_cache(resolved.repo) else "hub"


def fetch(resolved: Resolved) -> Path:
    """A folder with the model's files: assembled, found in the hub's cache, or downloaded into it.

    Raises UserError in one line that says what was tried and what to do.
    """
    if resolved.folder:
        return resolved.folder
    if resolved.entry and resolved.entry.builder:
        from rlspeech.embedded import pair

        return pair.FOLDERS[resolved.name]()
    assert resolved.repo is not None, resolved
    here = _in_hub_cache(resolved.repo)
    if here:
        return here
    if offline():
        raise UserError(missing(resolved, "HF_HUB_OFFLINE is set"))
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(resolved.repo))
    except HfHubHTTPError as error:
        raise UserError(missing(resolved, _answer(error.response.status_code))) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(missing(resolved, "the hub does not answer")) from error


def ask_hub(resolved: Resolved) -> str | None:
    """Why a model that is not in the cache cannot be downloaded now; None where it can. Downloads nothing."""
    if offline():
        return "HF_HUB_OFFLINE is set"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(str(resolved.repo), timeout=10)
    except HfHubHTTPError as error:
        return _answer(error.response.status_code)
    except Exception as error:  # the http client's own kinds of failure, which changed between versions of the hub's
        return f"the hub does not answer ({type(error).__name__})"
    return None


def missing(resolved: Resolved, why: str) -> str:
    """The line about a model whose files cannot be had."""
    return (
        f"{resolved.name}: not in the cache of the hub ({_hub_cache()}) and {why}; run `huggingface-cli download "
        f"{resolved.repo}` where there is a network, or give a folder in place of the name"
    )


def offline() -> bool:
    return any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE)


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@cache
def entries() -> Mapping[str, Entry]:
    """The catalog: short name -> entry."""
    return {name: Entry(**settings) for name, settings in _catalog()["models"].items()}


@cache
def families() -> Mapping[str, str]:
    """Architecture in a config.json -> family, as the files of the families say it themselves; none is imported."""
    found = {}
    for family in shipped_names("students"):
        tree = ast.parse((shipped("students") / f"{family}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ARCHITECTURES":
                found |= dict.fromkeys(ast.literal_eval(node.value), family)
    return found


@cache
def _catalog() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("catalog.toml").read_text(encoding="utf-8"))


def _of_folder(name: str, folder: Path) -> Resolved:
    if not (folder / "config.json").is_file() and (folder / "checkpoint" / "config.json").is_file():
        folder = folder / "checkpoint"  # a run folder was given
    config = _read_json(folder / "config.json")
    architecture = next(iter(config.get("architectures") or []), "none")
    family = _read_json(folder / MARK).get("family") if (folder / MARK).is_file() else None
    family = family or families().get(architecture)
    if not family and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        known = ", ".join(families())
        raise UserError(
            f"{folder}: architecture {architecture!r} is of no known family; known: {known}; see docs/students.md"
        )
    return Resolved(name, family, folder, None, _described(config, family, folder))


def _of_repo(name: str) -> Resolved:
    for short, entry in entries().items():
        if entry.repo == name:
            return Resolved(name, entry.family, None, name, entries()[short])
    here = _in_hub_cache(name)
    if not here:
        return Resolved(name, None, None, name, None)
    found = _of_folder(name, here)
    return Resolved(name, found.family, None, name, found.entry)


def _described(config: Mapping[str, Any], family: str | None, folder: Path) -> Entry | None:
    """The entry that a folder's config.json amounts to, or None where it lacks what the plan needs."""
    text = config.get("text_config") or config.get("thinker_config", {}).get("text_config") or config
    alike = next((entry for entry in entries().values() if family and entry.family == family), None)
    try:
        heads, hidden = text["num_attention_heads"], text["hidden_size"]
        shape = Entry(
            kind="speech" if family else "text",
            layers=text["num_hidden_layers"],
            hidden=hidden,
            intermediate=text["intermediate_size"],
            heads=heads,
            kv_heads=text.get("num_key_value_heads") or heads,
            head_dim=text.get("head_dim") or hidden // heads,
            vocab=text["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            family=family,
            tokenizer=alike.tokenizer if alike and alike.vocab == text["vocab_size"] else None,
            weights=_dtype(config, text),
            audio_tokens_per_s=alike.audio_tokens_per_s if alike else None,
        )
    except KeyError:
        return None
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rest = max(0.0, size / shape.bytes_each / 1e9 - shape.parameters)
    return replace(shape, rest=rest)


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    named = next((c[key] for c in (config, text) for key in ("dtype", "torch_dtype") if c.get(key)), "float32")
    return named if named in BYTES else "float32"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: no {path.name}, so no folder of a model") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON table")
    return value


def _is_hub_id(name: str) -> bool:
    """`organisation/model`, unless its first part is a folder here: then it is a path with a slip in it."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).parent.is_dir()


def _unknown(name: str, folder: Path, kind: Kind | None) -> str:
    if "/" in name or name.startswith((".", "~")):
        near = sorted(path.name for path in folder.parent.iterdir()) if folder.parent.is_dir() else []
        close = did_you_mean(folder.name, near)
        return f"{name}: no such folder{close if close.startswith('; did') else ''}"
    known = [short for short, entry in entries().items() if kind in (None, entry.kind)]
    what = f"{kind} model" if kind else "model"
    return f"{name}: no {what} of this name, no folder, no hub id (organisation/name){did_you_mean(name, known)}"


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _in_hub_cache(repo: str) -> Path | None:
    """The snapshot of a repository in the hub's cache, where all of its weights are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    if not (folder / "config.json").is_file():
        return None
    for index in folder.glob("*.safetensors.index.json"):
        names = set(_read_json(index).get("weight_map", {}).values())
        if not all((folder / name).is_file() for name in names):
            return None
    return folder if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else None


def _answer(status: int) -> str:
    if status in (401, 403):
        return "the hub refuses it (a gated model: accept its licence there, then `huggingface-cli login`)"
    return "the hub has no such model" if status == 404 else f"the hub answers with status {status}"
