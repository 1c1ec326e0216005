"""Recipe + flags -> typed settings, and back. Every mistake in them is one line that says where and what instead."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from rlspeech.config import (
    AlignConfig,
    ConvertConfig,
    DistillConfig,
    EvaluateConfig,
    ParityConfig,
    PipelineConfig,
    ReportConfig,
    RlbrConfig,
    ServeConfig,
    SftConfig,
    SynthConfig,
)
from rlspeech.config_dpo import DpoConfig, PairsConfig
from rlspeech.config_rewards import RewardTryConfig, ScoreConfig
from rlspeech.errors import UserError, did_you_mean
from rlspeech.plugins import shipped

Config = TypeVar("Config", bound=BaseModel)

CONFIGS: dict[str, type[BaseModel]] = {
    "synth": SynthConfig,
    "align": AlignConfig,
    "sft": SftConfig,
    "distill": DistillConfig,
    "pairs": PairsConfig,
    "dpo": DpoConfig,
    "rlbr": RlbrConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "pipeline": PipelineConfig,
    "parity": ParityConfig,
    "serve": ServeConfig,
    "convert": ConvertConfig,
    "score": ScoreConfig,
    "reward": RewardTryConfig,
}
NONE = "none"  # TOML has no null; this word is None wherever a setting may be None


def load(config_type: type[Config], recipe: Path | str | None, overrides: Mapping[str, str]) -> Config:
    """The settings of a stage: a recipe, then flags over it (`{"optim.lr": "1e-4"}`), validated.

    Raises UserError in one line naming the file and section, or the flag, that is wrong.
    """
    path = find_recipe(recipe) if recipe is not None else None
    settings = _read(path) if path else {}
    verb = verb_of(config_type)
    stage = settings.pop("stage", verb)
    if verb and stage != verb:
        raise UserError(f"{path}: a recipe of {stage!r}, given to {verb!r}")
    settings = _nones(config_type, settings)
    given: dict[tuple[str, ...], str] = {}
    for flag, text in overrides.items():
        keys, annotation = _resolve(config_type, flag)
        _set(settings, keys, _parse(annotation, text))
        given[keys] = text
    try:
        return config_type.model_validate_json(json.dumps(settings, default=str), strict=True)
    except ValidationError as error:
        raise UserError(_explain(config_type, error, path, given)) from error


def find_recipe(recipe: Path | str) -> Path:
    """A path, or a shipped name such as `tiny/distill` or `recipes/tiny/distill.toml`."""
    given = Path(recipe).expanduser()
    name = Path(*given.parts[1:]) if given.parts[:1] == ("recipes",) else given
    for place in (given, shipped("recipes") / name):
        for file in (place, Path(f"{place}.toml")):
            if file.is_file():
                return file
    if given.is_dir():
        raise UserError(f"{recipe}: a folder; a recipe is a .toml file")
    hint = did_you_mean(name.as_posix().removesuffix(".toml"), shipped_recipes())
    raise UserError(f"{recipe}: no such recipe, as a file here or among the shipped ones{hint}")


def shipped_recipes() -> list[str]:
    """Names of the recipes that ship, such as `tiny/distill`."""
    root = shipped("recipes")
    return sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.toml"))


def default_recipe(verb: str, overrides: Mapping[str, str]) -> Path | None:
    """The recipe where none was named: `recipes/<student>/<verb>.toml`, or None where that does not ship."""
    if "student" not in CONFIGS[verb].model_fields:
        return None
    if "student" not in overrides:
        raise UserError(f"{verb}: give a recipe or --student, such as `rlspeech {verb} --student tiny`")
    path = shipped("recipes") / overrides["student"] / f"{verb}.toml"
    return path if path.is_file() else None


def stage_of(recipe: Path | str) -> str:
    """The verb that a recipe is for, its `stage` key."""
    path = find_recipe(recipe)
    stage = _read(path).get("stage")
    if stage not in CONFIGS:
        raise UserError(f"{path}: `stage` must name the verb of this recipe{did_you_mean(str(stage), CONFIGS)}")
    return stage


def verb_of(config_type: type[BaseModel]) -> str | None:
    return next((verb for verb, known in CONFIGS.items() if known is config_type), None)


def settings_of(config_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted name and field of every setting, those of the sections included.

    >>> "sampling.n" in dict(settings_of(DistillConfig))
    True
    """
    for name, field in config_type.model_fields.items():
        section = section_of(field.annotation)
        if section:
            yield from settings_of(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation holds (`LoraConfig | None` -> LoraConfig), or None."""
    return next((t for t in _alternatives(annotation) if isinstance(t, type) and issubclass(t, BaseModel)), None)


def _item_of(annotation: Any) -> type[BaseModel] | None:
    """The model of the values of a table (`dict[str, TeacherRoute]` -> TeacherRoute), or None."""
    tables = [found for found in _alternatives(annotation) if get_origin(found) is dict]
    return section_of(get_args(tables[0])[1]) if tables else None


def flag_name(name: str) -> str:
    """
    >>> flag_name("optim.projector_lr")
    '--optim.projector-lr'
    """
    return "--" + name.replace("_", "-")


def dump_toml(config: BaseModel) -> str:
    """The settings as TOML that `load` reads back to an equal config."""
    verb = verb_of(type(config))
    lines = [f"stage = {_toml(verb)}"] if verb else []
    return "\n".join([*lines, *_dump_section(config, "")]).strip() + "\n"


def _dump_section(config: BaseModel, prefix: str) -> Iterator[str]:
    tables = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel) or (isinstance(value, dict) and value):
            tables.append((f"{prefix}{name}", value))
        elif value is not None:
            yield f"{name} = {_toml(value)}"
        elif field.default is not None:  # also where it is required
            yield f'{name} = "{NONE}"'
    for name, value in tables:
        if not isinstance(value, BaseModel) and all(isinstance(item, BaseModel) for item in value.values()):
            for key, item in value.items():
                yield f"\n[{name}.{_toml(str(key))}]"
                yield from _dump_section(item, f"{name}.{_toml(str(key))}.")
            continue
        yield f"\n[{name}]"
        if isinstance(value, BaseModel):
            yield from _dump_section(value, f"{name}.")
        else:
            yield from (f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        what, _, place = str(error).partition(" (at line ")
        line = place.partition(",")[0] if place.startswith(tuple("0123456789")) else "end"
        raise UserError(f"{path}:{line}: not TOML: {what}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, without the constraints that they are annotated with."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return tuple(t for part in get_args(annotation) for t in _alternatives(part))
    return (annotation,)


def _nones(config_type: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe with the word "none" as None where the setting may be None."""
    result = dict(settings)
    for name, value in settings.items():
        field = config_type.model_fields.get(name)
        if field and value == NONE and NoneType in _alternatives(field.annotation):
            result[name] = None
        elif field and isinstance(value, dict) and (section := section_of(field.annotation)):
            result[name] = _nones(section, value)
        elif field and isinstance(value, dict) and (item := _item_of(field.annotation)):
            result[name] = {key: _nones(item, one) if isinstance(one, dict) else one for key, one in value.items()}
    return result


def _resolve(config_type: type[BaseModel], flag: str) -> tuple[tuple[str, ...], Any]:
    """Keys and annotation of the setting that a dotted flag names; `-` and `_` are one."""
    model: type[BaseModel] = config_type
    keys: tuple[str, ...] = ()
    parts = flag.split(".")
    for i, part in enumerate(parts):
        name = part.replace("-", "_")
        if name not in model.model_fields:
            raise UserError(unknown_flag(config_type, flag))
        annotation = model.model_fields[name].annotation
        keys = (*keys, name)
        rest = ".".join(parts[i + 1 :])
        section, item = section_of(annotation), _item_of(annotation)
        if item and "." in rest:
            name, _, inner = rest.partition(".")
            try:
                inner_keys, annotation = _resolve(item, inner)
            except UserError as error:
                raise UserError(f"--{flag.removesuffix(inner)}*: {error}") from error
            return (*keys, name, *inner_keys), annotation
        if section is None:
            table = next((t for t in _alternatives(annotation) if get_origin(t) is dict), None)
            if rest and table is None:
                raise UserError(unknown_flag(config_type, flag))
            return ((*keys, rest), get_args(table)[1]) if rest else (keys, annotation)
        if not rest:
            return keys, annotation
        model = section
    raise AssertionError(flag)


def unknown_flag(config_type: type[BaseModel], flag: str) -> str:
    known = [name for name, _ in settings_of(config_type)]
    leaf = flag.split(".")[-1].replace("-", "_")
    same_leaf = [name for name in known if name.split(".")[-1] == leaf]
    tail = did_you_mean(flag_name(flag), map(flag_name, same_leaf or known))
    if tail.startswith("; known"):
        tail = f"; did you mean {flag_name(same_leaf[0])!r}?" if same_leaf else "; --help lists them"
    return f"{'-' if len(flag) == 1 else '--'}{flag}: unknown flag{tail}"


def _parse(annotation: Any, text: str) -> Any:
    """The text of a flag as the type of its setting. What does not fit stays text, which validation then refuses."""
    types = _alternatives(annotation)
    if NoneType in types and text.lower() == NONE:
        return None
    if section_of(annotation) or any(get_origin(t) is dict for t in types):
        return _toml_value(text)
    for t in types:
        if get_origin(t) is Literal and text in map(str, get_args(t)):
            return next(choice for choice in get_args(t) if str(choice) == text)
        if get_origin(t) in (list, tuple):
            if text.lstrip().startswith("["):
                return _toml_value(text)
            return [_parse(get_args(t)[0], item.strip()) for item in text.split(",") if item.strip()]
    if bool in types and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        if number in types:
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(settings: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        if not isinstance(settings.get(key), dict):
            settings[key] = {}
        settings = settings[key]
    settings[keys[-1]] = value


def _explain(
    config_type: type[BaseModel], error: ValidationError, path: Path | None, flags: Mapping[tuple[str, ...], str]
) -> str:
    """The first mistake as one line; `flags` are those given, as typed.

    An unknown key goes before what is missing: it is often the cause.
    """
    order = {"extra_forbidden": 0, "missing": 2}
    first = min(error.errors(), key=lambda e: order.get(e["type"], 1))
    keys, model = _place(config_type, first["loc"])
    dotted = ".".join(keys)
    if first["type"] == "missing":
        return f"{dotted} is required: set it in the recipe or by {flag_name(dotted)}"
    section, name = ".".join(keys[:-1]), keys[-1] if keys else ""
    flag = next((flag for flag in flags if keys[: len(flag)] == flag), None)
    where = f"{path} [{section}]" if section else f"{path}"
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key {name!r}{did_you_mean(name, model.model_fields)}"
    if flag:
        return f"{flag_name('.'.join(flag))}: {_what(first)}, got {flags[flag] or 'nothing'}"
    return f"{where} {name}: {_what(first)}, got {_shown(first['input'])}"


def _place(config_type: type[BaseModel], loc: tuple[int | str, ...]) -> tuple[tuple[str, ...], type[BaseModel]]:
    """Keys of the setting an error is about, without list indices and union tags, and the section it is in."""
    model, keys = config_type, ()
    for i, part in enumerate(loc):
        keys = (*keys, str(part))
        field = model.model_fields.get(str(part))
        if field is None:
            break
        section = section_of(field.annotation)
        if section is None:
            is_table = any(get_origin(t) is dict for t in _alternatives(field.annotation))
            return ((*keys, str(loc[i + 1])) if is_table and len(loc) > i + 1 else keys), model
        if i + 1 < len(loc):
            model = section
    return keys, model


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "a table",
    "model": "a table",
}


def _what(error: Any) -> str:
    limits = error.get("ctx", {})
    match error["type"]:
        case "greater_than":
            return f"must be greater than {limits['gt']:g}"
        case "greater_than_equal":
            return f"must be at least {limits['ge']:g}"
        case "less_than":
            return f"must be less than {limits['lt']:g}"
        case "less_than_equal":
            return f"must be at most {limits['le']:g}"
        case "literal_error":
            return f"must be {limits['expected']}"
        case "too_long":
            return f"must have at most {limits['max_length']} items"
        case "too_short":
            return f"must have at least {limits['min_length']} items"
        case kind if (base := kind.partition("_")[0]) in KINDS and kind.endswith(("_type", "_parsing", "_from_float")):
            return f"must be {KINDS[base]}"
    return re.sub(r"^(Input|Value) should ", "must ", error["msg"].removeprefix("Value error, ")).rstrip(".")


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
