"""Network boot programs (NBP): which one a machine gets by its architecture, and the files themselves.

The table is pxe/loaders.toml. Programs are a few megabytes together and are read once at start, so what is served is what
was found then, whatever a package upgrade does meanwhile.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from provisiond.errors import ConfigError

log = structlog.get_logger(__name__)

_PLACES = (Path(__file__).resolve().parents[2], Path(sysconfig.get_path("data")) / "share" / "provisiond")
TABLE = next(
    (t for place in _PLACES if (t := place / "pxe" / "loaders.toml").is_file()),
    _PLACES[0] / "pxe" / "loaders.toml",
)
"""Beside the package in a checkout, below share/ when installed."""
MAX_PROGRAM = 16 << 20


@dataclass(frozen=True)
class Program:
    """One NBP as found at start. ``content`` is served as it is; ``sha256`` is its digest in hex."""

    name: str
    path: Path
    content: bytes
    sha256: str


@dataclass(frozen=True)
class Architecture:
    """One client architecture type (DHCP option 93, RFC 4578): ``programs`` maps ipxe, grub or pxelinux to a program's name."""

    code: int
    name: str
    http: bool
    programs: Mapping[str, str]


class Loaders:
    """The programs that were found, by the name machines ask for. Made by ``load``."""

    def __init__(
        self,
        architectures: Sequence[Architecture],
        programs: Mapping[str, Program],
        missing: Mapping[str, str],
    ) -> None:
        self.architectures = tuple(architectures)
        self.programs = programs
        self.missing = missing
        """Name of each program not found -> Debian's package that has it."""

    def get(self, name: str) -> Program | None:
        """The program machines call ``name``."""
        return self.programs.get(name)

    def choose(self, code: int, kind: str = "ipxe") -> Program | None:
        """The NBP for client architecture ``code``; ``kind`` is ipxe, grub or pxelinux. None: unknown, or not installed.

        An architecture without the wanted kind (PXELINUX knows no UEFI here) gets iPXE.
        """
        for architecture in self.architectures:
            if architecture.code == code:
                return self.get(architecture.programs.get(kind) or architecture.programs["ipxe"])
        return None

    def by_tftp(self, kind: str = "ipxe") -> tuple[tuple[int, str], ...]:
        """(architecture code, file name) for DHCP, of those that boot by TFTP and whose program is there."""
        return self._table(http=False, kind=kind)

    def by_http(self, base_url: str) -> tuple[tuple[int, str], ...]:
        """(architecture code, whole URL) for DHCP, of those that boot by HTTP and whose program is there."""
        return tuple(
            (code, f"{base_url}/boot/loader/{name}") for code, name in self._table(http=True, kind="ipxe")
        )

    def instead_of_ipxe(self, kind: str) -> tuple[int, ...]:
        """Architectures whose program also goes to machines whose firmware is iPXE (QEMU's, some cards'): PXELINUX, where that was chosen.

        It cannot lead back to iPXE. GRUB can: an iPXE below UEFI does not start shim, so those machines stay with iPXE.
        """
        if kind != "pxelinux":
            return ()
        return tuple(a.code for a in self.architectures if self.get(a.programs.get(kind, "")) is not None)

    def _table(self, *, http: bool, kind: str) -> tuple[tuple[int, str], ...]:
        chosen = ((a.code, self.choose(a.code, kind)) for a in self.architectures if a.http == http)
        return tuple((code, program.name) for code, program in chosen if program is not None)


def load(dirs: Sequence[Path], table: Path = TABLE) -> Loaders:
    """Read the table and the programs below ``dirs`` (first match wins), and log what was found.

    Raises ConfigError when the table is wrong, or a file does not have the digest the table pins.
    """
    try:
        data = tomllib.loads(table.read_text())
        architectures = [_architecture(row) for row in data["architecture"]]
        rows = {row["name"]: row for row in data["program"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{table}: not a loader table: {error}") from error
    programs: dict[str, Program] = {}
    missing: dict[str, str] = {}
    for name, row in rows.items():
        path = _find(dirs, row["files"])
        if path is None:
            missing[name] = row.get("package", "")
            continue
        programs[name] = _read(name, path, row.get("sha256"))
        log.info("boot.loader_found", program=name, path=str(path), sha256=programs[name].sha256)
    return Loaders(architectures, programs, missing)


def _architecture(row: dict[str, Any]) -> Architecture:
    programs: dict[str, str] = {kind: str(row[kind]) for kind in ("ipxe", "grub", "pxelinux") if kind in row}
    if "ipxe" not in programs:
        raise ValueError(f"architecture {row.get('code')} has no ipxe program")
    return Architecture(int(row["code"]), row["name"], bool(row.get("http", False)), programs)


def _find(dirs: Sequence[Path], files: Sequence[str]) -> Path | None:
    return next((d / f for d in dirs for f in files if (d / f).is_file()), None)


def _read(name: str, path: Path, pinned: str | None) -> Program:
    with path.open("rb") as file:
        content = file.read(MAX_PROGRAM + 1)
    digest = hashlib.sha256(content).hexdigest()
    if len(content) > MAX_PROGRAM:
        raise ConfigError(f"{path} is larger than {MAX_PROGRAM >> 20} MiB: not a network boot program")
    if pinned and pinned.lower() != digest:
        raise ConfigError(
            f"{path} has SHA-256 {digest}, but the loader table pins {pinned} for {name}: refuse to serve it"
        )
    return Program(name, path, content, digest)
