"""Kickstart by pykickstart, for the version of the operating system; the scripts in its sections by the shells."""

from __future__ import annotations

import copy
import importlib
import re
import threading
import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from provisiond.templating.validators.shell import Script, check_scripts
from provisiond.templating.validators.verdict import Problem, Target, Verdict

NAME = "pykickstart"
_LINE = re.compile(r"^(?:.*? )?(?:on|at) line (\d+)(?: of the kickstart file)?[:.]?\s*", re.DOTALL)


def syntax_of(target: Target) -> str:
    """pykickstart's name of the syntax: RHEL8, RHEL9, RHEL10 for redhat, F41 for fedora; the newest one for a version it is too old for."""
    known = importlib.import_module("pykickstart.version").versionMap
    prefix = "F" if target.family == "fedora" else "RHEL"
    numbers = sorted(int(n[len(prefix) :]) for n in known if re.fullmatch(prefix + r"\d+", n))
    major = re.match(r"\d+", target.version)
    if not major:
        return f"{prefix}{numbers[-1] if prefix == 'F' else 9}"
    return f"{prefix}{max((n for n in numbers if n <= int(major[0])), default=numbers[0])}"


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Each text read by pykickstart; warnings (deprecated commands) are no problems, removed commands are."""
    try:
        syntax = syntax_of(target)
    except ImportError:
        return [
            Verdict(NAME, skipped=("pykickstart: the Python package pykickstart is not installed",))
        ] * len(texts)
    looked = [_read(text, syntax) for text in texts]
    found = check_scripts([scripts for _, scripts in looked])
    return [
        Verdict(f"{NAME} {syntax}", tuple(problems)).with_more(*more)
        for (problems, _), more in zip(looked, found, strict=True)
    ]


def _read(text: str, syntax: str) -> tuple[list[Problem], list[Script]]:
    parser_module = importlib.import_module("pykickstart.parser")
    errors = importlib.import_module("pykickstart.errors")
    handler = _handler(text, syntax)
    parser = parser_module.KickstartParser(handler, followIncludes=False, errorsAreFatal=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parser.readKickstartFromString(text)
        except errors.KickstartParseError as error:
            return [_problem(error)], []
        except errors.KickstartError as error:
            return [Problem(str(error).strip())], []
        except Exception as error:  # it lets some out of its own parsing, such as IndexError for a lone "-"
            return [Problem(f"pykickstart cannot read it: {type(error).__name__}: {error}")], []
    return [], [
        Script(
            s.script,
            "bash" if s.interp.endswith("sh") else "",  # sh is bash on these systems and in their installer
            s.lineno,
            f"%{_SECTIONS.get(s.type, 'script')}",
        )
        for s in handler.scripts
    ]


_SECTIONS = {0: "pre", 1: "post", 2: "traceback", 3: "pre-install", 4: "onerror"}


def _problem(error: Any) -> Problem:
    said = str(getattr(error, "message", "") or error)
    line = getattr(error, "lineno", None)
    found = _LINE.match(said)
    if found:
        line, said = int(found[1]), said[found.end() :]
    return Problem(" ".join(said.split()), line or None)


class _Kept(threading.local):
    """Command objects of this thread, by syntax and class, each with what it held when it was new."""

    def __init__(self) -> None:
        self.commands: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {}


_kept = _Kept()


def _handler(text: str, syntax: str) -> Any:
    """A new handler with the commands that the text begins lines with.

    Making all hundred commands of a version takes three times as long as reading a kickstart, as each builds a parser of
    its options; so a command is made once and put back to what it was when it was new before every text.
    """
    cls, commands = _maps(syntax)
    handler = cls(mapping={"bootloader": commands["bootloader"]})  # an empty mapping would mean all
    handler.commands.clear()
    firsts = {line.split(None, 1)[0] for line in text.splitlines() if line.strip()}
    for name in firsts & commands.keys():
        handler.commands[name] = command = _as_new(syntax, commands[name])
        handler._setCommand(command)
        command.handler = handler
    return handler


def _as_new(syntax: str, cls: Any) -> Any:
    key = syntax, cls.__name__
    if key not in _kept.commands:
        command = cls()
        held = {name: value for name, value in vars(command).items() if name not in ("op", "handler")}
        _kept.commands[key] = command, copy.deepcopy(held)
    command, held = _kept.commands[key]
    parser = vars(command).get("op")
    vars(command).clear()
    vars(command).update(copy.deepcopy(held))
    if parser is not None:
        command.op = parser
    return command


@lru_cache(maxsize=16)
def _maps(syntax: str) -> tuple[Any, dict[str, Any]]:
    versions = importlib.import_module("pykickstart.version")
    control = importlib.import_module("pykickstart.handlers.control")
    cls = versions.returnClassForVersion(syntax)
    return cls, control.commandMap[cls.version]
