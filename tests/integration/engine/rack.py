"""Machines that outlive the daemon that switches them: they follow the fake controllers' journal and boot what its door tells them.

One that boots from its disk is at its end. One that boots from the network asks for its boot script, and either runs the ramdisk,
to which it is true until it is told to restart or is switched, or boots from its disk.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import ClientError, ClientSession

from tests.fake_ramdisk import FakeRamdisk

T = TypeVar("T")
PAUSE = 0.25  # between two questions of a machine


class Rack:
    """``macs``: the card of each machine, by the name of its host. ``booted`` is what each did: "ramdisk", "disk", and how ramdisks ended.

    Begins when the file ``asked`` is in ``directory``, with what the journal holds after the bytes it says.
    """

    def __init__(self, url: str, directory: Path, macs: Mapping[str, str]) -> None:
        self.url, self.directory, self.macs = url, directory, macs
        self.booted: dict[str, list[str]] = defaultdict(list)
        self.starts: dict[str, list[str]] = defaultdict(list)
        """The boot device at each start since then."""
        self.power: dict[str, str] = {}
        self.device: dict[str, str | None] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Rack:
        self._client = ClientSession()
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [self._watching, *self._lives.values()]
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()
        for end in ended:
            if isinstance(end, Exception):
                raise end

    async def _watch(self) -> None:
        journal, asked = self.directory / "fakes/power/power.jsonl", self.directory / "asked"
        while not asked.exists() or not asked.read_text().endswith("\n"):
            await asyncio.sleep(0.05)
        begin = at = int(asked.read_text())
        for line in journal.read_bytes()[:begin].splitlines():
            self._now(json.loads(line))
        while True:
            with journal.open("rb") as file:
                file.seek(at)
                new = file.read().rpartition(b"\n")[0]
            at += len(new) + 1 if new else 0
            for line in new.splitlines():
                self._follow(json.loads(line))
            await asyncio.sleep(0.03)

    def _now(self, line: dict[str, Any]) -> None:
        name = line["call"]["host"]
        self.power[name], self.device[name] = line["machine"]["power"], line["machine"]["boot"]

    def _follow(self, line: dict[str, Any]) -> None:
        self._now(line)
        call = line["call"]
        if call["what"] != "set" or not call["changed"]:
            return
        name = call["host"]
        if (life := self._lives.pop(name, None)) is not None:
            life.cancel()
            if life.done() and not life.cancelled():
                life.result()  # what went wrong with it ends the watch
        if self.power[name] == "on":
            self.starts[name].append(str(self.device[name]))
            self._lives[name] = asyncio.create_task(self._life(name), name=f"machine-{name}")

    async def _life(self, name: str) -> None:
        while self.device[name] == "network":
            ramdisk = FakeRamdisk(self._client, self.url, self.macs[name], serial=f"S-{name}", pause=PAUSE)
            if not await _tried(ramdisk.boot):
                break
            self.booted[name].append("ramdisk")
            await _tried(ramdisk.claim)
            self.booted[name].append(await ramdisk.run())
        self.booted[name].append("disk")


async def _tried(ask: Callable[[], Awaitable[T]]) -> T:
    """As loaders and ramdisks do: again, while nobody answers."""
    while True:
        try:
            return await ask()
        except (ClientError, OSError):
            await asyncio.sleep(PAUSE)
