"""The ramdisk's door through a real server and a real database, with machines that exist only here."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from sqlalchemy import delete, func, update
from sqlmodel import col, select

from provisiond.boot import sessions, tickets
from provisiond.inventory import agents, history
from provisiond.inventory.hardware_tables import AgentSession, Erasure, HardwareTest, Task
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Event, Host, Interface, Subnet, utcnow
from provisiond.lifecycle import agent_logs
from tests.boot_world import Built, Served, boot_world, used_bytes
from tests.fake_ramdisk import FakeRamdisk, Refused, facts_of
from tests.ramdisk_tasks import end_task, open_task

STRANGER = "52:54:00:ff:ff:01"
PASSPHRASE = "correct horse battery"


@pytest_asyncio.fixture
async def served(sqlite_store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server on SQLite."""
    async with boot_world(sqlite_store, box, tmp_path) as running:
        yield running


@pytest_asyncio.fixture
async def either(store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server, once on each kind of database."""
    async with boot_world(store, box, tmp_path) as running:
        yield running


def machine(served: Served, mac: str, **more: Any) -> FakeRamdisk:
    """A ramdisk that has not asked for anything yet."""
    return FakeRamdisk(served.client, served.world.boot_url, mac, **more)


async def events(served: Served, host: Built) -> list[tuple[str, str]]:
    """(kind, message) of the host's events."""
    return [(e.kind, e.message) for e in await history.list_events(served.world.store, host.id)]


async def refusal(call: Any) -> Refused:
    """That ``call`` was refused, and how."""
    with pytest.raises(Refused) as caught:
        await call
    return caught.value


async def discovers(served: Served) -> None:
    """Unknown machines of this subnet get the ramdisk from now on."""
    async with served.world.store.write() as session:
        await session.execute(update(Subnet).values(unknown="discover", cidr="127.0.0.0/8"))


# --- a build ------------------------------------------------------------------------------------------------


async def test_image_is_written(either: Served) -> None:
    """From the boot script to done: claim, plan, progress with bytes, the log; then the machine boots its disk."""
    host = await either.host("web01", storage={"disk": {"serial": "S3RIAL"}, "keep": ["/dev/vdb"]})
    one = machine(either, host.mac)
    assert await one.boot()
    assert await one.claim() == {"session": one.session, "host": "web01"}
    plan = await one.plan()
    base = f"{either.world.boot_url}{host.base}"
    assert plan["id"] == host.deployment_id and plan["action"] == "image" and plan["hostname"] == "web01"
    assert plan["image"]["url"] == f"{base}/image" and plan["image"]["map"] == f"{base}/blockmap"
    assert (plan["image"]["encoding"], plan["image"]["size_mib"], plan["image"]["used_mib"]) == ("raw", 12, 4)
    assert (plan["disk"]["serial"], plan["keep"][0]["path"], plan["layout"]) == ("S3RIAL", "/dev/vdb", None)
    assert (
        plan["cmdline"] == "root=LABEL=root ro console=tty0 console=ttyS0,115200n8"
        and plan["serial"] == "ttyS0"
    )
    for url in plan["seed"].values():
        assert (await either.get(url.removeprefix(either.world.boot_url)))[0] == 200
    assert len(used_bytes(either.image)) == plan["image"]["used_mib"] << 20
    assert await one.run() == "kexec"
    stored = await host.deployment()
    assert stored.built_at is not None and stored.boots == 1
    assert (await one.plan())["action"] == "reboot"
    told = await events(either, host)
    assert [kind for kind, _ in told] == [
        "boot.asked", "agent.claimed", "callback.progress", "callback.progress", "callback.built",
    ]  # fmt: skip
    assert told[3][1] == "written (4 of 4 MiB)"
    kept = agent_logs.latest(either.world.settings.state.agent_log_dir, host.id)
    assert kept is not None and (kept.work, kept.text) == (host.deployment_id, "log of image\n")


async def test_layout_and_passphrase(served: Served) -> None:
    """A storage description that an image's own partitions cannot be comes as a layout; its passphrase is told here alone."""
    storage = {"layout": "lvm", "encrypt": True, "mirror": {"serial": "B"}, "disk": {"serial": "A"}}
    host = await served.host("web01", storage=storage, parameters={"luks_passphrase": PASSPHRASE})
    agent = await host.agent()
    plan = await agent.plan()
    assert plan["layout"]["volume_groups"] and plan["layout"]["raids"] and plan["disk"] is None
    assert plan["passphrase"] == PASSPHRASE
    await agent.ask("POST", "log", {"id": plan["id"], "text": f"cryptsetup <<< {PASSPHRASE}\n"})
    await agent.ask("POST", "failed", {"id": plan["id"], "message": f"no {PASSPHRASE}", "log": PASSPHRASE})
    stored = await host.deployment()
    log = agent_logs.latest(served.world.settings.state.agent_log_dir, host.id)
    assert log is not None and PASSPHRASE not in log.text + stored.failure + stored.log_tail


async def test_failure(served: Served) -> None:
    """The agent's failure is the build's, with the tail of its log; it waits until somebody tries again, and goes on without a restart."""
    host = await served.host("web01")
    agent = await host.agent(trouble={"image": "disk /dev/sda: read-only"})
    await agent.step()
    stored = await host.deployment()
    assert (stored.failure, stored.log_tail.strip()) == ("disk /dev/sda: read-only",) * 2
    assert (await agent.plan())["action"] == "wait"
    await host.set_deployment(failed_at=None, failure="")
    agent.trouble.clear()
    assert await agent.run() == "kexec"


async def test_work_that_is_not_wanted_is_stopped(served: Served) -> None:
    """Cancelled, rebuilt, at another step or of another host: progress is answered with go:false and why, and changes nothing."""
    host, other = await served.host("web01"), await served.host("web02")
    agent = await host.agent()
    work = (await agent.plan())["id"]
    assert await agent.progress(work, 10)
    assert not await agent.progress(other.deployment_id, 10)
    for changes in ({"step": "prepare"}, {"state": "ready", "step": ""}, {"deployment_id": None}):
        await host.set(**changes)
        assert not await agent.progress(work, 50)
        await agent.ask("POST", "done", {"id": other.deployment_id, "result": {}})
        await host.set(state="building", step="install", deployment_id=host.deployment_id)
    await host.set_deployment(ended_at=utcnow())
    assert not await agent.progress(work, 60)
    for end in ("done", "failed"):
        await agent.ask("POST", end, {"id": work, "message": "late", "result": {}})
    for built in (host, other):
        stored = await built.deployment()
        assert stored.built_at is None and stored.failed_at is None
    assert (await host.deployment()).progress == 10


async def test_fast_track(served: Served) -> None:
    """A machine that waits is given its image without a restart, which counts as a boot; for an installer it restarts."""
    host = await served.host("web01", state="ready", step="")
    agent = await host.agent()
    assert (await agent.step())["facts"] and await agents.alive(served.world.store, host.id)
    for state, step in (
        ("building", "prepare"),
        ("building", "reserve"),
        ("inspecting", "sensors"),
        ("enrolled", ""),
    ):
        await host.set(state=state, step=step)
        soon = 5 if state in ("ready", "discovered") else 1
        assert await agent.plan() == {"id": "wait", "action": "wait", "seconds": soon, "facts": False}
    await host.set(state="building", step="boot")
    assert (await agent.plan())["action"] == "image"
    assert (await agent.plan())["action"] == "image"
    assert (await host.deployment()).boots == 1
    other = await served.host("web02", method="installer")
    assert (await (await other.agent()).plan())["action"] == "reboot"
    assert (await other.deployment()).boots == 0


@pytest.mark.parametrize(("state", "action"), [
    ("discovered", "wait"), ("enrolled", "wait"), ("ready", "wait"), ("releasing", "wait"), ("provisioned", "reboot"),
    ("configuring", "reboot"), ("active", "reboot"), ("rescue", "reboot"),
])  # fmt: skip
async def test_plan_without_work(served: Served, state: str, action: str) -> None:
    """Who has nothing to do waits where work may come, and restarts where its disk is to be booted."""
    host = await served.host("web01", state=state, step="")
    assert (await (await host.agent()).plan())["action"] == action


# --- who may ------------------------------------------------------------------------------------------------


async def test_two_machines_with_one_ticket(either: Served) -> None:
    """At the same moment: exactly one wins; the other is refused and told of in the host's history, without the ticket."""
    for number in range(5):
        host = await either.host(f"web{number:02}")
        one, two = machine(either, host.mac), machine(either, host.mac)
        assert await one.boot()
        two.ticket = one.ticket
        answers = await asyncio.gather(one.claim(), two.claim(), return_exceptions=True)
        refused = [a for a in answers if isinstance(a, Refused)]
        assert [r.status for r in refused] == [403] and "another machine" in str(refused[0])
        assert sum(await asyncio.gather(*(_lives(m) for m in (one, two)))) == 1
        told = dict(await events(either, host))
        assert host.mac in told["agent.ticket_reused"] and "127.0.0.1" in told["agent.ticket_reused"]
        assert one.ticket not in json.dumps(told)


async def test_strangers_with_one_ticket(either: Served) -> None:
    """The same for a machine nobody knows, where no host's row orders the two."""
    for number in range(5):
        mac = f"52:54:00:ff:00:{number:02x}"
        two = [machine(either, mac) for _ in range(2)]
        two[0].ticket = two[1].ticket = tickets.issue(
            either.world.box.derived(tickets.PURPOSE), mac, None, utcnow()
        )
        answers = await asyncio.gather(*(m.claim() for m in two), return_exceptions=True)
        assert sorted(isinstance(a, Refused) for a in answers) == [False, True], answers
        assert sum(await asyncio.gather(*(_lives(m) for m in two))) == 1


async def _lives(ramdisk: FakeRamdisk) -> bool:
    try:
        await ramdisk.plan()
    except Refused as refused:
        assert refused.status == 401
        return False
    return True


async def test_lost_answer(served: Served) -> None:
    """The same claim again, also after the ticket's time, is answered the same and ends nothing."""
    host = await served.host("web01")
    agent = machine(served, host.mac)
    await agent.boot()
    first = await agent.claim()
    async with served.world.store.write() as session:
        await session.execute(update(AgentSession).values(seen_at=utcnow() - timedelta(hours=5)))
    assert await agent.claim() == first
    await agent.plan()
    assert [k for k, _ in await events(served, host)].count("agent.claimed") == 1


async def test_refused_claims(served: Served) -> None:
    """Forged, expired, without the card that it was handed to, deleted or retired host, nonsense: refused, and nothing is stored."""
    host, store = await served.host("web01"), served.world.store
    keys = served.world.box.derived(tickets.PURPOSE)
    good = tickets.issue(keys, host.mac, host.id, utcnow())
    agent = machine(served, host.mac)

    async def tried(ticket: str, **changes: Any) -> Refused:
        agent.ticket = ticket
        return await refusal(agent.claim(**changes))

    assert (await tried("A" * 80)).status == 403
    assert (await tried("")).status == 403
    assert (await tried(tickets.issue([b"x" * 32], host.mac, host.id, utcnow()))).status == 403
    old = tickets.issue(keys, host.mac, host.id, utcnow() - timedelta(minutes=31))
    assert "boot.ticket_minutes" in str(await tried(old))
    assert (await tried(good, secret="short")).status == 400
    assert (await tried(good, version=2)).status == 400
    foreign = await tried(good, identity={"macs": ["52:54:00:99:99:99"], "serial": None})
    assert foreign.status == 403 and host.mac in str(foreign)
    assert (await tried(good, identity={"macs": "nonsense"})).status == 403
    gone = tickets.issue(keys, "52:54:00:12:12:12", "11111111-2222-3333-4444-555555555555", utcnow())
    assert (await tried(gone, identity={"macs": ["52:54:00:12:12:12"]})).status == 403
    await host.set(state="retired")
    assert "retired" in str(await tried(good))
    async with store.read() as session:
        assert (await session.execute(select(func.count()).select_from(AgentSession))).scalar_one() == 0
    told = await events(served, host)
    assert [kind for kind, _ in told] == ["agent.ticket_reused"]  # once for a ticket
    assert "52:54:00:99:99:99" in told[0][1]


async def test_another_serial_number(served: Served) -> None:
    """409 where both are real and differ, with the command that mends it; placeholders and unknown ones differ from nothing."""
    host = await served.host("web01", serial="ABC123")
    agent = machine(served, host.mac, serial="XYZ789")
    await agent.boot()
    refused = await refusal(agent.claim())
    assert refused.status == 409
    assert "provisionctl host update web01 --serial XYZ789" in str(refused)
    assert "agent.serial_differs" in dict(await events(served, host))
    for serial in ("ABC123", "To be filled by O.E.M.", None):
        agent = machine(served, host.mac, serial=serial)
        await agent.boot()
        await agent.claim()


async def test_newer_boot_ends_the_older(served: Served) -> None:
    """A frozen ramdisk that wakes up may neither go on (410) nor, with a ticket of before, take over (403)."""
    host = await served.host("web01")
    frozen = await host.agent()
    unclaimed = machine(served, host.mac)
    await unclaimed.boot()
    await asyncio.sleep(0.01)
    newer = machine(served, host.mac)
    await newer.boot()
    await newer.claim()
    assert (await refusal(frozen.plan())).status == 410
    assert (await refusal(frozen.claim())).status == 403
    assert (await refusal(frozen.progress(host.deployment_id, 5))).status == 410
    assert (await refusal(unclaimed.claim())).status == 403
    assert (await newer.plan())["action"] == "image"


async def test_sessions_end_with_their_host(served: Served) -> None:
    """Retired: 410. Deleted: 401. A wrong secret, another's session, no header: 401."""
    host = await served.host("web01", state="ready", step="")
    agent = await host.agent()
    other = await (await served.host("web02", state="ready", step="")).agent()
    session, secret = agent.session, agent.secret
    for session_id, key in (
        (session, secrets.token_hex(32)),
        (other.session, secret),
        ("", ""),
        (session[:-1], secret),
    ):
        agent.session, agent.secret = session_id, key
        assert (await refusal(agent.plan())).status == 401
    agent.session, agent.secret = session, secret
    await host.set(state="retired")
    assert (await refusal(agent.plan())).status == 410
    async with served.world.store.write() as writing:
        await writing.execute(update(Host).where(col(Host.id) == host.id).values(deployment_id=None))
        await writing.execute(delete(Interface).where(col(Interface.host_id) == host.id))
        await writing.execute(delete(Host).where(col(Host.id) == host.id))
    assert (await refusal(agent.plan())).status == 401


async def test_alive(served: Served) -> None:
    """A ramdisk counts as running while it asks; that is written every few seconds, not at each request."""
    host, store = await served.host("web01", state="ready", step=""), served.world.store
    assert not await agents.alive(store, host.id)
    agent = await host.agent()
    assert await agents.alive(store, host.id)
    first = (await agents.newest(store, host.id)).seen_at
    await agent.plan()
    assert (await agents.newest(store, host.id)).seen_at == first
    for ago, lives in ((sessions.SEEN_SECONDS + 1, True), (agents.ALIVE_SECONDS + 1, False)):
        async with store.write() as session:
            await session.execute(update(AgentSession).values(seen_at=utcnow() - timedelta(seconds=ago)))
        assert await agents.alive(store, host.id) == lives
    await agent.plan()
    assert await agents.alive(store, host.id)
    async with store.write() as session:
        await session.execute(update(AgentSession).values(ended_at=utcnow()))
    assert not await agents.alive(store, host.id)


async def test_old_sessions_are_forgotten(served: Served) -> None:
    """Of machines that have not asked for a week, at the next claim."""
    old = await (await served.host("web01")).agent()
    async with served.world.store.write() as session:
        await session.execute(update(AgentSession).values(seen_at=utcnow() - timedelta(days=8)))
    await (await served.host("web02")).agent()
    assert (await refusal(old.plan())).status == 401


async def test_floods_of_unknown_machines(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts for made-up MACs store nothing; of claims only so many are taken."""
    monkeypatch.setattr(sessions, "MAX_STRANGERS", 3)
    await discovers(served)
    for number in range(5):
        one = machine(served, f"52:54:00:ee:00:{number:02x}")
        assert await one.boot()
        async with served.world.store.read() as session:
            stored = (await session.execute(select(func.count()).select_from(AgentSession))).scalar_one()
        assert stored == min(number, 3)
        if number < 3:
            await one.claim()
        else:
            assert (await refusal(one.claim())).status == 403


# --- what it tells -------------------------------------------------------------------------------------------


async def test_discovery(either: Served) -> None:
    """An unknown machine tells what it is made of, once a boot, and is a discovered host from then on; its next boot is that host's."""
    await discovers(either)
    one = machine(either, STRANGER, serial="SN1")
    assert await one.boot() and (await one.claim())["host"] is None
    plan = await one.step()
    assert (plan["action"], plan["facts"]) == ("wait", True) and one.host
    assert not (await one.plan())["facts"]
    await one.report()
    again = machine(either, STRANGER, serial="SN1")
    assert await again.boot() and (await again.claim())["host"] == one.host
    assert (await again.plan())["facts"]
    async with either.world.store.read() as session:
        found = (await session.execute(select(Host).where(col(Host.state) == "discovered"))).scalars().all()
    assert [h.name for h in found] == [one.host]


async def test_a_hundred_machines_at_once(either: Served) -> None:
    """They boot, claim and report at the same moment, each of them twice: each appears once, and nothing is lost."""
    await discovers(either)

    async def life(number: int) -> FakeRamdisk:
        one = machine(either, f"52:54:00:dd:00:{number:02x}", serial=f"SERIAL{number:03}")
        assert await one.boot()
        await one.claim()
        await asyncio.gather(one.report(), one.report())
        return one

    ones = await asyncio.gather(*(life(number) for number in range(100)))
    async with either.world.store.read() as session:
        rows = await session.execute(
            select(Host.name, Host.serial).where(col(Host.state) == "discovered").order_by(col(Host.serial))
        )
        found = [tuple(row) for row in rows]
    assert [serial for _, serial in found] == [f"SERIAL{number:03}" for number in range(100)]
    assert [name for name, _ in found] == [one.host for one in ones]
    for one in ones[::20]:
        assert (await one.plan())["facts"] is False


async def test_tasks(either: Served) -> None:
    """Inspect with tests, erase with its records, and what they said; each report is harmless twice."""
    store = either.world.store
    host = await either.host("web01", state="inspecting", step="tests", storage={"keep": ["/dev/sdb"]})
    agent = await host.agent()
    bmc = either.world.box.encrypt(
        json.dumps({"bmc": {"username": "provisiond", "password": "s3cret-s3cret"}})
    )
    work = await open_task(store, "web01", "inspect", {"tests": ["memory"]}, actor="test", secret=bmc)
    plan = await agent.plan()
    assert (plan["id"], plan["action"]) == (work, "inspect")
    assert [t["name"] for t in plan["tests"]] == ["memory"] and plan["bmc"]["password"] == "s3cret-s3cret"
    headers = {"Authorization": f"Bearer {agent.session}:{agent.secret}"}
    status, script = await either.get("/agent/test/memory", headers=headers)
    assert status == 200 and script.startswith("#!")
    assert (await either.get("/agent/test/none", headers=headers))[0] == 404
    result = {"id": work, "name": "memory", "verdict": "fail", "output": "s3cret-s3cret\x00\n", "seconds": 2}
    for _ in range(2):
        await agent.ask("POST", "test", result)
    assert (await refusal(agent.ask("POST", "test", {**result, "verdict": "maybe"}))).status == 400
    await agent.step()
    async with store.read() as session:
        tested = (await session.execute(select(HardwareTest))).scalars().all()
        done = (await session.execute(select(Task).where(col(Task.id) == work))).scalar_one()
    assert len(tested) == 1 and "s3cret" not in tested[0].output and done.done_at is not None
    await end_task(store, "web01")
    await host.set(state="releasing", step="erase")
    work = await open_task(store, "web01", "erase", {"mode": "quick"}, actor="test")
    await host.set(parameters={"erase_tests": ["disk-write"]})
    plan = await agent.step()
    assert (plan["mode"], plan["keep"][0]["path"]) == ("quick", "/dev/sdb")
    assert [test["name"] for test in plan["tests"]] == ["disk-write"]
    async with store.read() as session:
        erased = (await session.execute(select(Erasure))).scalars().all()
    assert [(e.disk_name, e.method, e.passed) for e in erased] == [("sda", "discard", True)]


async def test_rescue(served: Served) -> None:
    """The rescue's keys and its script are told while the host is in rescue, until it is let go."""
    host, store = await served.host("web01", state="rescue", step="stay"), served.world.store
    agent = await host.agent()
    headers = {"Authorization": f"Bearer {agent.session}:{agent.secret}"}
    assert (await served.get("/agent/rescue", headers=headers))[0] == 410
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKy8B7qkAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    work = await open_task(store, "web01", "rescue", {"keys": [key]}, actor="test")
    plan = await agent.plan()
    assert (plan["id"], plan["action"], plan["keys"]) == (work, "rescue", [key])
    status, script = await served.get("/agent/rescue", headers=headers)
    assert status == 200 and "hostname web01" in script
    staying = asyncio.create_task(agent.step())
    async with asyncio.timeout(30):
        while not (await _task(store, work)).started_at:
            await asyncio.sleep(0.02)
        await end_task(store, "web01")
        await staying
    assert (await agent.plan())["action"] == "reboot"


async def _task(store: Store, work: str) -> Task:
    async with store.read() as session:
        return (await session.execute(select(Task).where(col(Task.id) == work))).scalar_one()


async def test_speed(served: Served) -> None:
    """Zeros of the length asked for, within bounds, for machines that have a session."""
    agent = await (await served.host("web01")).agent()
    headers = {"Authorization": f"Bearer {agent.session}:{agent.secret}"}
    status, text = await served.get("/agent/speed?mib=3", headers=headers)
    assert status == 200 and text == "\x00" * (3 << 20)
    for wrong in ("0", "-1", "1025", "x", "", "9" * 20):
        assert (await served.get(f"/agent/speed?mib={wrong}", headers=headers))[0] == 400
    assert (await served.get("/agent/speed?mib=1"))[0] == 401


NONSENSE = [
    b"", b"[]", b"{", b'"x"', b"[" * 100_000, b"\xff\xfe", b'{"id": 5, "percent": "x"}', b'{"id": null}',
    b'{"macs": {"a": 1}, "disks": "x", "nics": [5]}', b"x" * (2 << 20),
]  # fmt: skip


async def test_nonsense(served: Served) -> None:
    """Whatever the body is, the answer is one sentence, never a traceback, and the work under way stays as it is."""
    host = await served.host("web01")
    agent = await host.agent()
    headers = {"Authorization": f"Bearer {agent.session}:{agent.secret}"}
    for name in ("claim", "progress", "done", "failed", "log", "facts", "test", "erased"):
        for body in NONSENSE:
            status, text = await served.post(f"/agent/{name}", body, headers=headers)
            assert status in (200, 400, 403, 413), (name, body[:80], status, text)
            assert "Traceback" not in text
            if status != 200:
                assert json.loads(text)["error"]
    stored = await host.deployment()
    assert stored.built_at is None and stored.failed_at is None


async def test_no_secret_in_logs(served: Served) -> None:
    """Neither tickets nor secrets of sessions nor passphrases are logged, or stand in the history, whatever a machine sends."""
    host = await served.host("web01", parameters={"luks_passphrase": PASSPHRASE})
    with structlog.testing.capture_logs() as lines:
        agent = machine(served, host.mac)
        await agent.boot()
        await agent.claim()
        told = f"cmdline provisiond.ticket={agent.ticket} quiet {PASSPHRASE}"
        await agent.progress(host.deployment_id, 5, told)
        await agent.ask("POST", "log", {"id": host.deployment_id, "text": told})
        await agent.ask("POST", "failed", {"id": host.deployment_id, "message": told, "log": told})
        two = machine(served, host.mac)
        two.ticket = agent.ticket
        await refusal(two.claim())
    stored = await host.deployment()
    log = agent_logs.latest(served.world.settings.state.agent_log_dir, host.id)
    assert log is not None and "provisiond.ticket=TICKET" in log.text
    async with served.world.store.read() as session:
        rows = (await session.execute(select(Event))).scalars().all()
        row = (await session.execute(select(AgentSession))).scalar_one()
    kept = [
        log.text,
        stored.failure,
        stored.log_tail,
        stored.progress_text,
        repr(lines),
        repr(row.model_dump()),
    ]
    for text in [*kept, *(repr(event.model_dump()) for event in rows)]:
        for secret in (agent.ticket, agent.secret, two.secret, PASSPHRASE):
            assert secret not in text
    assert "agent.claim_refused" in [line["event"] for line in lines]


async def test_logs_are_bounded(served: Served) -> None:
    """The newest few of a host, each cut to its end; the id of the work is no path."""
    host = await served.host("web01")
    agent = await host.agent()
    folder = served.world.settings.state.agent_log_dir
    for number in range(agent_logs.KEPT + 3):
        await agent.ask("POST", "log", {"id": f"work-{number}", "text": f"{number}\n"})
    await agent.ask("POST", "log", {"id": "big", "text": "x" * (300 << 10) + "end"})
    files = sorted(path.name for path in (folder / host.id).iterdir())
    assert len(files) == agent_logs.KEPT and "big.log" in files and "work-0.log" not in files
    latest = agent_logs.latest(folder, host.id, "big")
    assert latest is not None and len(latest.text) == agent_logs.LOG_BYTES and latest.text.endswith("xend")
    for wrong in ("../../x", "", "a/b", "a" * 65):
        assert (await refusal(agent.ask("POST", "log", {"id": wrong, "text": "x"}))).status == 400


def test_facts_of() -> None:
    """The made-up report has the size of a real one's smaller brother and is JSON."""
    assert len(json.dumps(facts_of(STRANGER, "S"))) > 2000
