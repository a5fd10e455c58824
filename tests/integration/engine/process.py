"""A daemon's engine as a process of its own, to be killed: ``URL DIRECTORY [options]`` are its words.

Works until every host is at rest, then ends with 0. With ``--hold`` hosts stand still at boundaries of their steps, and once all that
do not rest stand, it kills itself (SIGKILL): one kill hits each of them at its own boundary. With ``--kill-after SECONDS`` it kills
itself at whatever it is doing then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from provisiond.inventory import postgres
from provisiond.inventory.hardware_tables import Task
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Deployment, Host
from provisiond.lifecycle import intents
from provisiond.lifecycle.intents import Asked, Verb
from provisiond.lifecycle.outcome import Outcome
from provisiond.lifecycle.task_signals import is_up
from tests import logs
from tests.integration.engine.rig import KEY, Rig

TESTS = ("memory", "cpu-burn")
ASKED = {Verb.INSPECT: Asked(tests=TESTS), Verb.RESCUE: Asked(keys=(KEY,)), Verb.RELEASE: Asked()}
FROM = {Verb.INSPECT: "ready", Verb.RESCUE: "active", Verb.RELEASE: "active"}
AT_WORK = {("rescue", "login"), ("rescue", "stay"), ("inspecting", "tests"), ("releasing", "erase")}
"""State and steps at which a machine was started for its task."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Holding:
    """Hosts that stand still: ``at`` says at which boundary, such as "after rescue/login complete"; ``every`` has each host stand
    at the end of the first step that it runs."""

    at: dict[str, str]
    every: bool
    armed: bool = False
    standing: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.every or bool(self.at)

    async def boundary(self, when: str, host: ResolvedHost, step: str, outcome: Outcome | None) -> None:
        named = f"{when} {host.row.state}/{step}" + (f" {type(outcome).__name__.lower()}" if outcome else "")
        if self.armed and (named == self.at.get(host.name) or (self.every and when == "after")):
            self.standing[host.name] = (when, host.row.state, step)
            await asyncio.Event().wait()

    async def all_stand(self, rig: Rig, rest: str) -> bool:
        """Whether every host stands, or rests in the state ``rest``, and the machines that were started have done their work: so how
        often each is started does not depend on chance. Ends the process when a host rests that was to stand."""
        async with rig.store.read() as session:
            hosts = (await session.execute(select(Host))).scalars().all()
            tasks = {task.host_id: task for task in (await session.execute(select(Task))).scalars()}
        for host in hosts:
            when, state, step = self.standing.get(host.name, ("", "", ""))
            if not when and not rests(host, rest):
                return False
            started = (state, step) in AT_WORK or (step == "boot" and when != "before")
            task = tasks.get(host.id)
            if started and task is not None and not (task.done_at or is_up(task.progress_text)):
                return False
        if missed := self.at.keys() - self.standing.keys():
            sys.exit("; ".join(f"{name} never came to: {self.at[name]}" for name in sorted(missed)))
        return True


async def work(options: argparse.Namespace, door: socket.socket | None) -> None:
    engine = {"lease_seconds": 4.0, "sweep_seconds": 0.2, "backoff_seconds": 0.05, "backoff_max_seconds": 0.2}
    many = {"workers": 200, "per_hypervisor": 200}  # who stands still keeps nobody else waiting
    postgres.IDLE_SECONDS = 4  # as the leases: the sessions of a frozen process may wait for each other, and end one after the other
    holding = Holding(dict(options.hold), options.hold_every, armed=not options.ask)
    directory = Path(options.directory)
    rig = await Rig(
        options.url, directory, engine={**engine, **(many if holding else {})}, on_disk=True, boundary=holding.boundary,
        erase="auto" if door else "none",
    ).open()  # fmt: skip
    await rig.furnish()
    verb = Verb(options.ask) if options.ask else None
    for number, (name, virtual) in enumerate(options.add):
        if not await known(rig, name):
            wanted = None if verb is Verb.INSPECT else "build"
            await rig.add(name, options.number + number, virtual=virtual, wanted=wanted)
    if options.kill_after:
        threading.Thread(target=lambda: (time.sleep(options.kill_after), die()), daemon=True).start()
    await rig.reconciler.start()
    runner = None
    if verb and options.add:
        await until_all_rest(rig, FROM[verb])
        journal = directory / "fakes" / "power" / "power.jsonl"
        (directory / "asked").write_text(f"{journal.stat().st_size}\n")
    if door:
        runner = await rig.serve(door)
    if verb:
        holding.armed = True
        await ask_all(rig, FROM[verb], verb)
    await until_all_rest(rig, options.rest, holding)
    if holding:
        die()
    if runner:
        await runner.cleanup()
    await rig.close()


async def until_all_rest(rig: Rig, state: str, holding: Holding | None = None) -> None:
    """Until every host rests in ``state``, or stands still; machines that nobody heard try again, and operators end their rescues.
    Ends the process when a host is stuck."""
    while True:
        # the server ends the sessions of a process that was frozen: that is how its locks are freed
        with contextlib.suppress(DBAPIError):
            if holding and await holding.all_stand(rig, state):
                return
            async with rig.store.read() as session:
                hosts = (await session.execute(select(Host))).scalars().all()
            if not holding and all(rests(host, state) for host in hosts):
                return
            stuck = [
                f"{h.name} {h.state}/{h.step}: {h.failure}" for h in hosts if h.failure and h.due_at is None
            ]
            if stuck:
                sys.exit("; ".join(stuck))
            for host in hosts:
                if (host.state, host.step) == ("rescue", "stay") and host.lease_owner is None:
                    await intents.request(rig.store, host.id, Verb.UNRESCUE, actor="test")
            await wake_machines(rig)
        await asyncio.sleep(0.05)


def rests(host: Host, state: str) -> bool:
    return host.state == state and host.due_at is None and host.lease_owner is None


async def known(rig: Rig, name: str) -> bool:
    async with rig.store.read() as session:
        return (await session.execute(select(Host.id).where(Host.name == name))).first() is not None


async def ask_all(rig: Rig, state: str, verb: Verb) -> None:
    async with rig.store.read() as session:
        names = (await session.execute(select(Host.name).where(Host.state == state))).scalars().all()
    for name in names:
        await intents.request(rig.store, name, verb, actor="test", asked=ASKED[verb])


async def wake_machines(rig: Rig) -> None:
    """Machines live on while daemons die: those that were switched on for a build and were not heard go on trying."""
    async with rig.store.read() as session:
        found = (
            select(Host.id)
            .join(Deployment, Deployment.id == Host.deployment_id)
            .where(Host.step.in_(["install", "first-boot"]), Deployment.phoned_home_at.is_(None))
        )
        waiting = (await session.execute(found)).scalars().all()
    for host_id in waiting:
        await rig.machine_answers(host_id)


def host(text: str) -> tuple[str, bool]:
    name, _, kind = text.partition(":")
    return name, kind == "vm"


def hold(text: str) -> tuple[str, str]:
    name, _, boundary = text.partition("=")
    return name, boundary


def run(words: Sequence[str], said: Path, door: socket.socket | None) -> None:
    """All of the process, forked from one that has imported everything. What it says goes to the file ``said``; at ``door`` it serves
    the machines' ramdisks."""
    with said.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    logs.plain()
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("directory")
    parser.add_argument("--add", type=host, nargs="*", default=[])
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument(
        "--ask", default="", help="when those that were added rest, ask this verb of every host"
    )
    parser.add_argument("--rest", default="active", help="the state that every host is to rest in at the end")
    parser.add_argument(
        "--hold", type=hold, nargs="*", default=[], help="NAME=BOUNDARY: this host stands still there"
    )
    parser.add_argument(
        "--hold-every", action="store_true", help="every host stands still where its first step ends"
    )
    parser.add_argument("--kill-after", type=float, default=0.0)
    asyncio.run(work(parser.parse_args(words), door))
