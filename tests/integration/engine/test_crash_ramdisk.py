"""``kill -9`` amid inspections, erasures and rescues, with machines whose ramdisks run on: nothing lost, nothing twice, nothing left over."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisiond.inventory.hardware_tables import AgentSession, Erasure, Hardware, HardwareTest, Task
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Deployment, Event, Host
from tests.integration.engine.crash import (
    CONTROL,
    RUNS,
    STAYS,
    WAITS,
    check_history,
    check_steps,
    killed_everywhere,
    whole,
)
from tests.integration.engine.process import TESTS
from tests.integration.engine.rack import Rack

INSPECT = {
    "inspecting/sensors": RUNS,
    "inspecting/boot": RUNS,
    "inspecting/tests": WAITS,
    "inspecting/back": RUNS,
}
RESCUE = {"rescue/boot": RUNS, "rescue/login": WAITS, "rescue/stay": STAYS, "rescue/leave": RUNS}
RELEASE = {
    "releasing/stop": RUNS, "releasing/boot": RUNS, "releasing/erase": WAITS, "releasing/off": RUNS, "releasing/unreserve": RUNS
}  # fmt: skip
DISKS = 2  # of a FakeRamdisk


@dataclass
class Ended:
    """What there is when all is over. ``at``: which boundary each host was killed at."""

    at: dict[str, str]
    rack: Rack
    rows: dict[Any, list[Any]]
    hosts: dict[str, Host]

    def of(self, table: Any, name: str) -> list[Any]:
        return [row for row in self.rows[table] if row.host_id == self.hosts[name].id]

    def kinds(self, name: str) -> Counter[str]:
        """How often there is each kind of event since the verb was asked for."""
        kinds = [event.kind for event in self.of(Event, name)]
        begin = max(
            n for n, kind in enumerate(kinds) if kind in ("intent.inspect", "intent.rescue", "intent.release")
        )
        return Counter(kinds[begin:])

    def begun(self, name: str, step: str) -> int:
        """How often this step was begun, with those that a kill interrupted."""
        mine = [e for e in self.of(Event, name) if e.kind == "step.started"]
        return sum(f"{e.state}/{e.step}" == step for e in mine)

    def was_started_once(self, name: str, told: str) -> None:
        """Fail unless the machine was started once, from the network, and is off and noted down as such."""
        assert self.rack.starts[name] == ["network"], told
        assert (self.rack.power[name], self.rack.device[name]) == ("off", "network"), told
        assert self.hosts[name].power == "off", told


async def killed(
    url: str, directory: Path, verb: str, steps: Mapping[str, Iterable[str]], rest: str
) -> Ended:
    """Kill daemons at every boundary of ``verb``; check what is true of every host and its one task, whatever the verb."""
    count = 1 + sum(1 + 2 * len(tuple(ends)) for ends in steps.values())
    names = [*(f"h{number}" for number in range(1, count)), CONTROL]
    macs = {name: f"52:54:00:00:00:{20 + n:02x}" for n, name in enumerate(names)}
    with socket.create_server(("127.0.0.1", 0)) as door:
        async with Rack(f"http://127.0.0.1:{door.getsockname()[1]}", directory, macs) as rack:
            at = await killed_everywhere(url, directory, steps, "--ask", verb, rest=rest, door=door)
    assert list(at) == names
    store = Store(url, lock=False)
    await store.open()
    async with store.read() as session:
        tables = (Host, Task, Event, Deployment, AgentSession, HardwareTest, Hardware, Erasure)
        rows: dict[Any, list[Any]] = {t: list((await session.execute(select(t))).scalars()) for t in tables}
    await store.close()
    rows[Event].sort(key=lambda event: event.id)
    ended = Ended(at, rack, rows, {host.name: host for host in rows[Host]})
    state = next(iter(steps)).partition("/")[0]
    check_steps(rows[Event], steps, {state})
    for name, boundary in at.items():
        host, told = ended.hosts[name], f"{name}, killed {boundary or 'nowhere'}"
        assert host.state == rest and host.task_id is None and host.failure is None, told
        assert host.lease_owner is None and host.due_at is None, told
        check_history(rows[Event], name)
        (task,) = ended.of(Task, name)
        assert task.ended_at and not task.failed_at and task.secret == "", told
        assert all(session.ended_at for session in ended.of(AgentSession, name)), f"{told}: a session is left"
        assert rack.booted[name].count("ramdisk") == 1, f"{told}: {rack.booted[name]}"
        kinds = ended.kinds(name)
        once = {f"intent.{verb}", "boot.asked", "agent.claimed"}
        once |= {"task.opened"} if verb != "release" else set()
        assert {kind: kinds[kind] for kind in once} == dict.fromkeys(once, 1), (told, kinds)
    return ended


@pytest.mark.timeout(300)
async def test_killed_at_every_boundary_of_an_inspection(database_url: str, tmp_path: Path) -> None:
    """Each host was started once, its tests ran and are told once, its facts are there, and it is off and ready."""
    ended = await killed(database_url, tmp_path, "inspect", INSPECT, "ready")
    for name, boundary in ended.at.items():
        kinds, told = ended.kinds(name), f"{name}, killed {boundary or 'nowhere'}"
        ended.was_started_once(name, told)
        verdicts = {test.name: test.verdict for test in ended.of(HardwareTest, name)}
        assert verdicts == dict.fromkeys(TESTS, "pass") and len(ended.of(HardwareTest, name)) == len(TESTS), (
            told
        )
        assert (kinds["hardware.tested"], kinds["task.done"]) == (len(TESTS), 1), (told, kinds)
        assert len(ended.of(Hardware, name)) == 1 and ended.of(Task, name)[0].done_at, told
        assert (kinds["hardware.unwell"], kinds["state.changed"]) == (1, 2), (told, kinds)


@pytest.mark.timeout(300)
async def test_killed_at_every_boundary_of_a_rescue(database_url: str, tmp_path: Path) -> None:
    """Each host came up in rescue once, is told of once, and after unrescue runs from its disk, its build what it was."""
    ended = await killed(database_url, tmp_path, "rescue", RESCUE, "active")
    for name, boundary in ended.at.items():
        kinds, told = ended.kinds(name), f"{name}, killed {boundary or 'nowhere'}"
        starts = ended.rack.starts[name]
        # a kill between a restart and its being noted down makes one more, of those back from the disk
        assert starts[0] == "network" and set(starts[1:]) == {"disk"}, (told, starts)
        assert len(starts) - 1 <= ended.begun(name, "rescue/leave"), (told, starts)
        assert (ended.rack.power[name], ended.rack.device[name]) == ("on", "disk"), told
        assert ended.rack.booted[name][-1] == "disk" and ended.hosts[name].power == "on", told
        assert (kinds["rescue.up"], kinds["intent.unrescue"], kinds["state.changed"]) == (1, 1, 2), (
            told,
            kinds,
        )
        (deployment,) = ended.of(Deployment, name)
        assert ended.hosts[name].deployment_id == deployment.id and deployment.outcome == "active", told
    assert len(whole(tmp_path / "fakes" / "dhcp" / "reservations")) == len(ended.at)


@pytest.mark.timeout(300)
async def test_killed_at_every_boundary_of_an_erasure(database_url: str, tmp_path: Path) -> None:
    """Each host was started once to be erased, has one record of each disk, and is off, ready and without its reservation."""
    ended = await killed(database_url, tmp_path, "release", RELEASE, "ready")
    for name, boundary in ended.at.items():
        kinds, told = ended.kinds(name), f"{name}, killed {boundary or 'nowhere'}"
        ended.was_started_once(name, told)
        assert ended.hosts[name].deployment_id is None, told
        records = Counter(record.disk_serial for record in ended.of(Erasure, name))
        assert len(records) == DISKS and set(records.values()) == {1}, (told, records)
        assert (kinds["disk.erased"], kinds["task.done"], kinds["state.changed"]) == (DISKS, 1, 2), (
            told,
            kinds,
        )
        assert ended.of(Task, name)[0].done_at, told
    assert not whole(tmp_path / "fakes" / "dhcp" / "reservations")
