"""Handover that only notes down that it was asked: for tests of everything above, and for trying provisiond without machines.

With a ``directory`` each run is a file there, so that runs outlive the daemon and a test can count them.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisiond.drivers.handover import HandoverTarget, Run, RunState
from provisiond.errors import DriverError

OUTPUT = "all tasks done\n"


@dataclass
class FakeHandover:
    """The driver. A run is over as soon as it was begun, or after ``polls`` looks; ``fails`` names hosts whose runs fail.

    ``latency`` is seconds each call takes (at 0 a call does not give way to others); ``fail_next`` errors are raised first, one
    a call; ``calls`` is (call, key).
    """

    directory: Path | None = None
    latency: float = 0.0
    polls: int = 0
    fails: set[str] = field(default_factory=set)
    fail_next: list[DriverError] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    _memory: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)

    async def apply(self, target: HandoverTarget) -> Run:
        await self._call("apply", target.key)
        known = self._read(target.key)
        if known is None:
            known = {"host": target.host, "state": "running", "looks": 0, "begun": 1}
            self._keep(target.key, known)
        return self._run(target.key, known, 0)

    async def poll(self, key: str, offset: int = 0) -> Run:
        await self._call("poll", key)
        known = self._read(key)
        if known is None:
            return Run(key, RunState.FAILED, message="there is no such run")
        if known["state"] == "running":
            known = known | {"looks": known["looks"] + 1}
            if known["looks"] > self.polls:
                known["state"] = "failed" if known["host"] in self.fails else "succeeded"
            self._keep(key, known)
        return self._run(key, known, offset)

    async def cancel(self, key: str) -> None:
        await self._call("cancel", key)
        known = self._read(key)
        if known is not None and known["state"] == "running":
            self._keep(key, known | {"state": "cancelled"})

    async def close(self) -> None:
        """Nothing is held open."""

    def _run(self, key: str, known: Mapping[str, Any], offset: int) -> Run:
        state = RunState(known["state"])
        output = "" if state is RunState.RUNNING else OUTPUT
        stats = (
            {known["host"]: {"ok": 1, "changed": 1, "failures": int(state is RunState.FAILED)}}
            if output
            else {}
        )
        message = "task 'fake' failed" if state is RunState.FAILED else ""
        return Run(key, state, output[offset:], len(output), stats, message)

    async def _call(self, call: str, key: str) -> None:
        self.calls.append((call, key))
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.fail_next:
            raise self.fail_next.pop(0)

    def _read(self, key: str) -> dict[str, Any] | None:
        if self.directory is None:
            return self._memory.get(key)
        try:
            known: dict[str, Any] = json.loads((self.directory / f"{key}.json").read_text())
        except FileNotFoundError:
            return None
        return known

    def _keep(self, key: str, known: dict[str, Any]) -> None:
        if self.directory is None:
            self._memory[key] = known
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        staged = self.directory / f".{key}.{os.getpid()}"
        staged.write_text(json.dumps(known))
        staged.replace(self.directory / f"{key}.json")
