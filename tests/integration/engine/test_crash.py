"""``kill -9`` at any point loses nothing: every host arrives, nothing is left over, the history has no hole."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import time
import uuid
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import select

from provisiond.inventory.hardware_tables import Erasure, Task
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Deployment, Event, Host
from tests.integration.engine.process import run

HOSTS = {"physical": "p", "virtual": "v"}


FORKS = multiprocessing.get_context("forkserver")  # one process imports everything, once
FORKS.set_forkserver_preload(["tests.integration.engine.process"])


class Engine:
    """The engine in a process of its own."""

    def __init__(self, url: str, directory: Path, *words: str) -> None:
        self._said = directory / f"said-{uuid.uuid4().hex}"
        self._process = FORKS.Process(target=run, args=((url, str(directory), *words), self._said))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def said(self) -> str:
        """The end of what it said."""
        return self._said.read_text()[-2000:]

    def wait(self) -> int:
        """Its exit code, as subprocess tells it; one that takes longer than two minutes is ended."""
        self._process.join(120)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"it did not end in two minutes: {self.said}")
        return self._process.exitcode


def engine(url: str, directory: Path, *words: str) -> tuple[int, str]:
    """(exit code, what it said) of an engine that was waited for."""
    process = Engine(url, directory, *words)
    return process.wait(), process.said


def ended_well(ended: tuple[int, str]) -> None:
    assert ended[0] == 0, ended[1]


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
    """States follow each other without a hole; every step that was begun has ended, failed or was interrupted, in turn."""
    mine = [event for event in events if event.host_name == host]
    changes = [event.data for event in mine if event.kind == "state.changed"]
    assert all(a["to"] == b["from"] for a, b in pairwise(changes)), f"{host}: {changes}"
    open_step = ""
    for event in mine:
        step = f"{event.state}/{event.step}"
        if event.kind == "step.started":
            assert open_step == "", f"{host}: {step} began while {open_step} was under way"
            open_step = step
        elif event.kind in ("step.ended", "step.failed", "step.interrupted"):
            assert open_step == step, (
                f"{host}: {event.kind} of {step}, but {open_step or 'nothing'} was under way"
            )
            open_step = ""
    assert open_step == "", f"{host}: {open_step} never ended"


async def check_all_arrived(url: str, directory: Path, names: set[str]) -> None:
    """Every host in service with one deployment, and of each side effect exactly one."""
    hosts, events, deployments = await everything(url)
    assert {host.name for host in hosts} == names
    assert {host.state for host in hosts} == {"active"}
    assert all(host.lease_owner is None and host.due_at is None and host.failure is None for host in hosts)
    assert Counter(d.host_id for d in deployments) == Counter(host.id for host in hosts)
    assert {d.outcome for d in deployments} == {"active"}
    for host in hosts:
        check_history(events, host.name)
    virtual = {host.id for host in hosts if host.hypervisor_id}
    fakes = directory / "fakes"
    machines = {path.stem for path in (fakes / "compute" / "machines").glob("*.json")}
    assert machines == virtual, "a virtual machine too many or too few"
    assert whole(fakes / "compute" / "names") == {h.name for h in hosts if h.id in virtual}
    assert {path.parent.name for path in (fakes / "compute" / "disks").glob("*/*")} == virtual, (
        "an orphaned disk"
    )
    assert len(whole(fakes / "dhcp" / "reservations")) == len(hosts), "a reservation too many or too few"
    assert len(list((fakes / "handover").glob("*.json"))) == len(hosts), "a handover ran twice"


@pytest.mark.parametrize("kind", ["physical", "virtual"])
@pytest.mark.timeout(600)
async def test_killed_at_every_boundary(database_url: str, tmp_path: Path, kind: str) -> None:
    """A daemon is killed at the 1st, 2nd, ... boundary of a build; each time a new one goes on, until none is left to kill at."""
    names: set[str] = set()
    boundary = 0
    while True:
        boundary += 1
        name = f"{HOSTS[kind]}{boundary}"
        names.add(name)
        code, said = engine(
            database_url, tmp_path, "--add", name if kind == "physical" else f"{name}:vm",
            "--number", str(20 + boundary), "--at", name, "--kill", str(boundary),
        )  # fmt: skip
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        assert boundary < 60
    assert boundary > (20 if kind == "physical" else 15), "the build has fewer boundaries than it has steps"
    await check_all_arrived(database_url, tmp_path, names) if kind == "virtual" else await check_physical(
        database_url, tmp_path, names
    )


async def check_physical(url: str, directory: Path, names: set[str]) -> None:
    (directory / "fakes" / "compute" / "machines").mkdir(parents=True, exist_ok=True)
    (directory / "fakes" / "compute" / "names").mkdir(parents=True, exist_ok=True)
    await check_all_arrived(url, directory, names)
    # A kill between the power cycle and its being noted down makes one more cycle, and only that does.
    _hosts, events, _deployments = await everything(url)
    begun = Counter(e.host_name for e in events if (e.kind, e.step) == ("step.started", "boot"))
    cycles = power_cycles(directory)
    assert cycles.keys() == names
    assert all(1 <= cycles[name] <= begun[name] for name in names), (cycles, begun)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.timeout(600)
async def test_killed_at_every_boundary_of_an_erasure(database_url: str, tmp_path: Path) -> None:
    """A daemon is killed at the 1st, 2nd, ... boundary of a release that erases: each host ends with one task, one record, switched off."""
    names = [f"p{number}" for number in range(1, 31)]
    ended_well(engine(database_url, tmp_path, "--add", *names))
    boundary = 0
    while True:
        boundary += 1
        name = names[boundary - 1]
        code, said = engine(database_url, tmp_path, "--erase", name, "--at", name, "--kill", str(boundary))
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
    assert boundary > 15, "the release has fewer boundaries than it has steps"
    hosts, events, _deployments = await everything(database_url)
    released = {host.id for host in hosts if host.state == "ready"}
    assert {host.name for host in hosts if host.id in released} == set(names[:boundary])
    store = Store(database_url, lock=False)
    await store.open()
    async with store.read() as session:
        tasks = (await session.execute(select(Task))).scalars().all()
        records = (await session.execute(select(Erasure))).scalars().all()
    await store.close()
    assert Counter(task.host_id for task in tasks) == Counter(released)
    assert all(task.ended_at and task.done_at for task in tasks)
    assert Counter(record.host_id for record in records) == Counter(released), "a record too many or too few"
    for host in hosts:
        check_history(events, host.name)
        assert host.task_id is None
        assert host.id not in released or host.power == "off"
    assert len(whole(tmp_path / "fakes" / "dhcp" / "reservations")) == len(names) - boundary


@pytest.mark.timeout(600)
async def test_killed_at_random_times(database_url: str, tmp_path: Path) -> None:
    """Killed again and again in the middle of many builds; in the end all are in service."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    names: list[str] = []
    kills = rounds = 0
    while kills < 5:
        rounds += 1
        assert rounds <= 20, "the engine is through with its work before it can be killed"
        more = [f"p{rounds}-{n}" for n in range(4)] + [f"v{rounds}-{n}:vm" for n in range(4)]
        names += more
        number = str(12 + 8 * rounds)
        code, said = engine(
            database_url,
            tmp_path,
            "--add",
            *more,
            "--number",
            number,
            "--kill-after",
            f"{chance.uniform(0.02, 0.3):.3f}",
        )
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), said
    ended_well(engine(database_url, tmp_path))
    await check_all_arrived(database_url, tmp_path, {name.partition(":")[0] for name in names})
    for _ in range(4):
        engine(database_url, tmp_path, "--release", "--kill-after", f"{chance.uniform(0.05, 0.3):.3f}")
    ended_well(engine(database_url, tmp_path, "--release"))
    fakes = tmp_path / "fakes"
    assert not whole(fakes / "compute" / "machines"), "a virtual machine is left"
    assert not whole(fakes / "dhcp" / "reservations"), "a reservation is left"
    _hosts, events, _deployments = await everything(database_url)
    for name in names:
        check_history(events, name.partition(":")[0])


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_daemons_and_one_freezes(database_url: str, tmp_path: Path) -> None:
    """On PostgreSQL a frozen daemon's hosts are taken over when its leases run out; when it wakes, its late writes change nothing."""
    names = [f"p{n}" for n in range(6)] + [f"v{n}:vm" for n in range(6)]
    frozen = Engine(database_url, tmp_path, "--add", *names)
    await wait_for_work(database_url)
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        ended_well(engine(database_url, tmp_path))
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
        code = frozen.wait()
    ended_well((code, frozen.said))
    await check_all_arrived(database_url, tmp_path, {name.partition(":")[0] for name in names})


async def wait_for_work(url: str) -> None:
    """Until some host is in the middle of its build."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        hosts, _events, _deployments = await everything(url)
        if any(host.state == "building" for host in hosts):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was begun in 30 s")
