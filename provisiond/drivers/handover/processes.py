"""Processes that belong to a run: marked in their environment, so that all of them are found whatever session they moved to.

Ansible's workers leave their process group and session by themselves, so killing a group misses them. What no process can shed
is the environment it was started with: every process of a run has MARK in it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

MARK = "PROVISIOND_RUN"
_KEPT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TZ",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def environment(run: Path, **more: str) -> dict[str, str]:
    """The environment of a run's processes: little of the daemon's own (which may hold secrets), and the mark."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {"PATH": "/usr/bin:/bin", "HOME": "/root", **kept, "LANG": "C.UTF-8", MARK: str(run), **more}


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """``command`` so that the kernel kills it when the process that started it dies (prctl PR_SET_PDEATHSIG)."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *command] if shutil.which("setpriv") else list(command)


def boot_id() -> str:
    """Changes with every boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def of_run(run: Path, *, but: frozenset[int] = frozenset()) -> Iterator[int]:
    """The pids of the run's processes now."""
    mark = f"{MARK}={run}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in but:
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)
            except OSError:  # gone, or not ours
                continue


def end_all(run: Path, *, patience: float = 2.0, but: frozenset[int] = frozenset()) -> int:
    """End the run's processes: asked to first, killed after ``patience`` seconds. Returns how many there were. Blocking."""
    seen: set[int] = set()
    deadline = time.monotonic() + patience
    while pids := set(of_run(run, but=but)):
        late = time.monotonic() > deadline
        for pid in pids if late else pids - seen:
            _signal(pid, signal.SIGKILL if late else signal.SIGTERM)
        seen |= pids
        if time.monotonic() > deadline + 10:
            break
        time.sleep(0.05)
    return len(seen)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
