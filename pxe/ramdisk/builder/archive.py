"""The initramfs' format: cpio "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), the same bytes for the same files."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.errors import BuildError

BLOCK = 512
_PACKAGES = {"zstd": "zstd", "mksquashfs": "squashfs-tools"}


@dataclass(frozen=True)
class Entry:
    """A file, a directory or a link (``data`` is where it points to); all belong to root. ``package`` is where it came from."""

    mode: int
    data: bytes = b""
    package: str = ""


def file(data: bytes, package: str = "", *, executable: bool = False) -> Entry:
    return Entry(stat.S_IFREG | (0o755 if executable else 0o644), data, package)


def link(target: str, package: str = "") -> Entry:
    return Entry(stat.S_IFLNK | 0o777, target.encode(), package)


def directory(mode: int = 0o755) -> Entry:
    return Entry(stat.S_IFDIR | mode)


def write(entries: dict[str, Entry], out: BinaryIO, mtime: int) -> None:
    """The archive of ``entries`` (path without leading slash -> entry), sorted, with directories that are missing added."""
    whole = dict(entries)
    for path in entries:
        for parent in _parents(path):
            whole.setdefault(parent, directory())
    size = 0
    for number, path in enumerate(sorted(whole), start=1):
        size += _member(out, path, whole[path], number, mtime)
    size += _member(out, "TRAILER!!!", Entry(0), 0, 0)
    out.write(bytes(-size % BLOCK))


def compress(data: bytes, level: int) -> bytes:
    """zstd; the same bytes for the same data, however many processors there are."""
    return _run(["zstd", "-q", f"-{level}", "-T2", "--no-check", "-c", "-"], data)


def squashfs(entries: dict[str, Entry], work: Path, mtime: int, level: int) -> bytes:
    """A squashfs of the entries, compressed with zstd; ``work`` is an empty directory for it."""
    tree, made = work / "tree", work / "squashfs"
    for path, entry in sorted(entries.items()):
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if stat.S_ISDIR(entry.mode):
            target.mkdir(exist_ok=True)
        elif stat.S_ISLNK(entry.mode):
            target.symlink_to(entry.data.decode())
        else:
            target.write_bytes(entry.data)
            target.chmod(stat.S_IMODE(entry.mode))
    for folder, _, _ in os.walk(tree):
        Path(folder).chmod(0o755)
    argv = [
        "mksquashfs",
        str(tree),
        str(made),
        "-noappend",
        "-quiet",
        "-no-progress",
        "-all-root",
        "-no-xattrs",
        "-processors",
        "2",
    ]
    argv += [
        "-comp",
        "zstd",
        "-Xcompression-level",
        str(level),
        "-b",
        "128K",
        "-mkfs-time",
        str(mtime),
        "-all-time",
        str(mtime),
    ]
    _run(argv, b"")
    return made.read_bytes()


def _run(argv: list[str], data: bytes) -> bytes:
    environment = {
        name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"
    }  # said by options here
    try:
        done = subprocess.run(argv, input=data, capture_output=True, env=environment)
    except FileNotFoundError:
        raise BuildError(
            f"the program {argv[0]} is missing; install it: apt-get install {_PACKAGES[argv[0]]}"
        ) from None
    if done.returncode:
        raise BuildError(f"{argv[0]} failed: {done.stderr.decode()[-1000:]}")
    return done.stdout


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _member(out: BinaryIO, path: str, entry: Entry, number: int, mtime: int) -> int:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (number, entry.mode, 0, 0, links, mtime, len(entry.data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + name
    head += bytes(-len(head) % 4)
    body = entry.data + bytes(-len(entry.data) % 4)
    out.write(head)
    out.write(body)
    return len(head) + len(body)
