"""Killing a daemon, and what must be true of its hosts afterwards, whichever test it was for."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from sqlalchemy import select, update
from sqlmodel import col

from provisiond.inventory.store import Store
from provisiond.inventory.tables import Deployment, Event, Host, utcnow
from tests.integration.engine.process import run

FORKS = multiprocessing.get_context("forkserver")  # one process imports everything, once
FORKS.set_forkserver_preload(["tests.integration.engine.process"])

RUNS, WAITS, STAYS = ("complete",), ("continue", "complete"), ("continue",)
"""What the runs of a step come to: one that does its work, one that waits until that is done, one that waits for an operator."""
CONTROL = "control"  # the host that stands still nowhere


class Engine:
    """The engine in a process of its own."""

    def __init__(self, url: str, directory: Path, *words: str, door: socket.socket | None = None) -> None:
        self._said = directory / f"said-{uuid.uuid4().hex}"
        self._process = FORKS.Process(target=run, args=((url, str(directory), *words), self._said, door))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    async def ends(self, code: int = 0) -> None:
        """Wait until it has ended with ``code``, as subprocess tells it."""
        assert (ended := await self.wait()) == code, f"ended with {ended}: {self.said}"

    async def wait(self) -> int:
        """Its exit code; one that takes longer than two minutes is ended."""
        await asyncio.to_thread(self._process.join, 120)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"it did not end in two minutes: {self.said}")
        return self._process.exitcode

    @property
    def said(self) -> str:
        """The end of what it said."""
        return self._said.read_text()[-2000:]


async def killed_everywhere(
    url: str, directory: Path, steps: Mapping[str, Iterable[str]], *words: str, rest: str = "active", kind: str = "",
    door: socket.socket | None = None,
) -> dict[str, str]:  # fmt: skip
    """Daemons that are killed twice: when each of their hosts stands at another boundary of ``steps`` ("state/step" -> RUNS, WAITS or
    STAYS), and when each stands where its first step after that ended; then one that brings all of them to rest.

    Returns each host's boundary by its name. ``words`` and ``kind`` (":vm") are for process.py.
    """
    at = [
        boundary
        for step, ends in steps.items()
        for boundary in (f"before {step}", *(f"{when} {step} {end}" for end in ends for when in ("after", "stored")))
    ]  # fmt: skip
    hosts = {f"h{number}": boundary for number, boundary in enumerate(at, 1)}
    added = [f"{name}{kind}" for name in (*hosts, CONTROL)]
    held = [f"{name}={boundary}" for name, boundary in hosts.items()]
    last = ("--rest", rest)
    first = Engine(url, directory, "--add", *added, *words, *last, "--hold", *held, door=door)
    await first.ends(-signal.SIGKILL)
    await leases_run_out(url)
    await Engine(url, directory, *last, "--hold-every", door=door).ends(-signal.SIGKILL)
    await leases_run_out(url)
    await Engine(url, directory, *last, door=door).ends()
    return {**hosts, CONTROL: ""}


async def leases_run_out(url: str) -> None:
    """Time passes: on PostgreSQL a daemon that starts waits for that (on SQLite, whose file is its own, it does not)."""
    store = Store(url, lock=False)
    if store.sqlite:
        return
    await store.open()
    async with store.write() as session:
        await session.execute(
            update(Host).where(col(Host.lease_owner).isnot(None)).values(lease_expires=utcnow())
        )
    await store.close()


async def everything(url: str) -> tuple[list[Host], list[Event], list[Deployment]]:
    store = Store(url, lock=False)
    await store.open()
    try:
        async with store.read() as session:
            hosts = (await session.execute(select(Host))).scalars().all()
            events = (await session.execute(select(Event).order_by(Event.id))).scalars().all()
            deployments = (await session.execute(select(Deployment))).scalars().all()
        return list(hosts), list(events), list(deployments)
    finally:
        await store.close()


def whole(folder: Path) -> set[str]:
    """The names of the files there, without those that a kill left half written (they begin with a dot)."""
    return {path.name for path in folder.glob("*") if not path.name.startswith(".")}


def power_cycles(directory: Path) -> Counter[str]:
    """How often each machine was really power-cycled, by its name."""
    lines = (directory / "fakes" / "power" / "power.jsonl").read_text().splitlines()
    calls = [json.loads(line)["call"] for line in lines]
    return Counter(
        call["host"]
        for call in calls
        if (call["what"], call["argument"], call["changed"]) == ("set", "cycle", True)
    )


def check_history(events: list[Event], host: str) -> None:
    """States follow each other without a hole; every step that was begun has ended, failed, was interrupted or left, in turn."""
    mine = [event for event in events if event.host_name == host]
    changes = [event.data for event in mine if event.kind == "state.changed"]
    assert all(a["to"] == b["from"] for a, b in pairwise(changes)), f"{host}: {changes}"
    open_step = ""
    for event in mine:
        step = f"{event.state}/{event.step}"
        if event.kind == "step.started":
            assert open_step == "", f"{host}: {step} began while {open_step} was under way"
            open_step = step
        elif event.kind in ("step.ended", "step.failed", "step.interrupted", "step.left"):
            assert open_step == step, (
                f"{host}: {event.kind} of {step}, but {open_step or 'nothing'} was under way"
            )
            open_step = ""
    assert open_step == "", f"{host}: {open_step} never ended"


def check_steps(events: list[Event], steps: Iterable[str], states: Iterable[str]) -> None:
    """The steps that were killed at are all that a host takes in these states: a new one must not be forgotten."""
    taken = {
        f"{e.state}/{e.step}" for e in events if e.host_name == CONTROL and e.kind == "step.started" and e.state in set(states)
    }  # fmt: skip
    assert taken == set(steps)
