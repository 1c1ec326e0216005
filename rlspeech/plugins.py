"""A name is a file: how a recipe's `loss = "jsd"` or `synth = "mine.py"` becomes an object."""

import importlib
import importlib.util
import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from hashlib import sha256
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from rlspeech.errors import UserError, did_you_mean

Kind = Literal["losses", "students", "reward_models", "data_synth"]

PACKAGE = Path(__file__).resolve().parent
IN_PACKAGE = ("losses", "students")


def shipped(folder: str) -> Path:
    """Where a folder that ships with rlspeech lies: recipes, reward_models, data_synth, losses, students.

    In a wheel the folders of the repository's root are mapped into `rlspeech/_shipped`; in a checkout they are beside
    the package.
    """
    if folder in IN_PACKAGE:
        return PACKAGE / folder
    in_wheel = PACKAGE / "_shipped" / folder
    return in_wheel if in_wheel.is_dir() else PACKAGE.parent / folder


def shipped_names(kind: Kind) -> list[str]:
    """Bare names that ship with rlspeech: the file names of a folder.

    >>> "exchanges" in shipped_names("data_synth")
    True
    """
    return sorted(file.stem for file in shipped(kind).glob("*.py") if not file.stem.startswith("_"))


def load_class(kind: Kind, name: str, class_name: str, options: Mapping[str, Any] = {}) -> Any:
    """The component `name` of a kind, built with its options.

    `name` is a bare name (a file that ships, or an installed entry point of the group `rlspeech.<kind>`), a
    `path.py[:Class]`, or `package.module[:Class]`. Options are checked against the dataclass's fields and their types.
    Raises UserError in one line for an unknown name, an unknown, missing or ill-typed option, and for the ValueError by
    which the component refuses its settings.
    """
    return build(find_class(kind, name, class_name), options, name)


def build(cls: type, options: Mapping[str, Any], name: str) -> Any:
    """A component of a class with its options, as in `load_class`."""
    where = f"{_file_of(cls, name)}: {cls.__name__}"
    settings = _checked_options(cls, options, where)
    try:
        return cls(**settings)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def find_class(kind: Kind, name: str, class_name: str) -> type:
    """The class that `name` stands for, as in `load_class`, not instantiated (students are made by `Student.load`)."""
    found = find(kind, name, class_name)
    if not inspect.isclass(found):
        raise UserError(f"{name}: a function, where a class is wanted")
    return found


def find(kind: Kind, name: str, default: str) -> Any:
    """The class or function that `name` stands for: `default` where it names a file or a module alone."""
    module_name, _, chosen = name.partition(":") if not _is_windows_path(name) else (name, "", "")
    if module_name.endswith(".py"):
        module = _import_file(Path(module_name).expanduser())
    elif module_name in shipped_names(kind):
        module = _import_shipped(kind, module_name)
    elif entry := _entry_point(kind, name):
        found = entry.load()
        if callable(found):
            return found
        module = found
    elif "." in module_name and "/" not in module_name:
        module = _import_dotted(kind, module_name)
    else:
        known = [*shipped_names(kind), *(entry.name for entry in entry_points(group=_group(kind)))]
        raise UserError(
            f"{kind}: no {name!r} among the shipped files, the installed entry points, or as a path ending in .py"
            f"{did_you_mean(name, known)}"
        )
    return _member(module, chosen or default, name)


def _is_windows_path(name: str) -> bool:
    return len(name) > 2 and name[1] == ":" and name[2] in "\\/"


def _entry_point(kind: Kind, name: str) -> Any | None:
    return next(iter(entry_points(group=_group(kind), name=name)), None)


def _group(kind: Kind) -> str:
    """Of the entry points of a kind."""
    return "rlspeech.rewards" if kind == "reward_models" else f"rlspeech.{kind}"


def _member(module: ModuleType, wanted: str, name: str) -> Any:
    found = getattr(module, wanted, None)
    if callable(found):
        return found
    own = [n for n, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
    raise UserError(f"{module.__file__ or name}: no class {wanted!r}{did_you_mean(wanted, own)}")


def _import_shipped(kind: Kind, name: str) -> ModuleType:
    if kind in IN_PACKAGE:
        return importlib.import_module(f"rlspeech.{kind}.{name}")
    module_name = f"rlspeech._shipped.{kind}.{name}"  # the same in a checkout, so that pickles can be exchanged
    if (PACKAGE / "_shipped" / kind).is_dir():
        return importlib.import_module(module_name)
    return _execute(shipped(kind) / f"{name}.py", module_name)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = sorted(file.name for file in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such file{did_you_mean(path.name, near)}")
    resolved = path.resolve()
    return _execute(resolved, f"rlspeech_user_{resolved.stem}_{sha256(str(resolved).encode()).hexdigest()[:8]}")


def _import_dotted(kind: Kind, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or ""):
            raise  # the module is there; something that it imports is not
        raise UserError(f"{kind}: no module {module_name!r} is installed") from error


def _execute(path: Path, module_name: str) -> ModuleType:
    """Runs a file once as the module `module_name`: dataclasses and pickle look a class up in sys.modules."""
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[module_name]
        raise UserError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def _file_of(cls: type, name: str) -> str:
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or name


def _checked_options(cls: type, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not is_dataclass(cls):
        if options:
            raise UserError(f"{where}: takes no options, got {', '.join(map(repr, options))}")
        return {}
    known = {field.name: field for field in fields(cls) if field.init}
    for option in options:
        if option not in known:
            hint = did_you_mean(option, known) or "; it has none"
            raise UserError(f"{where}: unknown option {option!r}{hint}")
    for name, field in known.items():
        if field.default is MISSING and field.default_factory is MISSING and name not in options:
            raise UserError(f"{where}: option {name!r} is required")
    return {name: _typed(cls, name, value, where) for name, value in options.items()}


def _typed(cls: type, option: str, value: Any, where: str) -> Any:
    """The value as the field's type: 4.0 is 4 for an `int`, text is a Path. Types that pydantic cannot read pass."""
    from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

    try:
        hint = typing.get_type_hints(cls)[option]
        return TypeAdapter(hint).validate_python(value)
    except (NameError, PydanticSchemaGenerationError):  # a name imported under TYPE_CHECKING only, or a foreign class
        return value
    except ValidationError as error:
        what = error.errors()[0]["msg"].replace("Input should be", "should be")
        raise UserError(f"{where}: option {option!r} {what}, got {value!r}") from error
