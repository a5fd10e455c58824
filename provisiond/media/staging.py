"""Putting files in place: written under a .part name, checked, flushed, then renamed to a name made of their content.

A reader sees a whole file or none, and files that are being served are never changed: new content has a new name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from provisiond.media.fetch import MediaError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """The name again, if it can be a medium's or image's (and so a directory's); else MediaError."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise MediaError(
            f"{name!r} is no name: use lower-case letters, digits, dots, dashes and underscores, at most 64"
        )
    return name


def prepare(folder: Path, prefix: str = "") -> Path:
    """Make ``folder`` and remove what an interrupted import of the same ``prefix`` left there."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep_parts(folder, prefix)
    return folder


def sweep_parts(folder: Path, prefix: str = "") -> None:
    """Remove the .part files of ``prefix`` in ``folder``."""
    for part in folder.glob("*.part"):
        if part.name.startswith(prefix):
            part.unlink(missing_ok=True)


def keep(part: Path, final: Path) -> None:
    """Give a finished .part file its name, and make that outlive a power cut."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_unused(folder: Path, used: Iterable[str]) -> list[str]:
    """Remove the files of ``folder`` whose names are not ``used`` and return their names. Files still open keep their content."""
    keep_names = set(used)
    gone = [path for path in folder.iterdir() if path.is_file() and path.name not in keep_names]
    for path in gone:
        path.unlink(missing_ok=True)
    return [path.name for path in gone]
