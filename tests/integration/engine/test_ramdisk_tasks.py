"""Hosts that are inspected, erased and rescued in the ramdisk, through the real engine; the test plays the ramdisk's agent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from provisiond.drivers.power import PowerAction
from provisiond.errors import Conflict, Invalid
from provisiond.inventory.hardware_tables import AgentSession, Erasure, HardwareTest, Task
from provisiond.inventory.resolve import resolve_host
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, new_id, utcnow
from provisiond.lifecycle import intents, task_signals
from provisiond.lifecycle.intents import Asked, Verb
from tests.integration.engine.conftest import MakeRig
from tests.integration.engine.rig import Rig
from tests.ramdisk_tasks import end_task, open_task

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOperatorOperatorOperatorOperatorOperato alice"
DISK = {
    "name": "sda",
    "path": "/dev/sda",
    "model": "EXAMPLE",
    "serial": "S1",
    "wwn": "0x5000",
    "size": 64 << 30,
}


def says(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event.kind == kind]


async def task_at(rig: Rig, name: str, step: str, seconds: float = 60) -> Task:
    """The task of a host that stands at ``step``, nobody working on it."""
    async with asyncio.timeout(seconds):
        while True:
            host = await rig.row(name)
            if host.step == step and host.lease_owner is None and host.task_id is not None:
                return await the_task(rig.store, host.task_id)
            assert not (host.failure and host.due_at is None), host.failure
            await asyncio.sleep(0.01)


async def the_task(store: Store, task_id: str) -> Task:
    async with store.read() as session:
        return (await session.execute(select(Task).where(col(Task.id) == task_id))).scalars().one()


async def in_service(rig: Rig, name: str = "web01", **columns: Any) -> None:
    await rig.add(name, 20, **columns)
    await rig.arrives(name, "ready")
    await intents.request(rig.store, name, Verb.BUILD, actor="user:ann")
    await rig.arrives(name, "active")


async def erased(rig: Rig, task: Task, *, verified: bool = True, method: str = "discard") -> None:
    now = utcnow()
    for _ in range(2):  # told twice is one record
        await task_signals.record_erasure(
            rig.store, task.id, DISK, method=method, started=now, ended=now, verified=verified, message=""
        )


async def calls(rig: Rig, what: str) -> list[str]:
    return [str(c.argument) for c in rig.power.calls if c.what == what]


async def test_release_erases(make_rig: MakeRig) -> None:
    """A host that was built is started from the ramdisk, erased, recorded and switched off before it is ready again."""
    rig = await make_rig(erase="auto")
    await in_service(rig)
    before = len(await calls(rig, "set"))
    await intents.request(rig.store, "web01", Verb.RELEASE, actor="user:ann")
    task = await task_at(rig, "web01", "erase")
    assert (task.kind, task.options, task.actor) == ("erase", {"mode": "auto"}, "engine")
    assert (await rig.dhcp.reservations()) != [], "it boots from the network yet"
    assert await task_signals.boot_asked(rig.store, task.id) == (1, True)
    assert await task_signals.progress(rig.store, task.id, 50, "sda discard 50 %", 32 << 30, 64 << 30) == ""
    await erased(rig, task)
    await task_signals.done(rig.store, task.id, {"disks": 1, "kept": []})
    await rig.arrives("web01", "ready")
    assert (await calls(rig, "set"))[before:] == ["off", "cycle", "off"]
    assert (await calls(rig, "set_boot"))[-2:] == ["network", "network"]
    assert await rig.dhcp.reservations() == []
    task = await the_task(rig.store, task.id)
    assert task.ended_at is not None and task.done_bytes == 32 << 30
    async with rig.store.read() as session:
        records = (await session.execute(select(Erasure))).scalars().all()
    assert [(r.host_name, r.disk_serial, r.method, r.verified) for r in records] == [
        ("web01", "S1", "discard", True)
    ]
    assert len(says(await rig.events("web01"), "disk.erased")) == 1
    assert await task_signals.progress(rig.store, task.id, 60, "late") == "this task is over"
    await task_signals.done(rig.store, task.id, {})  # late, too: nothing happens
    assert (await rig.row("web01")).task_id is None


async def test_a_failed_erase_stands_and_can_be_skipped(make_rig: MakeRig) -> None:
    """It is tried again by retry from its boot on, and left out by release --erase none, which the history keeps."""
    rig = await make_rig(erase="full")
    await in_service(rig)
    await intents.request(rig.store, "web01", Verb.RELEASE, actor="user:ann")
    task = await task_at(rig, "web01", "erase")
    await task_signals.failed(rig.store, task.id, "sda: does not read as zeros", "log")
    host = await rig.fails("web01")
    assert (host.state, host.failure_kind) == ("releasing", "erase") and "does not read" in (
        host.failure or ""
    )
    await task_signals.progress(rig.store, task.id, 10, "again")
    assert (await rig.row("web01")).failure is not None, "what the machine says does not wake it"

    before = len(await calls(rig, "set"))
    await intents.request(rig.store, "web01", Verb.RETRY, actor="user:ann")
    again = await task_at(rig, "web01", "erase")
    assert again.id == task.id and again.failed_at is None
    assert (await calls(rig, "set"))[before:] == ["cycle"]
    await task_signals.failed(rig.store, task.id, "still not", "")
    await rig.fails("web01")
    await intents.request(rig.store, "web01", Verb.RELEASE, actor="user:bob", asked=Asked(erase="none"))
    await rig.arrives("web01", "ready")
    skipped = says(await rig.events("web01"), "erase.skipped")
    assert len(skipped) == 1 and "user:bob" in skipped[0].message
    assert (await the_task(rig.store, task.id)).ended_at is not None


async def test_what_is_erased_without_being_asked(make_rig: MakeRig) -> None:
    """Not a host that was never built, not a build that is called off, not a virtual machine, not one whose parameter says none."""
    rig = await make_rig(erase="auto", robot=False)
    await rig.add("never", 21)
    await rig.add("called", 22)
    for name in ("never", "called"):
        await rig.arrives(name, "ready")
    await intents.request(rig.store, "never", Verb.RELEASE, actor="user:ann")
    await rig.arrives("never", "ready")
    await intents.request(rig.store, "called", Verb.BUILD, actor="user:ann")
    async with asyncio.timeout(60):
        while (await rig.row("called")).step != "install":
            await asyncio.sleep(0.01)
    await intents.request(rig.store, "called", Verb.CANCEL, actor="user:ann")
    await rig.arrives("called", "ready")
    rig.robot = True
    await in_service(rig, "told", parameters={"erase": "none"})
    await intents.request(rig.store, "told", Verb.RELEASE, actor="user:ann")
    await rig.arrives("told", "ready")
    async with rig.store.read() as session:
        assert (await session.execute(select(Task))).first() is None

    await intents.request(rig.store, "never", Verb.RELEASE, actor="user:ann", asked=Asked(erase="quick"))
    assert (await task_at(rig, "never", "erase")).options == {"mode": "quick"}


async def test_rescue_and_back(make_rig: MakeRig) -> None:
    """The ramdisk lets the operator in with the host's keys and the given one; unrescue starts the disk, and the build stays its build."""
    rig = await make_rig(erase="auto")
    await in_service(rig, parameters={"ssh_authorized_keys": [KEY]})
    built = (await rig.row("web01")).deployment_id
    before = len(await calls(rig, "set"))
    other = KEY.replace("alice", "bob")
    await intents.request(rig.store, "web01", Verb.RESCUE, actor="user:ann", asked=Asked(keys=(other,)))
    task = await task_at(rig, "web01", "login")
    assert (task.kind, task.options["keys"], task.actor) == ("rescue", [KEY, other], "user:ann")
    await task_signals.progress(rig.store, task.id, 10, "the rescue script runs")
    await task_signals.progress(rig.store, task.id, 100, "rescue: ssh root@192.0.2.20 (host key SHA256:x)")
    await task_at(rig, "web01", "stay")
    assert "192.0.2.20" in says(await rig.events("web01"), "rescue.up")[0].message
    with pytest.raises(Conflict):
        await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann")

    await intents.request(rig.store, "web01", Verb.UNRESCUE, actor="user:ann")
    host = await rig.arrives("web01", "active")
    assert (await calls(rig, "set"))[before:] == ["cycle", "cycle"]
    assert (await calls(rig, "set_boot"))[-2:] == ["network", "disk"]
    assert [(e.step, e.message) for e in says(await rig.events("web01"), "step.left")] == [
        ("stay", "unrescue was asked for")
    ]
    assert host.deployment_id == built and len(await rig.deployments("web01")) == 1
    assert (await the_task(rig.store, task.id)).ended_at is not None and host.task_id is None
    assert await task_signals.progress(rig.store, task.id, 100, "rescue: ssh") != ""


async def test_a_rescue_that_does_not_come_up_is_left(make_rig: MakeRig) -> None:
    """A machine that never asks fails after its patience; unrescue works from there, too, and release from a rescue erases."""
    rig = await make_rig(erase="auto")
    await in_service(rig, parameters={"boot_minutes": 0.003})
    asked = Asked(keys=(KEY,))
    await intents.request(rig.store, "web01", Verb.RESCUE, actor="user:ann", asked=asked)
    host = await rig.fails("web01")
    assert (host.state, host.step, host.failure_kind) == ("rescue", "login", "no-boot")
    await intents.request(rig.store, "web01", Verb.UNRESCUE, actor="user:ann")
    assert (await rig.arrives("web01", "active")).failure is None

    await intents.request(rig.store, "web01", Verb.RESCUE, actor="user:ann", asked=asked)
    async with asyncio.timeout(30):
        while (await rig.row("web01")).step != "login":
            await asyncio.sleep(0.01)
    rescue = (await rig.row("web01")).task_id
    await intents.request(rig.store, "web01", Verb.RELEASE, actor="user:ann")
    async with asyncio.timeout(30):
        while (await rig.row("web01")).step != "erase":
            await asyncio.sleep(0.01)
    assert rescue is not None and (await the_task(rig.store, rescue)).ended_at is not None
    task = await the_task(rig.store, str((await rig.row("web01")).task_id))
    assert task.kind == "erase"


async def test_inspection_with_tests(make_rig: MakeRig) -> None:
    """Asked for by an operator: the host goes into the ramdisk and comes back, a failed test is told and is no failure of the host."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    asked = Asked(tests=("memory", "cpu-burn"))
    await intents.request(rig.store, "web01", Verb.INSPECT, actor="user:ann", asked=asked)
    task = await task_at(rig, "web01", "tests")
    assert task.options == {"tests": ["memory", "cpu-burn"]}
    await task_signals.record_test(rig.store, task.id, "memory", "fail", "bit 3 of DIMM A1\n", 12.0)
    await task_signals.record_test(rig.store, task.id, "cpu-burn", "pass", "", 3.0)
    await task_signals.record_test(rig.store, task.id, "cpu-burn", "pass", "", 4.0)
    await task_signals.done(rig.store, task.id, {})
    host = await rig.arrives("web01", "ready")
    assert host.failure is None and host.power == "off"
    events = await rig.events("web01")
    assert "DIMM A1" in says(events, "hardware.test_failed")[0].message
    assert says(events, "hardware.unwell")
    async with rig.store.read() as session:
        found = (await session.execute(select(HardwareTest).order_by(col(HardwareTest.id)))).scalars().all()
    assert [(t.name, t.verdict, t.seconds) for t in found] == [
        ("memory", "fail", 12.0),
        ("cpu-burn", "pass", 4.0),
    ]


async def test_tests_that_must_pass(make_rig: MakeRig) -> None:
    """With the parameter tests_must_pass a failed test keeps the host from being ready; retry runs them again, cancel leaves it."""
    rig = await make_rig()
    await rig.add(
        "web01", 20, parameters={"tests_must_pass": True, "inspect": "ramdisk", "tests": ["memory"]}
    )
    task = await task_at(rig, "web01", "tests")
    assert task.options == {"tests": ["memory"]}
    await task_signals.record_test(rig.store, task.id, "memory", "fail", "", 1.0)
    await task_signals.done(rig.store, task.id, {})
    assert (await rig.fails("web01")).failure_kind == "tests"
    await intents.request(rig.store, "web01", Verb.RETRY, actor="user:ann")
    task = await task_at(rig, "web01", "tests")
    assert task.done_at is None
    await intents.request(rig.store, "web01", Verb.CANCEL, actor="user:ann")
    host = await rig.arrives("web01", "ready")
    assert host.power == "off" and host.task_id is None


async def test_a_running_ramdisk_is_not_restarted(make_rig: MakeRig) -> None:
    """A machine whose ramdisk waits is inspected and then built by image in it; nothing switches it. One that was built since is."""
    rig = await make_rig(start=False, robot=False)
    host_id = await rig.add("web01", 20, parameters={"inspect": "ramdisk"}, wanted="build")
    async with rig.store.write() as session:
        session.add(AgentSession(id=new_id(), host_id=host_id, secret_hash="0" * 64))
    async with rig.store.read() as session:
        reach = rig.world.power_of(await resolve_host(session, host_id))
    assert reach is not None
    await reach[0].set(reach[1], PowerAction.ON)
    rig.power.calls.clear()
    await rig.reconciler.start()
    task = await task_at(rig, "web01", "tests")
    await task_signals.done(rig.store, task.id, {})
    async with asyncio.timeout(30):
        while (await rig.row("web01")).step != "install":
            await asyncio.sleep(0.01)
    assert await calls(rig, "set") == [] and await calls(rig, "set_boot") == []
    rig.robot = True
    await rig.machine_answers(host_id)
    await rig.arrives("web01", "active")
    await intents.request(rig.store, "web01", Verb.REBUILD, actor="user:ann")
    await rig.arrives("web01", "active")
    assert await calls(rig, "set") == ["cycle"]


async def test_an_agent_that_falls_silent(make_rig: MakeRig) -> None:
    """Nothing heard for longer than the host's patience is a failure with the last that was heard."""
    rig = await make_rig()
    await rig.add("web01", 20, parameters={"silent_minutes": 0.005})
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.INSPECT, actor="user:ann")
    task = await task_at(rig, "web01", "tests")
    await task_signals.progress(rig.store, task.id, 40, "memory 40 %")
    host = await rig.fails("web01")
    assert host.failure_kind == "silent" and "memory 40 %" in (host.failure or "")


async def test_a_boot_loop_of_a_task(make_rig: MakeRig) -> None:
    """A ramdisk handed out again and again whose agent never answers is a failure, told once."""
    rig = await make_rig()
    await rig.add("web01", 20)
    await rig.arrives("web01", "ready")
    await intents.request(rig.store, "web01", Verb.INSPECT, actor="user:ann")
    task = await task_at(rig, "web01", "tests")
    answers = [await task_signals.boot_asked(rig.store, task.id) for _ in range(4)]
    assert answers == [(1, True), (2, True), (3, False), (4, False)]
    await intents.set_maintenance(rig.store, "web01", "look", actor="user:ann")
    await intents.set_maintenance(rig.store, "web01", "", actor="user:ann")
    host = await rig.fails("web01")
    assert "never answered" in (host.failure or "")
    assert len(says(await rig.events("web01"), "boot.loop")) == 1


async def test_options_of_verbs_are_checked_together(make_rig: MakeRig) -> None:
    """Every wrong field is in one answer, and nothing has changed."""
    rig = await make_rig()
    await in_service(rig)
    await rig.add("vm01", 21, virtual=True)
    await rig.arrives("vm01", "ready")
    wrong = [
        ("web01", Verb.RELEASE, Asked(erase="gently", keys=("x",), tests=("memory",)), {"erase", "keys", "keys.0", "tests"}),
        ("web01", Verb.RESCUE, Asked(), {"keys"}),
        ("web01", Verb.RESCUE, Asked(keys=("ssh-ed25519 AAAA\nssh-rsa", "-----BEGIN")), {"keys.0", "keys.1"}),
        ("web01", Verb.REBUILD, Asked(method="installer"), {"method"}),
        ("web01", Verb.REBUILD, Asked(method="magic"), {"method"}),
        ("vm01", Verb.INSPECT, Asked(tests=("../x",)), {"tests.0"}),
        ("vm01", Verb.INSPECT, Asked(), {"host"}),
        ("vm01", Verb.RELEASE, Asked(erase="full"), {"erase"}),
    ]  # fmt: skip
    for name, verb, asked, fields in wrong:
        before = await rig.row(name)
        with pytest.raises(Invalid) as refused:
            await intents.request(rig.store, name, verb, actor="user:ann", asked=asked)
        assert {f.field for f in refused.value.fields} == fields, (verb, asked)
        after = await rig.row(name)
        assert (after.version, after.state) == (before.version, before.state)


async def test_a_method_chosen_for_a_build(make_rig: MakeRig) -> None:
    """--method is kept by the host, checked against what it has."""
    rig = await make_rig(start=False)
    await rig.add("web01", 20, state="ready")
    async with rig.store.write() as session:
        await session.execute(update(Host).values(method="installer"))
    await intents.request(rig.store, "web01", Verb.BUILD, actor="user:ann", asked=Asked(method="image"))
    assert (await rig.row("web01")).method == "image"


async def test_a_task_of_another_kind_is_refused(make_rig: MakeRig) -> None:
    """One at a time; the same again is the one that is open."""
    rig = await make_rig(start=False)
    host_id = await rig.add("web01", 20, state="ready")
    first = await open_task(rig.store, "web01", "inspect", {"tests": []}, actor="rule")
    assert await open_task(rig.store, host_id, "inspect", {"tests": ["x"]}, actor="rule") == first
    with pytest.raises(Conflict):
        await open_task(rig.store, "web01", "erase", {"mode": "full"}, actor="rule")
    await end_task(rig.store, "web01", "enough")
    await end_task(rig.store, "web01", "enough")
    assert (await rig.row("web01")).task_id is None
    task = await the_task(rig.store, first)
    assert task.ended_at is not None and task.failure == "enough"
