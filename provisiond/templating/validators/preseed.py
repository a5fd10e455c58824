"""Preseed by ``debconf-set-selections --checkonly``, many through one process; its early and late commands by the shells."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from provisiond.templating.validators.shell import Script, check_scripts
from provisiond.templating.validators.verdict import Problem, Target, Verdict, as_files, ended_badly, run

NAME = "debconf-set-selections"
_SAID = re.compile(
    r"^(?:error: |warning: )?(?P<text>.*?),? (?:on |skipping |<> )?line (?P<line>\d+)(?P<rest>.*?)\.?$"
)
_COMMAND = re.compile(r"^\s*\S+\s+(\S+_command)\s+string\s+(.*)$")

_IN_MEMORY = "Config: c\nTemplates: t\n\nName: c\nDriver: Pipe\nInfd: none\nOutfd: none\n\nName: t\nDriver: Pipe\nInfd: none\nOutfd: none\n"
"""A database that begins empty and is kept nowhere (debconf.conf(5)): the machine's own is locked even to check, by apt or a second check."""


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """One process reads all texts one after the other; the line it names says whose problem it is."""
    skipped: tuple[str, ...] = ()
    found: list[list[Problem]] = [[] for _ in texts]
    if shutil.which(NAME):
        for at in range(0, len(texts), 1000):
            _debconf(texts[at : at + 1000], found[at : at + 1000])
    else:
        skipped = (f"{NAME}: the package debconf is not installed",)
    scripts = check_scripts([_scripts(text) for text in texts])
    return [
        Verdict(NAME, tuple(problems), skipped).with_more(*more)
        for problems, more in zip(found, scripts, strict=True)
    ]


def _debconf(texts: Sequence[str], found: list[list[Problem]]) -> None:
    starts, whole, at = [], [], 0
    for text in texts:
        starts.append(at)
        lines = text.split("\n")
        if lines and lines[-1].endswith("\\"):  # or it would go on into the next document
            lines.append("")
        whole += lines
        at += len(lines)
    with as_files([_IN_MEMORY], [".conf"]) as (rc,):
        done = run([NAME, "--checkonly"], "\n".join(whole) + "\n", DEBCONF_SYSTEMRC=rc)
    for said in done.stderr.split("\n"):
        place = _SAID.match(said)
        if not place:
            for problems in found if said.strip() else ():
                problems.append(Problem(said.strip()))
            continue
        line = int(place["line"])
        whose = max(i for i, start in enumerate(starts) if start < line)
        found[whose].append(Problem(place["text"] + place["rest"], line - starts[whose]))
    if done.returncode and not any(found):
        for problems in found:
            problems.append(ended_badly(done))


def _scripts(text: str) -> list[Script]:
    """The commands, each as a script in the lines it has here (a line that ends in a backslash goes on)."""
    scripts, lines, number = [], text.split("\n"), 0
    while number < len(lines):
        first, parts = number, [lines[number]]
        while parts[-1].endswith("\\") and number + 1 < len(lines):
            number += 1
            parts.append(lines[number])
        number += 1
        command = _COMMAND.match("\n".join(parts).replace("\n", "\x00"))
        if command and not parts[0].lstrip().startswith("#"):
            # debconf joins the lines, and so does the shell when a backslash stands at their end
            scripts.append(Script(command[2].replace("\x00", "\n"), "sh", first, command[1]))
    return scripts
