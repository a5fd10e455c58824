"""What ramdisks logged, a file for each piece of work: the newest few of each host, each of bounded size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

KEPT = 10  # logs of one host
LOG_BYTES = 256 * 1024
_WORK = re.compile(r"[A-Za-z0-9-]{1,64}")
_FILE = re.compile(r"[A-Za-z0-9-]{1,64}\.log")


@dataclass(frozen=True)
class AgentLog:
    """``work`` is the id of the deployment or task that it was about."""

    work: str
    at: datetime
    text: str


def keep(folder: Path, host_id: str, work: str, text: str) -> None:
    """Keep the end of ``text`` as the log of this work, in the place of an earlier one. Blocks. Raises OSError, ValueError."""
    if not _WORK.fullmatch(work):
        raise ValueError(f"{work[:80]!r} is not the id of a deployment or task")
    place = folder / host_id
    place.mkdir(parents=True, exist_ok=True)
    part = place / f".{work}.part"
    part.write_bytes(text.encode()[-LOG_BYTES:])
    part.chmod(0o640)
    part.replace(place / f"{work}.log")
    for old in _files(place)[KEPT:]:
        old.unlink(missing_ok=True)


def latest(folder: Path, host_id: str, work: str = "") -> AgentLog | None:
    """The newest log of the host, or that of one ``work``. Blocks."""
    for path in _files(folder / host_id):
        if work in ("", path.stem):
            at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            return AgentLog(path.stem, at, path.read_bytes().decode("utf-8", "replace"))
    return None


def _files(place: Path) -> list[Path]:
    """Newest first."""
    if not place.is_dir():
        return []
    found = [path for path in place.iterdir() if _FILE.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)
