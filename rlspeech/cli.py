"""The `rlspeech` command, VERB [RECIPE] [--flags]: reads settings, says what is wrong with them, runs a stage."""

import argparse
import importlib
import logging
import os
import re
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TextIO, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rlspeech.errors import CheckFailed, RunFailed, UserError, did_you_mean
from rlspeech.recipe import (
    CONFIGS,
    default_recipe,
    dump_toml,
    flag_name,
    load,
    section_of,
    settings_of,
    stage_of,
    unknown_flag,
)
from rlspeech.verbs import EVERYTHING, TOOLS, VERBS

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")
ANY_PAIR = "tiny/distill"  # recipe of a self-test whose student has none: prompts and settings of any pair
TERMINATED = threading.Event()  # SIGTERM came


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status.

    0; 1 where a run could not go on or a check did not pass; 2 for a mistake of the user; 130, 143 where interrupted,
    terminated; 141 where nobody reads what is printed.
    """
    try:
        _end_on_sigterm()
        _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except UserError as error:
        print(f"rlspeech: error: {error}", file=sys.stderr)
        return 2
    except (CheckFailed, RunFailed) as error:
        more = "; a stage that learns goes on with --resume" if isinstance(error, RunFailed) else ""
        print(f"rlspeech: failed: {error}{more}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        what = "terminated" if TERMINATED.is_set() else "interrupted"
        print(f"rlspeech: {what}; a stage that learns goes on with --resume", file=sys.stderr)
        return 143 if TERMINATED.is_set() else 130
    except BrokenPipeError:
        if not _has_lost_its_reader(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left as it ends
        return 141
    return 0


def _has_lost_its_reader(stream: TextIO) -> bool:
    """The reader of a pipe, such as `head`, has gone."""
    try:
        pipe = select.poll()
        pipe.register(stream.fileno(), 0)  # errors are told unasked
    except (OSError, ValueError):  # closed, or no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in pipe.poll(0))


def _end_on_sigterm() -> None:
    TERMINATED.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """As Ctrl-C: everything on the way out ends what it has started. Ray passes on no other exception than this."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would cut the way out short
    TERMINATED.set()
    raise KeyboardInterrupt


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"rlspeech {version('rlspeech')}")
        return
    verb, *rest = argv
    if verb not in EVERYTHING:
        kind = "flag before the verb" if verb.startswith("-") else "verb"
        raise UserError(f"{verb}: unknown {kind}{did_you_mean(verb, EVERYTHING)}")
    if verb == "doctor":
        _run_doctor(rest)
    elif verb == "plan":
        _run_plan(rest)
    else:
        _run_stage(verb, rest)


def _run_stage(verb: str, argv: list[str]) -> None:
    argv = _joined(argv)
    parser = _parser(verb, argv)
    given, unknown = parser.parse_known_args(argv)
    overrides = {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in vars(given).items()
        if "/" not in name
    }
    if unknown:
        _refuse(verb, unknown)
    _set_up_logs(getattr(given, "/verbosity"))
    recipe, self_test = getattr(given, "/recipe", None), getattr(given, "/self_test", False)
    if VERBS[verb].words:
        told = {name: getattr(given, f"/{name}") for name in VERBS[verb].words}
        overrides |= {name: word for name, word in told.items() if word is not None}
    elif recipe is None:
        recipe = default_recipe(verb, overrides) or (ANY_PAIR if self_test else None)
    config = load(CONFIGS[verb], recipe, overrides)
    parameters = getattr(given, "/parameters", False)
    if getattr(given, "/dry_run") or parameters:
        _show_plan(verb, config)
        if parameters:
            importlib.import_module("rlspeech.stages.parameters").run(config)
        return
    if not any(Path(device).exists() for device in GPU_DEVICES):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers imports, warns otherwise
    if self_test:
        importlib.import_module("rlspeech.stages.self_test").run(config)
        return
    stage = importlib.import_module(f"rlspeech.stages.{verb}")
    stage.run(config, **({"resume": getattr(given, "/resume")} if VERBS[verb].resumes else {}))


def _joined(argv: list[str]) -> list[str]:
    """`--optim.lr -1e-4` as `--optim.lr=-1e-4`: argparse takes such a value for a flag.

    >>> _joined(["a", "--x", "-1e-4", "--y", "-z"])
    ['a', '--x=-1e-4', '--y', '-z']
    """
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1].startswith("--") and re.match(r"-\.?\d", word):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _show_plan(verb: str, config: BaseModel) -> None:
    """The plan of what learns, stage by stage; of the rest, the settings as they would be used."""
    plan = importlib.import_module("rlspeech.stages.plan")
    if VERBS[verb].learns:
        plan.run(config)
        return
    print(f"# {verb}: nothing is run; the settings are\n{dump_toml(config)}")
    for recipe in getattr(config, "stages", ()):
        print(f"# {recipe}")
        _show_plan(stage_of(recipe), load(CONFIGS[stage_of(recipe)], recipe, {}))


def _run_doctor(argv: list[str]) -> None:
    parser = _Parser(prog="rlspeech doctor", description=TOOLS["doctor"].capitalize() + ".", allow_abbrev=False)
    _, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f"doctor: takes no arguments, got {unknown[0]}")
    importlib.import_module("rlspeech.stages.doctor").main()


def _run_plan(argv: list[str]) -> None:
    learning = [verb for verb, known in VERBS.items() if known.learns]
    if not argv or argv[0] in ("-h", "--help"):
        about = "Prints the plan of a learning verb and loads no model: the same as its --dry-run."
        print(f"usage: rlspeech plan {{{','.join(learning)}}} [RECIPE] [--flags]\n\n{about}")
    elif argv[0] not in learning:
        raise UserError(f"plan {argv[0]}: no plan for this{did_you_mean(argv[0], learning)}")
    else:
        _run_stage(argv[0], [*argv[1:], "--dry-run"])


def _overview() -> str:
    width = max(map(len, EVERYTHING))
    lines = [f"  {verb:<{width}}  {known.summary}" for verb, known in VERBS.items()]
    lines += [f"  {tool:<{width}}  {summary}" for tool, summary in TOOLS.items()]
    return "\n".join(
        [
            "usage: rlspeech VERB [RECIPE] [--flags] [--dry-run] [--resume]",
            "",
            "Trains speech LLMs by alignment, supervised fine-tuning and on-policy distillation from a text teacher.",
            "",
            "verbs:",
            *lines,
            "",
            "A recipe is a TOML file, or the name of one that ships, such as tiny/distill. Any setting is also a flag:",
            "  rlspeech distill --teacher tiny-llm --student tiny --optim.lr 1e-4",
            "`rlspeech VERB --help` lists the settings of a verb.",
        ]
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _parser(verb: str, argv: Sequence[str]) -> argparse.ArgumentParser:
    """Flags of a verb. Names with "/" are ours, all others are settings; those that are not given are absent."""
    known = VERBS[verb]
    word = " ".join(map(str.upper, known.words)) or "[RECIPE]"
    parser = _Parser(
        prog=f"rlspeech {verb}",
        usage=f"rlspeech {verb} {word} [--flags] [--dry-run]{' [--resume]' * known.resumes}"
        + " [--self-test]" * known.self_tests,
        description=textwrap.fill(known.about, 100),
        epilog="examples:\n" + "\n".join(f"  {example}" for example in known.examples),
        formatter_class=_Help,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    ours = parser.add_argument_group("command")
    text = "TOML file, or the name of a recipe that ships"
    if "student" in CONFIGS[verb].model_fields:
        text += f"; default: recipes/STUDENT/{verb}.toml"
    for name in known.words or ("recipe",):
        said = f"the same as --{name}" if known.words else text
        ours.add_argument(f"/{name}", metavar=name.upper(), nargs="?", default=None, help=said)
    ours.add_argument("-h", "--help", action="help", help="print this and stop")
    ours.add_argument("--dry-run", dest="/dry_run", action="store_true", default=False, help="print the plan, stop")
    if known.learns:
        text = "print the plan and which parameters learn in which stage, stop"
        ours.add_argument("--parameters", dest="/parameters", action="store_true", default=False, help=text)
    if known.resumes:
        text = "go on where a killed run of the same settings stopped"
        ours.add_argument("--resume", dest="/resume", action="store_true", default=False, help=text)
    if known.self_tests:
        text = "score the student's replies to the teacher's own prompts, stop: about 0 where both are one model"
        ours.add_argument("--self-test", dest="/self_test", action="store_true", default=False, help=text)
    level = {"dest": "/verbosity", "action": "store_const", "default": logging.INFO}
    ours.add_argument("--verbose", const=logging.DEBUG, help="log more", **level)
    ours.add_argument("--quiet", const=logging.WARNING, help="log warnings only", **level)
    _add_settings(parser, CONFIGS[verb], argv)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=36, width=110)


def _add_settings(parser: argparse.ArgumentParser, config: type[BaseModel], argv: Sequence[str]) -> None:
    group = parser.add_argument_group("settings")
    for name, field in config.model_fields.items():
        if section_of(field.annotation) is None:
            _add_setting(group, name, field, argv)
    for name, field in config.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            continue
        off = NoneType in get_args(field.annotation)
        about = (section.__doc__ or "").strip() + (f" {flag_name(name)} none: off." if off else "")
        group = parser.add_argument_group(f"[{name}]", about)
        # the section as a whole: "none", or an inline table
        group.add_argument(*_spellings(name), dest=name, help=argparse.SUPPRESS)
        for key, setting in section.model_fields.items():
            _add_setting(group, f"{name}.{key}", setting, argv)


def _add_setting(group: Any, name: str, field: FieldInfo, argv: Sequence[str]) -> None:
    kind = type_name(field.annotation)
    if kind.startswith("table"):  # --data.tests.voice x.jsonl: the names are the user's
        group.add_argument(*_spellings(name), dest=name, help=argparse.SUPPRESS)
        group.add_argument(f"{flag_name(name)}.NAME", dest=f"{name}.NAME", metavar="VALUE", help=_help(field, kind))
        for flag in {arg.partition("=")[0] for arg in argv if arg.startswith(tuple(f"{s}." for s in _spellings(name)))}:
            if flag != f"{flag_name(name)}.NAME":
                group.add_argument(flag, dest=flag.removeprefix("--"), help=argparse.SUPPRESS)
        return
    switch: dict[str, Any] = {"nargs": "?", "const": "true"} if kind == "true or false" else {}
    if kind.startswith("list"):
        switch = {"action": "append"}  # --hyps a.tsv --hyps b.tsv, or both with a comma
    metavar = METAVARS[kind.partition(" ")[0]]
    first, *others = _spellings(name)
    group.add_argument(first, dest=name, metavar=metavar, help=_help(field, kind), **switch)
    for other in others:
        group.add_argument(other, dest=name, help=argparse.SUPPRESS, **switch)


METAVARS = {
    "whole": "INT",
    "one": "WORD",
    "list": "LIST",
    "true": "BOOL",
    "number": "NUMBER",
    "text": "TEXT",
    "path": "PATH",
}


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([flag_name(name), f"--{name}"]))


def _help(field: FieldInfo, kind: str) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        tail = "required"
    elif default is None:
        tail = "" if "default:" in (field.description or "") else "default: none"
    else:
        tail = f"default: {_shown(default)}"
    detail = kind if kind.startswith(("one of", "list of")) else ""  # the rest is told by the metavar
    notes = "; ".join(filter(None, [detail, tail]))
    return f"{field.description}{f' ({notes})' if notes else ''}".replace("%", "%%")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (list, tuple)):
        return ",".join(map(str, default)) or "empty"
    if default == {}:
        return "empty"
    return repr(default) if isinstance(default, str) and ("\n" in default or not default) else str(default)


def type_name(annotation: Any) -> str:
    """How help names a type.

    >>> type_name(int | None), type_name(Literal["a", "b"]), type_name(list[str])
    ('whole number', 'one of a, b', 'list of text, comma-separated')
    """
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_name(args[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(type_name(arg) for arg in args if arg is not NoneType))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (list, tuple):
        return f"list of {type_name(args[0])}, comma-separated"
    if origin is dict:
        return f"table of {type_name(args[1])}"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}.get(annotation, "path")


def _refuse(verb: str, unknown: Sequence[str]) -> NoReturn:
    """The one line about arguments that are no flag of a verb."""
    flag = next((word for word in unknown if word.startswith("-")), None)
    if flag is None:
        raise UserError(f"{verb}: one {' and '.join(VERBS[verb].words) or 'recipe'} at most, got also {unknown[0]}")
    name = flag.partition("=")[0]
    plain = name.lstrip("-").replace("-", "_")
    others = [verb for verb, config in CONFIGS.items() if plain in dict(settings_of(config))]
    if plain in ("dry_run", "resume"):
        others = [verb for verb in VERBS if name in _switches(verb)]
    if others:
        raise UserError(f"{name}: no flag of {verb!r}, but of {', '.join(others)}")
    hint = did_you_mean(name, [*_switches(verb), *map(flag_name, CONFIGS[verb].model_fields)])
    if any(repr(switch) in hint for switch in _switches(verb)):
        raise UserError(f"{name}: unknown flag{hint}")
    raise UserError(unknown_flag(CONFIGS[verb], name.lstrip("-")))


def _switches(verb: str) -> list[str]:
    known = VERBS[verb]
    return ["--help", "--verbose", "--quiet", *["--dry-run"] * known.learns, *["--resume"] * known.resumes]


def _set_up_logs(level: int) -> None:
    """A log line is coloured on a terminal and plain elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%X")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("rlspeech")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


if __name__ == "__main__":
    sys.exit(main())
