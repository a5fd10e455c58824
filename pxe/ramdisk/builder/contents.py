"""What goes into the ramdisk, as ../contents.toml lists it."""

from __future__ import annotations

import tomllib
from pathlib import Path

_TABLES = tomllib.loads((Path(__file__).resolve().parents[1] / "contents.toml").read_text())

ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64"}
"""Debian's name -> the kernel's, which is also the daemon's name of an architecture."""


def programs(table: str) -> dict[str, list[str]]:
    """Package -> paths of ``core`` or ``tools``."""
    return {package: paths.split() for package, paths in _TABLES[table].items()}


def words(table: str, key: str) -> list[str]:
    """One list of the file."""
    return str(_TABLES[table][key]).split()
