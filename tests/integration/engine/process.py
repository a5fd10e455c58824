"""A daemon's engine as a process of its own, to be killed: ``URL DIRECTORY [options]`` are its words.

Works until every host is at rest, then ends with 0. With ``--kill N`` it kills itself (SIGKILL) at the N-th boundary of a step of
host ``--at``; with ``--kill-after SECONDS`` at whatever it is doing then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from provisiond.inventory import postgres
from provisiond.inventory.hardware_tables import Task
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Deployment, Host
from provisiond.lifecycle import intents, task_signals
from provisiond.lifecycle.intents import Verb
from tests import logs
from tests.integration.engine.rig import Rig


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def work(options: argparse.Namespace) -> None:
    boundaries = 0

    def boundary(when: str, host: ResolvedHost, step: str) -> None:
        nonlocal boundaries
        if host.name != options.at:
            return
        boundaries += 1
        if boundaries == options.kill:
            die()

    engine = {"lease_seconds": 4.0, "sweep_seconds": 0.2, "backoff_seconds": 0.05, "backoff_max_seconds": 0.2}
    postgres.IDLE_SECONDS = 4  # as the leases: the sessions of a frozen process may wait for each other, and end one after the other
    rig = await Rig(
        options.url, Path(options.directory), engine=engine, on_disk=True, boundary=boundary,
        erase="auto" if options.erase else "none",
    ).open()  # fmt: skip
    await rig.furnish()
    for number, (name, virtual) in enumerate(options.add):
        if not await known(rig, name):
            await rig.add(name, options.number + number, virtual=virtual, wanted="build")
    if options.kill_after:
        threading.Thread(target=lambda: (time.sleep(options.kill_after), die()), daemon=True).start()
    await rig.reconciler.start()
    if options.release:
        await ask_all(rig, "active", Verb.RELEASE)
    if options.erase:
        await intents.request(rig.store, options.erase, Verb.RELEASE, actor="test")
    wanted = ("ready",) if options.release else ("ready", "active") if options.erase else ("active",)
    while True:
        # the server ends the sessions of a process that was frozen: that is how its locks are freed
        with contextlib.suppress(DBAPIError):
            if await all_rest(rig, *wanted):
                break
        await asyncio.sleep(0.05)
    sys.stdout.write(f"boundaries {boundaries}\n")
    await rig.close()


async def all_rest(rig: Rig, *states: str) -> bool:
    """Whether every host is at rest in one of ``states``; machines that nobody heard try again. Ends the process when a host is stuck."""
    async with rig.store.read() as session:
        hosts = (await session.execute(select(Host))).scalars().all()
    if all(h.state in states and h.due_at is None and h.lease_owner is None for h in hosts):
        return True
    stuck = [f"{h.name} {h.state}/{h.step}: {h.failure}" for h in hosts if h.failure and h.due_at is None]
    if stuck:
        sys.exit("; ".join(stuck))
    await wake_machines(rig)
    return False


async def known(rig: Rig, name: str) -> bool:
    async with rig.store.read() as session:
        return (await session.execute(select(Host.id).where(Host.name == name))).first() is not None


async def ask_all(rig: Rig, state: str, verb: Verb) -> None:
    async with rig.store.read() as session:
        names = (await session.execute(select(Host.name).where(Host.state == state))).scalars().all()
    for name in names:
        await intents.request(rig.store, name, verb, actor="test")


async def wake_machines(rig: Rig) -> None:
    """Machines live on while daemons die: those that were switched on and were not heard go on trying."""
    async with rig.store.read() as session:
        found = (
            select(Host.id)
            .join(Deployment, Deployment.id == Host.deployment_id)
            .where(Host.step.in_(["install", "first-boot"]), Deployment.phoned_home_at.is_(None))
        )
        waiting = (await session.execute(found)).scalars().all()
    for host_id in waiting:
        await rig.machine_answers(host_id)
    async with rig.store.read() as session:
        told = (
            select(Task)
            .join(Host, Host.task_id == Task.id)
            .where(Host.step == "erase", Task.done_at.is_(None))
        )
        open_tasks = (await session.execute(told)).scalars().all()
    for task in open_tasks:
        await task_signals.progress(rig.store, task.id, 50, "sda overwrite 50 %")
        disk = {"name": "sda", "path": "/dev/sda", "serial": task.host_id, "size": 1 << 30}
        now = task.created_at
        await task_signals.record_erasure(
            rig.store, task.id, disk, method="overwrite", started=now, ended=now, verified=True
        )
        await task_signals.done(rig.store, task.id, {"disks": 1})


def host(text: str) -> tuple[str, bool]:
    name, _, kind = text.partition(":")
    return name, kind == "vm"


def run(words: Sequence[str], said: Path) -> None:
    """All of the process, forked from one that has imported everything. What it says goes to the file ``said``."""
    with said.open("ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    logs.plain()
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("directory")
    parser.add_argument("--add", type=host, nargs="*", default=[])
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--at", default="")
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--kill-after", type=float, default=0.0)
    parser.add_argument("--release", action="store_true")
    parser.add_argument("--erase", default="", help="release this host, erasing its disks")
    asyncio.run(work(parser.parse_args(words)))
