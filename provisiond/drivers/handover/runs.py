"""Runs in processes of their own, each with a directory named by its key, which outlive the daemon and are found again by it.

A run is a supervisor process (supervisor.py). What it holds and writes in its directory is the whole truth about it:

    lock     held (flock) by the supervisor as long as it lives; the kernel lets go when it dies, however it dies
    begun    pid and boot id, written by the supervisor before it does anything
    job.json what to do; secrets may be in it: mode 0600, removed at the end
    output   what came out, as it came
    result.json  how it ended, written last and at once

The daemon takes the lock before it starts a supervisor and hands it over to it, so at no moment can two run for one key, also
with several daemons on one directory. No result and a free lock mean that the supervisor died.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from provisiond.drivers.handover import HandoverTarget, Run, RunState
from provisiond.drivers.handover.processes import boot_id, end_all, environment
from provisiond.errors import DriverRejected, DriverUnavailable

CHUNK = 256 << 10
"""Most output handed over by one poll; a run counts as running until all of its output was handed over."""
KEEP_SECONDS = 14 * 86400
"""How long the directory of an ended run is kept."""
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")


class Supervised:
    """The part of a driver that all with a supervisor share. ``driver`` is its name; ``check`` refuses wrong settings.

    ``run_dir`` holds one directory a run and is the driver's own. ``sources`` are beginnings of directories and git URLs that
    playbooks and scripts may come from (none: any); ``protocols`` are those git may use.
    """

    driver: ClassVar[str]

    def __init__(
        self, run_dir: Path, *, sources: Sequence[str] = (), protocols: Sequence[str] = ("https", "ssh")
    ) -> None:
        self.sources, self.protocols = tuple(sources), tuple(protocols)
        self._root = run_dir.absolute()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._pruned = False

    def check(self, target: HandoverTarget) -> None:
        """Raises DriverRejected when the settings of ``target`` are wrong."""
        raise NotImplementedError

    async def apply(self, target: HandoverTarget) -> Run:
        """See the contract. Raises DriverRejected for wrong settings, a missing key file, or a machine that told no host key."""
        return await asyncio.to_thread(self._apply, target)

    async def poll(self, key: str, offset: int = 0) -> Run:
        """See the contract."""
        return await asyncio.to_thread(self._poll, key, offset)

    async def cancel(self, key: str) -> None:
        """See the contract; returns when the last process of the run is gone."""
        await asyncio.to_thread(self._cancel, key)

    async def close(self) -> None:
        """Runs go on in their processes."""
        self._reap()

    # --- inner: all of it blocks, for moments ------------------------------------------------------------

    def _apply(self, target: HandoverTarget) -> Run:
        run = self._directory(target.key)
        if _has_begun(run):
            return self._poll(target.key, 0)
        if not target.host_keys:
            raise DriverRejected(
                f"host {target.host} told no SSH host key when it phoned home, so it cannot be recognised; rebuild it, or look why"
            )
        if target.ssh_key and not Path(target.ssh_key).is_file():
            raise DriverRejected(f"there is no SSH key {target.ssh_key}; set handover.ssh_key")
        self.check(target)
        if not self._pruned:
            self._pruned = True
            self._prune()
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _lock(run)
        if lock is None:  # another daemon begins it in this moment
            return Run(target.key, RunState.RUNNING)
        try:
            if not _has_begun(run):
                self._begin(run, target, lock)
        finally:
            os.close(lock)
        return self._poll(target.key, 0)

    def _begin(self, run: Path, target: HandoverTarget, lock: int) -> None:
        job = {
            "driver": self.driver,
            "target": asdict(target),
            "protocols": self.protocols,
            "lock": lock,
        }
        write_private(run / "job.json", json.dumps(job))
        (run / "output").touch(mode=0o600)
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "provisiond.drivers.handover.supervisor", str(run)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(run / "supervisor.log").open("ab"),
                pass_fds=(lock,), start_new_session=True, cwd=run,
                env=environment(run, PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
            )  # fmt: skip
        except OSError as error:
            raise DriverUnavailable(f"host {target.host}: cannot start {self.driver}: {error}") from error
        self._children[target.key] = child

    def _poll(self, key: str, offset: int) -> Run:
        self._reap()
        run = self._directory(key)
        if not (run / "output").exists():
            return Run(key, RunState.FAILED, message="there is no such run")
        result = self._result(run) or self._died(run)
        with (run / "output").open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = min(max(offset, 0), size)
            file.seek(offset)
            data = file.read(CHUNK)
        more = offset + len(data) < size
        if more or result is None:
            data = _whole_characters(data)
        offset += len(data)
        text = data.decode("utf-8", "replace")
        if more or result is None:
            return Run(key, RunState.RUNNING, text, offset)
        return Run(
            key, RunState(result["state"]), text, offset, result.get("stats", {}), result.get("message", "")
        )

    def _cancel(self, key: str) -> None:
        run = self._directory(key)
        if not (run / "output").exists() or (self._result(run) and _is_free(run)):
            return
        told = False
        for _ in range(150):
            self._reap()
            if _is_free(run):
                break
            told = told or _tell_to_end(run)
            time.sleep(0.1)
        end_all(run, patience=0.5)
        self._reap()
        if not self._result(run):
            write_result(run, RunState.CANCELLED, "cancelled", {})

    def _died(self, run: Path) -> dict[str, Any] | None:
        """Record the end of a run whose supervisor was killed; None while it lives."""
        lock = _lock(run)
        if lock is None:
            return None
        try:
            if result := self._result(run):
                return result
            began = (
                json.loads((run / "begun").read_text())
                if (run / "begun").exists()
                else {"boot_id": boot_id()}
            )
            why = "this machine was restarted" if began["boot_id"] != boot_id() else "its process was killed"
            end_all(run, patience=0.5)
            write_result(run, RunState.FAILED, f"the {self.driver} run was cut off: {why}; retry it", {})
            return self._result(run)
        finally:
            os.close(lock)

    @staticmethod
    def _result(run: Path) -> dict[str, Any] | None:
        try:
            result: dict[str, Any] = json.loads((run / "result.json").read_text())
        except FileNotFoundError:
            return None
        return result

    def _directory(self, key: str) -> Path:
        if not _KEY.match(key):
            raise DriverRejected(f"{key[:40]!r} cannot name a run")
        return self._root / key

    def _reap(self) -> None:
        for key, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[key]

    def _prune(self) -> None:
        for result in self._root.glob("*/result.json"):
            if time.time() - result.stat().st_mtime > KEEP_SECONDS:
                shutil.rmtree(result.parent, ignore_errors=True)


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 at once: it is there whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)


def write_result(run: Path, state: RunState, message: str, stats: dict[str, Any]) -> None:
    """How the run ended; what may hold secrets goes away with it."""
    for name in ("job.json", "private"):
        path = run / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    write_private(run / "result.json", json.dumps({"state": str(state), "message": message, "stats": stats}))


def _lock(run: Path) -> int | None:
    """The lock of the run, taken; None when somebody holds it."""
    lock = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _has_begun(run: Path) -> bool:
    """The supervisor's first act is to write ``begun``: before it nothing was done, and the run may be begun again."""
    return (run / "begun").exists() or (run / "result.json").exists()


def _tell_to_end(run: Path) -> bool:
    """Signal the supervisor, if it has come so far that it takes signals."""
    try:
        supervisor = os.pidfd_open(json.loads((run / "begun").read_text())["pid"])
    except OSError:
        return False
    try:
        if not _is_free(run):  # it lives, so the pid is still its own
            signal.pidfd_send_signal(supervisor, signal.SIGTERM)
        return True
    finally:
        os.close(supervisor)


def _is_free(run: Path) -> bool:
    lock = _lock(run)
    if lock is None:
        return False
    os.close(lock)
    return True


def _whole_characters(data: bytes) -> bytes:
    """``data`` without a UTF-8 character cut off at its end (RFC 3629: at most four bytes)."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            needs = (
                1
                if byte < 0x80
                else 2
                if byte >> 5 == 6
                else 3
                if byte >> 4 == 14
                else 4
                if byte >> 3 == 30
                else 1
            )
            return data[:-back] if needs > back else data
    return data
