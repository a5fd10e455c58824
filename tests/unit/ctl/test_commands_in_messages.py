"""Errors tell operators what to type: each command that any message of the project names is one that there is."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from provisiond.ctl.app import app
from provisiond.errors import NotFound

ROOT = Path(__file__).parents[3]
NAMED = re.compile(r"provisionctl ([a-z]+) ([a-z-]+)")
PROSE = {
    ("is", "missing"),
    ("and", "the"),
    ("uses", "it"),
    ("hypervisor", "and"),
    ("writes", "it"),
    ("calls", "it"),
}


def commands() -> set[tuple[str, str]]:
    """(noun, verb) of all commands."""
    root = typer.main.get_command(app)
    return {(noun, verb) for noun, group in root.commands.items() for verb in getattr(group, "commands", {})}  # type: ignore[attr-defined]


def test_commands_in_messages_exist() -> None:
    """A message that sends somebody to a command that is not there is worse than none."""
    known = commands()
    assert ("host", "create") in known
    wrong = []
    for path in (
        *(ROOT / "provisiond").rglob("*.py"),
        ROOT / "docs/cli.md",
        ROOT / "docs/booting.md",
        ROOT / "docs/media.md",
    ):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for found in NAMED.finditer(line):
                pair = (found[1], found[2].rstrip("-"))
                nouns = {noun for noun, _ in known}
                if (
                    pair not in known
                    and pair not in PROSE
                    and (pair[0] in nouns or "'" in line or ":" in line)
                ):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: provisionctl {' '.join(pair)}")
    assert wrong == []


def test_listings_of_what_is_not_found_exist() -> None:
    """'There is no X' sends to a command that lists them, for each noun that is said so."""
    nouns = set()
    for path in (ROOT / "provisiond").rglob("*.py"):
        nouns |= set(re.findall(r'NotFound\("([a-z ]+)"', path.read_text()))
    assert {"release", "shadow run", "parameter"} <= nouns
    top = typer.main.get_command(app)
    for noun in nouns:
        said = re.search(r"'provisionctl ([a-zA-Z ]+)' shows", str(NotFound(noun, "x")))
        assert said, noun
        command = top
        for word in said[1].split():
            if word.isupper():
                break
            assert word in command.commands, said[0]  # type: ignore[attr-defined]
            command = command.commands[word]  # type: ignore[attr-defined]
