"""How two releases differ, template by template, as unified differences. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TemplateDiff:
    """``change``: added, removed or changed. ``text`` is the unified difference, its file names with the releases' names."""

    path: str
    change: str
    text: str


def compare_files(
    before: Mapping[str, str], after: Mapping[str, str], names: tuple[str, str] = ("a", "b")
) -> list[TemplateDiff]:
    """What differs, in the order of the paths; equal files are left out."""
    found = []
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        change = "added" if old is None else "removed" if new is None else "changed"
        labels = [
            f"{name}/{path}" if text is not None else "/dev/null"
            for name, text in zip(names, (old, new), strict=True)
        ]
        lines = difflib.unified_diff(_lines(old), _lines(new), labels[0], labels[1])
        text = "".join(
            line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines
        )
        found.append(TemplateDiff(path, change, text))
    return found


def _lines(text: str | None) -> list[str]:
    """As difflib wants them: split at line feeds only, which stay."""
    *whole, last = (text or "").split("\n")
    return [f"{line}\n" for line in whole] + ([last] if last else [])
