"""Virtual machines that are only noted down: for tests of everything above, and for trying provisiond without a hypervisor.

Targets are ``fake://`` (in the memory of the driver; what follows tells hypervisors apart) or ``fake:///directory`` (files,
which outlive the daemon: ``machines/UUID.json``, ``names/NAME`` and ``disks/UUID/N``, each put in place by one rename, and
``calls.jsonl``, a line for each effect). Options in the URI's query: ``latency`` seconds per call, ``fail`` chance of
DriverUnavailable per call (0 to 1).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from provisiond.drivers.compute import HypervisorTarget, Machine, MachineEvent, MachineSpec, MachineState
from provisiond.errors import DriverError, DriverRejected, DriverUnavailable


class Files:
    """A hypervisor's machines and disks as names with JSON, in memory or in a directory."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._memory: dict[str, dict[str, str]] = {}  # by folder

    def read(self, name: str) -> Any:
        """What was written there; None if nothing was."""
        if self._directory is None:
            folder, _, leaf = name.rpartition("/")
            text = self._memory.get(folder, {}).get(leaf)
        else:
            try:
                text = (self._directory / name).read_text()
            except FileNotFoundError:
                text = None
        return None if text is None else json.loads(text)

    def write(self, name: str, content: Any) -> None:
        if self._directory is None:
            folder, _, leaf = name.rpartition("/")
            self._memory.setdefault(folder, {})[leaf] = json.dumps(content)
            return
        path = self._directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.parent / f".{path.name}.{os.getpid()}"
        new.write_text(json.dumps(content))
        new.replace(path)

    def remove(self, name: str) -> bool:
        """Whether it was there. A folder goes with the last that was in it."""
        folder, _, leaf = name.rpartition("/")
        if self._directory is None:
            found = self._memory.get(folder, {}).pop(leaf, None) is not None
            if not self._memory.get(folder, True):
                del self._memory[folder]
            return found
        try:
            (self._directory / name).unlink()
        except FileNotFoundError:
            return False
        with contextlib.suppress(OSError):
            (self._directory / folder).rmdir()
        return True

    def names(self, folder: str) -> list[str]:
        """What is in a folder, sorted, half-written ones left out."""
        if self._directory is None:
            return sorted(self._memory.get(folder, ()))
        with contextlib.suppress(FileNotFoundError):
            return sorted(n for n in os.listdir(self._directory / folder) if not n.startswith("."))  # noqa: PTH208
        return []

    def note(self, call: dict[str, Any]) -> None:
        """Add a line to the journal of effects."""
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            with (self._directory / "calls.jsonl").open("a") as journal:
                journal.write(json.dumps(call) + "\n")


@dataclass
class FakeCompute:
    """The driver. ``calls`` is the last 10,000 as (name, hypervisor, uuid); ``fail_next`` errors are raised first, one a call.

    ``crash_after`` names a stage of ensure or destroy (``defined``, ``disks``, ``stopped``, ``removed``) after which the
    call ends in CancelledError, once: as if the daemon had been killed there.
    """

    latency: float = 0.0
    fail: float = 0.0
    crash_after: str = ""
    calls: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=10_000))
    fail_next: list[DriverError] = field(default_factory=list)
    _hypervisors: dict[str, Files] = field(default_factory=dict, repr=False)
    _listeners: list[tuple[str, asyncio.Queue[MachineEvent]]] = field(default_factory=list, repr=False)
    _consoles: list[tuple[str, asyncio.Queue[bytes]]] = field(default_factory=list, repr=False)

    # --- the contract ------------------------------------------------------------------------------------

    async def ensure(self, target: HypervisorTarget, spec: MachineSpec, *, fresh: bool = False) -> Machine:
        files = await self._call("ensure", target, spec.uuid)
        row = files.read(f"machines/{spec.uuid}.json")
        if row is None:
            other = files.read(f"names/{spec.name}")
            if other not in (None, spec.uuid) and files.read(f"machines/{other}.json") is not None:
                raise DriverRejected(
                    f"hypervisor {target.name} has another machine named {spec.name!r} (UUID {other}); "
                    "rename or remove it there, or give the host another name"
                )
            files.write(f"names/{spec.name}", spec.uuid)
        elif not row["ours"]:
            raise DriverRejected(
                f"hypervisor {target.name} has a machine {spec.uuid} that provisiond did not make"
            )
        elif not row["making"] and (not fresh or (spec.build and row.get("build") == spec.build)):
            return _machine(row)
        was_running = row is not None and row["state"] == MachineState.RUNNING
        generation = row["generation"] + 1 if row else 1
        row = {
            "uuid": spec.uuid,
            "name": spec.name,
            "state": MachineState.STOPPED,
            "ours": True,
            "making": True,
            "generation": generation,
            "build": spec.build,
            "snapshots": {},
        }
        files.write(f"machines/{spec.uuid}.json", row)
        self._crash("defined")
        if was_running:
            self._tell(target, spec.uuid, "stopped")
        for leftover in files.names(f"disks/{spec.uuid}"):
            files.remove(f"disks/{spec.uuid}/{leftover}")
        for number, disk in enumerate(spec.disks):
            files.write(f"disks/{spec.uuid}/{number}", {"gib": disk.gib, "image": disk.image, "content": ""})
        self._crash("disks")
        row["making"] = False
        files.write(f"machines/{spec.uuid}.json", row)
        files.note({"call": "made", "uuid": spec.uuid, "name": spec.name, "generation": generation})
        self._tell(target, spec.uuid, "defined")
        return _machine(row)

    async def destroy(self, target: HypervisorTarget, uuid: str) -> None:
        files = await self._call("destroy", target, uuid)
        row = files.read(f"machines/{uuid}.json")
        if row is not None and not row["ours"]:
            raise DriverRejected(
                f"hypervisor {target.name}: machine {row['name']!r} ({uuid}) was not made by provisiond"
            )
        if row is not None and row["state"] == MachineState.RUNNING:
            files.write(f"machines/{uuid}.json", {**row, "state": MachineState.STOPPED})
            self._tell(target, uuid, "stopped")
        self._crash("stopped")
        for number in files.names(f"disks/{uuid}"):
            files.remove(f"disks/{uuid}/{number}")
        self._crash("removed")
        if row is not None:
            files.remove(f"names/{row['name']}")
        if files.remove(f"machines/{uuid}.json"):
            files.note({"call": "removed", "uuid": uuid})
            self._tell(target, uuid, "removed")

    async def find(self, target: HypervisorTarget, uuid: str) -> Machine | None:
        row = (await self._call("find", target, uuid)).read(f"machines/{uuid}.json")
        return _machine(row) if row is not None and row["ours"] else None

    async def list(self, target: HypervisorTarget) -> list[Machine]:
        files = await self._call("list", target, "")
        rows = [files.read(f"machines/{name}") for name in files.names("machines")]
        return [_machine(row) for row in rows if row is not None and row["ours"]]

    async def snapshot(self, target: HypervisorTarget, uuid: str, name: str) -> None:
        files = await self._call("snapshot", target, uuid)
        row = self._ours(files, uuid)
        if row["state"] == MachineState.RUNNING:
            raise DriverRejected(f"machine {row['name']} runs; power it off before a snapshot of its disks")
        row["snapshots"][name] = {n: files.read(f"disks/{uuid}/{n}") for n in files.names(f"disks/{uuid}")}
        files.write(f"machines/{uuid}.json", row)

    async def revert(self, target: HypervisorTarget, uuid: str, name: str) -> None:
        files = await self._call("revert", target, uuid)
        row = self._ours(files, uuid)
        if name not in row["snapshots"]:
            raise DriverRejected(f"machine {row['name']} has no snapshot {name!r}")
        for number, content in row["snapshots"][name].items():
            files.write(f"disks/{uuid}/{number}", content)
        files.write(f"machines/{uuid}.json", {**row, "state": MachineState.STOPPED})

    async def console(self, target: HypervisorTarget, uuid: str) -> AsyncIterator[bytes]:
        files = await self._call("console", target, uuid)
        if self._ours(files, uuid)["state"] != MachineState.RUNNING:
            raise DriverRejected(f"machine {uuid} does not run, so it has no console")
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._consoles.append((uuid, queue))
        try:
            while data := await queue.get():
                yield data
        finally:
            self._consoles.remove((uuid, queue))

    async def events(self, target: HypervisorTarget) -> AsyncIterator[MachineEvent]:
        queue: asyncio.Queue[MachineEvent] = asyncio.Queue()
        self._listeners.append((target.uri, queue))
        try:
            for machine in await self.list(target):
                yield MachineEvent(
                    machine.uuid, "started" if machine.state is MachineState.RUNNING else "stopped"
                )
            while True:
                yield await queue.get()
        finally:
            self._listeners.remove((target.uri, queue))

    async def close(self) -> None:
        for _, queue in self._consoles:
            queue.put_nowait(b"")

    # --- what a test does to the hypervisor behind the driver's back -----------------------------------------

    def files(self, target: HypervisorTarget) -> Files:
        """The machines and disks of a hypervisor."""
        parts = urlsplit(target.uri)
        if parts.scheme != "fake":
            raise DriverRejected(f"hypervisor {target.name}: {target.uri} is no fake:// URI")
        key = parts.netloc + parts.path
        if key not in self._hypervisors:
            self._hypervisors[key] = Files(Path(parts.path) if parts.path.strip("/") else None)
        return self._hypervisors[key]

    def power(self, target: HypervisorTarget, uuid: str, *, on: bool) -> None:
        """Start or stop a machine, as the power room or a person would."""
        files = self.files(target)
        row = self._ours(files, uuid)
        files.write(
            f"machines/{uuid}.json", {**row, "state": MachineState.RUNNING if on else MachineState.STOPPED}
        )
        self._tell(target, uuid, "started" if on else "stopped")
        if not on:
            self.say(uuid, b"")

    def say(self, uuid: str, text: bytes) -> None:
        """Let a machine write to its serial console (nothing: end it)."""
        for owner, queue in self._consoles:
            if owner == uuid:
                queue.put_nowait(text)

    async def _call(self, name: str, target: HypervisorTarget, uuid: str) -> Files:
        self.calls.append((name, target.name, uuid))
        query = parse_qs(urlsplit(target.uri).query)
        latency = self.latency + float(query.get("latency", ["0"])[0])
        if latency:
            await asyncio.sleep(latency)
        if self.fail_next:
            raise self.fail_next.pop(0)
        chance = max(self.fail, float(query.get("fail", ["0"])[0]))
        if chance and random.random() < chance:  # noqa: S311 - no secret
            raise DriverUnavailable(f"hypervisor {target.name} does not answer (a fake failure)")
        return self.files(target)

    def _ours(self, files: Files, uuid: str) -> Any:
        row = files.read(f"machines/{uuid}.json")
        if row is None or not row["ours"]:
            raise DriverRejected(
                f"there is no machine {uuid} of provisiond's on this hypervisor; build the host first"
            )
        return row

    def _crash(self, stage: str) -> None:
        if self.crash_after == stage:
            self.crash_after = ""
            raise asyncio.CancelledError(f"a fake crash after {stage}")

    def _tell(self, target: HypervisorTarget, uuid: str, kind: str) -> None:
        for uri, queue in self._listeners:
            if uri == target.uri:
                queue.put_nowait(MachineEvent(uuid, kind))


def _machine(row: Any) -> Machine:
    return Machine(row["uuid"], row["name"], MachineState(row["state"]))
