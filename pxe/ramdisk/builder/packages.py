"""Debian packages: found and fetched by apt, checked by apt's signatures, unpacked without being installed.

apt works on directories of its own in the cache, so that it neither needs root nor changes this machine. It is told that what only
an installed system wants (initramfs-tools, debconf, perl, udev, ...) is there already.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from builder.contents import words
from builder.errors import BuildError, say

LISTS_AGE = 24 * 3600  # seconds that another architecture's package lists are taken for new


@dataclass(frozen=True)
class Package:
    """A package of the archive: ``source`` is "name (= version)" as far as it differs; ``sha256`` of ``file``, the .deb."""

    name: str
    version: str
    architecture: str
    sha256: str
    file: Path


def native() -> str:
    """Debian's name of this machine's architecture, such as amd64."""
    return _output(["dpkg", "--print-architecture"]).strip()


class Apt:
    """apt for one architecture, with its state below ``cache``."""

    def __init__(self, cache: Path, architecture: str) -> None:
        self._home = cache / f"apt-{architecture}"
        self._debs = self._home / "archives"
        for folder in ("archives", "none"):
            (self._home / folder / "partial").mkdir(parents=True, exist_ok=True)
        self.architecture = architecture
        stub = self._home / "status"
        stub.write_text(
            "".join(
                f"Package: {name}\nStatus: install ok installed\nArchitecture: {architecture}\nMulti-Arch: allowed\n"
                f"Version: 99:1\nDescription: not wanted in a ramdisk\n\n"
                for name in words("packages", "absent")
            )
        )
        self._options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::ForceHash": "SHA256",
            "Acquire::Languages": "none",
            "Acquire::Retries": "5",
            "Dir::Cache": str(self._home),
            "Dir::Cache::archives": str(self._debs),
            "Dir::State::status": str(stub),
            "Dir::State::extended_states": str(self._home / "extended_states"),
            "Debug::NoLocking": "true",  # the build has a lock of its own
        }
        if architecture != native():
            self._options["Dir::State::lists"] = str(self._home / "lists")

    def refresh(self) -> None:
        """Fetch the package lists of a foreign architecture unless they are new; this machine's own are apt's business."""
        lists = self._options.get("Dir::State::lists")
        if lists is None:
            return
        stamp = self._home / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_AGE:
            return
        say(f"package lists of {self.architecture}")
        (Path(lists) / "partial").mkdir(parents=True, exist_ok=True)
        self._apt("apt-get", "-q", "update")
        stamp.touch()

    def unknown(self, packages: list[str]) -> list[str]:
        """Those that the archive does not have for this architecture."""
        said = self._apt("apt-cache", "policy", *packages)
        return [
            name
            for name in packages
            if not re.search(rf"^{re.escape(name)}:\n.*\n  Candidate: [^(]", said, re.MULTILINE)
        ]

    def resolve(self, names: list[str]) -> list[Package]:
        """The packages of these names and all that they depend on, by name. Raises BuildError naming what apt does not have."""
        if missing := self.unknown(names):
            raise BuildError(
                f"apt has no package {', '.join(missing)} for {self.architecture}. "
                + (
                    "Firmware is in Debian's section non-free-firmware: add it to Components in /etc/apt/sources.list.d, then apt-get update"
                    if any(name.startswith("firmware-") for name in missing)
                    else "Run apt-get update, or look into /etc/apt/sources.list.d"
                )
            )
        nothing = (
            f"-oDir::Cache::archives={self._home / 'none'}"  # of what is fetched already, apt says nothing
        )
        said = self._apt("apt-get", "-q", "-y", nothing, "--print-uris", "install", *names)
        found = []
        for name, digest in re.findall(
            r"^'[^']+' (\S+_\S+_\S+\.deb) \d+ SHA256:([0-9a-f]{64})$", said, re.MULTILINE
        ):
            package, version, rest = name.split("_")
            found.append(
                Package(package, unquote(version), rest.removesuffix(".deb"), digest, self._debs / name)
            )
        if not found:
            raise BuildError(f"apt said nothing of {', '.join(names)}:\n{said[-2000:]}")
        return sorted(found, key=lambda package: package.name)

    def fetch(self, names: list[str], packages: list[Package]) -> None:
        """Have every .deb of ``packages`` (resolve(names)) in the cache; apt checks their digests."""
        if all(package.file.exists() for package in packages):
            return
        say(f"fetching packages ({sum(not p.file.exists() for p in packages)} of {len(packages)})")
        self._apt("apt-get", "-q", "-y", "--download-only", "install", *names)
        missing = [package.name for package in packages if not package.file.exists()]
        if missing:
            raise BuildError(f"apt did not fetch {', '.join(missing)}; try again")

    def _apt(self, program: str, *arguments: str) -> str:
        options = [f"-o{key}={value}" for key, value in self._options.items()]
        return _output([program, *options, *arguments])


def about(package: Package) -> dict[str, str]:
    """Control fields of a .deb: Source, Section, Homepage, where it has them."""
    said = _output(["dpkg-deb", "-f", str(package.file), "Source", "Section", "Homepage", "Maintainer"])
    return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)


@contextmanager
def opened(package: Package) -> Iterator[tarfile.TarFile]:
    """The files in a .deb, as a stream."""
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package.file)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield archive
        while process.stdout.read(1 << 20):
            pass
    if process.returncode:
        raise BuildError(f"{package.file} cannot be unpacked; remove it and build again")


def _output(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise BuildError(
            f"the program {argv[0]} is missing: the ramdisk is built on Debian or Ubuntu"
        ) from None
    if done.returncode:
        raise BuildError(f"{argv[0]} failed: {(done.stdout + done.stderr).strip()[-1500:]}")
    return done.stdout
