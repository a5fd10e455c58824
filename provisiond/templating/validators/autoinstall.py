"""Ubuntu's autoinstall: user-data whose cloud-config has ``autoinstall``, by subiquity's schema where it is at hand, else by ours.

subiquity's ``autoinstall-schema.json`` is taken from where PROVISIOND_AUTOINSTALL_SCHEMA says or from beside an installed
subiquity; it lets unknown keys pass, so ours is asked in any case.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provisiond.templating.validators import cloud_init
from provisiond.templating.validators.schema_autoinstall import AUTOINSTALL
from provisiond.templating.validators.schemas import vendors
from provisiond.templating.validators.shell import Script, check_scripts
from provisiond.templating.validators.trees import NO_JSONSCHEMA, Tree, by_schema, read_yaml
from provisiond.templating.validators.verdict import Problem, Target, Verdict

NAME = "autoinstall schema"
_PLACES = ("/snap/subiquity/current/usr/share/subiquity/autoinstall-schema.json",)
_COMMANDS = ("early-commands", "late-commands", "error-commands")


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """``#cloud-config`` on the first line, then schema, storage actions that refer to each other, and the shell of the commands."""
    theirs = vendors("PROVISIOND_AUTOINSTALL_SCHEMA", *_PLACES)
    verdicts: list[Verdict] = []
    scripts: list[list[Script]] = []
    for text in texts:
        tree = read_yaml(text)[0]
        verdict, found = _one(text, tree, theirs)
        verdicts.append(verdict)
        scripts.append(found)
    return [v.with_more(*more) for v, more in zip(verdicts, check_scripts(scripts), strict=True)]


def _one(text: str, tree: Tree, theirs: Path | None) -> tuple[Verdict, list[Script]]:
    problems = list(tree.problems)
    if text.split("\n", 1)[0].rstrip() != "#cloud-config":
        problems.append(Problem("the first line is not '#cloud-config': cloud-init would not read it", 1))
    if tree.value is None or tree.problems:
        return Verdict(NAME, tuple(problems)), []
    config = tree.value.get("autoinstall") if isinstance(tree.value, dict) else None
    if not isinstance(config, dict):
        problems.append(Problem("there is no mapping 'autoinstall' at its top"))
        return Verdict(NAME, tuple(problems)), []
    at = ["autoinstall"]
    try:
        problems += by_schema(tree, AUTOINSTALL, at)
        problems += by_schema(tree, theirs, at) if theirs else []
    except ImportError:
        return Verdict(NAME, tuple(problems), (NO_JSONSCHEMA,)), []
    sane = not problems
    if sane:
        problems += _storage(tree, config)
        if not {"identity", "user-data", "interactive-sections"} & config.keys():
            problems.append(
                Problem("autoinstall: neither 'identity' nor 'user-data': nobody could log in", tree.line(at))
            )
    verdict = Verdict(NAME, tuple(problems))
    if not sane:
        return verdict, []
    inner = config.get("user-data")
    scripts = [
        Script(command, "sh", tree.text_line([*at, name, number]), f"{name}.{number}")
        for name in _COMMANDS
        for number, command in enumerate(config.get(name, ()))
        if isinstance(command, str)
    ]
    for name in _COMMANDS:
        for number, command in enumerate(config.get(name, ())):
            if isinstance(command, list) and (shell := cloud_init.shell_in(command)):
                where = tree.text_line([*at, name, number, len(command) - 1])
                scripts.append(Script(command[-1], shell, where, f"{name}.{number}"))
    if isinstance(inner, dict):
        part = cloud_init.check_tree(tree, [*at, "user-data"])
        verdict = verdict.with_more(part.problems, part.skipped)
        scripts += cloud_init.scripts_of(tree, [*at, "user-data"])
    return verdict, scripts


_REFERENCES = ("device", "volume", "volgroup")


def _storage(tree: Tree, config: dict[str, Any]) -> list[Problem]:
    """Each storage action refers to actions above it, and something is mounted at /."""
    storage = config.get("storage")
    actions = storage.get("config") if isinstance(storage, dict) else None
    if not isinstance(actions, list):
        return []
    problems: list[Problem] = []
    known: set[str] = set()
    for number, action in enumerate(actions):
        where = ["autoinstall", "storage", "config", number]
        named = [(key, action[key]) for key in _REFERENCES if isinstance(action.get(key), str)]
        if isinstance(action.get("devices"), list):
            named += [("devices", d) for d in action["devices"]]
        for key, name in named:
            if name not in known:
                problems.append(
                    Problem(
                        f"storage: {action['id']}: {key} {name!r} is no action above it",
                        tree.line([*where, key]),
                    )
                )
        if action["id"] in known:
            problems.append(
                Problem(f"storage: the id {action['id']!r} is taken twice", tree.line([*where, "id"]))
            )
        known.add(action["id"])
    if not any(action.get("type") == "mount" and action.get("path") == "/" for action in actions):
        problems.append(
            Problem("storage: nothing is mounted at /", tree.line(["autoinstall", "storage", "config"]))
        )
    return problems
