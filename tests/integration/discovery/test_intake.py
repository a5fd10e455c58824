"""Facts come in: each machine is one host, whoever it is and however often and at once it reports."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery import changes
from provisiond.discovery.intake import Intake, take_facts
from provisiond.discovery.rules import RULES, Rule
from provisiond.errors import Conflict
from provisiond.inventory import catalogue, hosts
from provisiond.inventory.facts import Facts
from provisiond.inventory.hardware_tables import AgentSession, Hardware
from provisiond.inventory.shapes import HostCreate
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, Interface, table, utcnow
from tests.machines import Lobby, open_lobby, server, whitebox


@pytest.fixture
async def lobby(store: Store, tmp_path: Path) -> Lobby:
    """On each kind of database."""
    return await open_lobby(store, tmp_path)


async def known(lobby: Lobby, name: str, **fields: Any) -> Any:
    """A host that an operator wrote down."""
    return (
        await hosts.create_hosts(lobby.store, lobby.box, [HostCreate(name=name, **fields)], actor="user:eva")
    )[0]


async def test_an_unknown_machine_becomes_a_discovered_host(lobby: Lobby) -> None:
    """With all its cards, what identifies it, and what its boot files depend on; told again it is the same one, without a line more."""
    session = await lobby.boot(server())
    name = await take_facts(lobby, session, Facts.model_validate(server()))
    host = (await lobby.hosts())[name]
    assert (name, host.state, host.serial, host.firmware, host.architecture) == (
        "new-e4434b000101", "discovered", "7XK0001", "uefi", "x86_64",
    )  # fmt: skip
    assert host.machine_uuid == "4c4c4544-0058-4b10-8030-000000000001"
    assert await lobby.macs(name) == ["e4:43:4b:00:01:01", "e4:43:4b:00:01:02"]
    (found,) = await lobby.events("host.discovered")
    assert (
        "Dell Inc. PowerEdge R640 7XK0001, 2 CPUs with 32 cores, 64 GiB, 2 disks, at rack1-sw1 Ethernet1"
        in found.message
    )
    assert f"host approve {name}" in found.message
    assert await take_facts(lobby, session, Facts.model_validate(server())) == name
    assert await lobby.report(server()) == name
    assert len(await lobby.hosts()) == len(await lobby.snapshots(name)) == 1
    assert not await lobby.events("host.linked") and not await lobby.events("discovery.conflict")
    async with lobby.store.read() as db:
        row = await db.get(AgentSession, session.id)
        assert row is not None and row.host_id == host.id and row.facts_at is not None


async def test_a_hundred_machines_at_once_appear_once_each(lobby: Lobby) -> None:
    """Each reports twice at the same moment, as after a lost answer."""
    every = [server(n) for n in range(1, 101)]
    sessions = [await lobby.boot(facts) for facts in every]
    both = [(s, f) for s, f in zip(sessions, every, strict=True) for _ in range(2)]
    intake = Intake(lobby)
    names = await asyncio.gather(*(intake.take(s, Facts.model_validate(f)) for s, f in both))
    assert len(set(names)) == 100 and set(names) == set(await lobby.hosts())
    assert len(await lobby.events("host.discovered")) == 100
    assert not await lobby.events("discovery.conflict")
    again = await asyncio.gather(*(intake.take(s, Facts.model_validate(f)) for s, f in both[::2]))
    assert again == names[::2]
    async with lobby.store.read() as db:
        assert await db.scalar(select(func.count()).select_from(table(Hardware))) == 100


async def test_machines_at_once_without_a_queue(lobby: Lobby) -> None:
    """As two daemons on one database have it: whoever loses a race finds itself known."""
    every = [
        (await lobby.boot(server(n)), Facts.model_validate(server(n))) for n in range(1, 16) for _ in range(2)
    ]
    names = await asyncio.gather(*(take_facts(lobby, *one) for one in every))
    assert len(set(names)) == 15 == len(await lobby.events("host.discovered"))


async def test_reports_together_are_as_reports_apart(lobby: Lobby) -> None:
    """New, known, changed, ruled, at odds with another and refused, in one transaction: each is what it would be alone."""
    rule = Rule(name="hpe", expression="vendor == 'HPE'", name_pattern="hpe-{{ n }}", approve=True)
    await catalogue.create(lobby.store, RULES, rule, actor="user:eva")
    await known(lobby, "web01", mac="e4:43:4b:00:03:01")
    await lobby.report(server(1))
    await lobby.report(server(2))
    together = [
        server(1), server(2, tpm=None), server(3), server(4), server(5, vendor="HPE"), server(6, vendor="HPE"),
        server(7, serial="7XK0001"), server(1, serial="7XK0099", uuid=server(99)["uuid"]), server(8), server(8), whitebox(1), whitebox(2),
    ]  # fmt: skip
    intake = Intake(lobby)
    sessions = [await lobby.boot(facts) for facts in together]
    reports = (intake.take(s, Facts.model_validate(f)) for s, f in zip(sessions, together, strict=True))
    names = await asyncio.gather(*reports, return_exceptions=True)
    assert isinstance(names.pop(7), Conflict)
    assert names == [
        "new-e4434b000101", "new-e4434b000201", "web01", "new-e4434b000401", "hpe-1", "hpe-2", "new-e4434b000701",
        "new-e4434b000801", "new-e4434b000801", "new-d05099000001", "new-d05099000002",
    ]  # fmt: skip
    (changed,) = await lobby.events("hardware.changed")
    assert (changed.host_name, changed.message) == ("new-e4434b000201", "tpm is unknown, was 2.0")
    assert {h.state for name, h in (await lobby.hosts()).items() if name.startswith("hpe")} == {"enrolled"}
    assert len(await lobby.macs("web01")) == 2 and len(await lobby.hosts()) == 10
    for session in sessions[:7]:
        async with lobby.store.read() as db:
            row = await db.get(AgentSession, session.id)
            assert row is not None and row.host_id and row.facts_at


async def test_a_queue_that_is_full_of_strangers(store: Store, tmp_path: Path) -> None:
    """Reports that come together do not pass the limit either: some are taken in, the rest is refused."""
    lobby = await open_lobby(store, tmp_path, discovery={"max_waiting": 3})
    intake = Intake(lobby)
    sessions = [(await lobby.boot(server(n)), Facts.model_validate(server(n))) for n in range(1, 6)]
    names = await asyncio.gather(*(intake.take(*one) for one in sessions), return_exceptions=True)
    assert [isinstance(name, Conflict) for name in names] == [False] * 3 + [True] * 2


async def test_placeholders_identify_nothing(lobby: Lobby) -> None:
    """Two boards of "Default string" with one UUID are two hosts, told apart by their cards alone."""
    first, second = await lobby.report(whitebox(1)), await lobby.report(whitebox(2))
    assert first != second
    assert {h.serial for h in (await lobby.hosts()).values()} == {None}
    assert await lobby.report(whitebox(1)) == first


async def test_a_known_host_is_linked_by_its_card(lobby: Lobby) -> None:
    """What an operator wrote down stays; the other card, the serial number and the UUID are added, and said."""
    await known(lobby, "web01", mac="e4:43:4b:00:01:01")
    assert await lobby.report(server()) == "web01"
    host = (await lobby.hosts())["web01"]
    assert (host.state, host.serial, host.firmware) == ("enrolled", "7XK0001", "bios")
    assert await lobby.macs("web01") == ["e4:43:4b:00:01:01", "e4:43:4b:00:01:02"]
    (linked,) = await lobby.events("host.linked")
    assert linked.message == (
        "found by its network card: network card e4:43:4b:00:01:02 added; serial number 7XK0001 noted"
    )
    assert len(await lobby.events("hardware.found")) == 1


async def test_a_known_host_is_linked_by_its_serial_number_or_uuid(lobby: Lobby) -> None:
    """A riser with new cards does not make another machine: the cards are added to it."""
    await known(lobby, "db01", mac="52:54:00:00:00:01", serial="7XK0001")
    assert await lobby.report(server()) == "db01"
    assert len(await lobby.macs("db01")) == 3
    nameless = server(2, serial="None")
    name = await lobby.report(nameless)
    moved = server(2, serial="None", nics=server(3)["nics"])
    await _silence(lobby)
    assert await lobby.report(moved) == name
    assert len(await lobby.macs(name)) == 4


async def test_a_card_of_another_host_is_not_taken(lobby: Lobby) -> None:
    """The serial numbers say that these are two machines: nothing moves, and both hear of it once a boot."""
    first = await lobby.report(server(1))
    mixed = server(2)
    mixed["nics"] = [{**server(1)["nics"][1], "boot": False}, *server(2)["nics"]]
    session = await lobby.boot(mixed)
    second = await take_facts(lobby, session, Facts.model_validate(mixed))
    assert await take_facts(lobby, session, Facts.model_validate(mixed)) == second != first
    assert await lobby.macs(first) == ["e4:43:4b:00:01:01", "e4:43:4b:00:01:02"]
    assert "e4:43:4b:00:01:02" not in await lobby.macs(second)
    told = await lobby.events("discovery.conflict")
    assert {line.host_name for line in told} == {first, second} and len(told) == 2
    assert f"network card e4:43:4b:00:01:02 of host {first} was reported by host {second}" in told[0].message
    assert f"provisionctl host inspect {first}" in told[0].message


async def test_a_card_goes_over_when_its_host_has_reported_without_it(lobby: Lobby) -> None:
    """The riser was moved: the host it was in says that it has it no more, then the other one has it."""
    first = await lobby.report(server(1))
    second = await lobby.report(server(2))
    card = server(1)["nics"][1]
    await lobby.report(server(1, nics=server(1)["nics"][:1]))
    (changed,) = await lobby.events("hardware.changed")
    assert changed.message == "network card e4:43:4b:00:01:02 (tg3) is gone"
    await lobby.report(server(2, nics=[*server(2)["nics"], card]))
    assert card["mac"] in await lobby.macs(second) and card["mac"] not in await lobby.macs(first)
    (moved,) = await lobby.events("discovery.card_moved")
    assert moved.host_name == first and second in moved.message
    assert not await lobby.events("discovery.conflict")


@pytest.mark.parametrize("state", ["building", "provisioned", "configuring", "active", "rescue"])
async def test_a_host_at_work_keeps_its_cards(lobby: Lobby, state: str) -> None:
    """What a build under way or a system in service was made with stays: no card is added to it, and none goes over from it."""
    first, second = [await lobby.report(server(n)) for n in (1, 2)]
    own, others = await lobby.macs(first), await lobby.macs(second)
    async with lobby.store.write() as db:
        await db.execute(update(table(Host)).where(table(Host).c.name == first).values(state=state))
    riser = server(3)["nics"][1]
    await lobby.report(server(1, nics=[*server(1)["nics"], riser]))
    await lobby.report(server(1, nics=server(1)["nics"][:1]))
    await lobby.report(server(2, nics=[*server(2)["nics"], server(1)["nics"][1]]))
    assert (await lobby.macs(first), await lobby.macs(second)) == (own, others)


async def test_a_machine_of_which_nothing_is_its_own_is_refused(lobby: Lobby) -> None:
    """Its cards are another host's and its serial number is not: perhaps a new mainboard, which an operator has to say."""
    name = await lobby.report(server(1))
    with pytest.raises(Conflict, match=f"every network card.*{name}.*--serial 7XK0009"):
        await lobby.report(server(1, serial="7XK0009", uuid=server(9)["uuid"]))
    assert list(await lobby.hosts()) == [name]
    assert [line.host_name for line in await lobby.events("discovery.conflict")] == [name]
    with pytest.raises(Conflict, match="no network card"):
        session = AgentSession(id="x", secret_hash="")
        await take_facts(lobby, session, Facts.model_validate(server(5, nics=[], serial=None, uuid=None)))


async def test_one_serial_number_in_two_machines(lobby: Lobby) -> None:
    """Some makers write one number into all: two UUIDs, or two ramdisks at one time, are two machines."""
    first = await lobby.report(server(1))
    second = await lobby.report(server(2, serial="7XK0001"))
    assert second != first and (await lobby.hosts())[second].serial is None
    assert {line.host_name for line in await lobby.events("discovery.conflict")} == {first, second}
    third = await lobby.report(server(3, serial="7XK0001", uuid=None))
    assert third not in (first, second)
    await _silence(lobby)
    assert await lobby.report(server(4, serial="7XK0001", uuid=None)) == first


async def test_doubles_of_cards_and_controllers_cards_are_none(lobby: Lobby) -> None:
    """A bond shows its member's MAC again, and a controller's card over USB has one MAC in every machine."""
    usb = {"name": "usb0", "mac": "be:3a:f2:b6:05:9f", "driver": "cdc_ether", "boot": False}
    names = []
    for n in (1, 2):
        cards = server(n)["nics"]
        bond = {"name": "bond0", "mac": cards[0]["mac"], "driver": "bonding"}
        names.append(await lobby.report(server(n, nics=[bond, *cards, usb])))
    assert len(set(names)) == 2
    assert [len(await lobby.macs(name)) for name in names] == [2, 2]
    assert not await lobby.events("discovery.conflict")


async def test_not_more_than_some_machines_wait(store: Store, tmp_path: Path) -> None:
    """A flood of made-up machines ends at discovery.max_waiting; those that are known still report."""
    lobby = await open_lobby(store, tmp_path, discovery={"max_waiting": 2})
    await lobby.report(server(1))
    await lobby.report(server(2))
    with pytest.raises(Conflict, match=r"2 machines wait.*discovery\.max_waiting"):
        await lobby.report(server(3))
    await lobby.report(server(2))
    assert len(await lobby.hosts()) == 2


async def test_hardware_that_changes_is_told_and_kept(lobby: Lobby) -> None:
    """A DIMM that is gone and a disk that was replaced are events in plain words; what comes and goes by itself is none."""
    name = await lobby.report(server())
    same = server()
    same["nics"][0] |= {"mbps": 100, "lldp": None}
    same["cpu"]["mhz"] = 2100
    same["disks"][0]["name"], same["disks"][1]["name"] = "sdb", "sda"
    await lobby.report(same)
    (kept,) = await lobby.snapshots(name)
    assert kept.facts["disks"][0]["name"] == "sdb"
    assert kept.facts["nics"][0]["lldp"]["system"] == "rack1-sw1"
    less = server()
    less["memory"] = {"mib": 32768, "dimms": less["memory"]["dimms"][:1]}
    less["disks"][1] |= {"serial": "S45NEW", "wwn": "0x5002538effff", "name": "sdb"}
    less["nics"][0]["lldp"]["port"] = "Ethernet7"
    await lobby.report(less)
    (changed,) = await lobby.events("hardware.changed")
    assert changed.message.split("; ") == [
        "memory is 32768 MiB, was 65536 MiB",
        "DIMM B1 (32768 MiB, serial 36F0001B1) is gone",
        "disk S45N0001b (SAMSUNG MZ7LH960, 960 GB) is replaced by disk S45NEW (SAMSUNG MZ7LH960, 960 GB)",
        "network card e4:43:4b:00:01:01 is at rack1-sw1 port Ethernet7, was at rack1-sw1 port Ethernet1",
    ]
    assert changed.data["changes"][0] == {"place": "memory.mib", "before": 65536, "after": 32768}


async def test_the_past_is_bounded(lobby: Lobby) -> None:
    """Fifty snapshots of a host are kept."""
    name = await lobby.report(server())
    host = (await lobby.hosts())[name]

    async def flap(db: AsyncSession) -> None:
        for n in range(60):
            await changes.keep(db, host.id, Facts.model_validate(server(tpm=str(n))).model_dump())

    await lobby.store.transact(flap)
    kept = await lobby.snapshots(name)
    assert [s.facts["tpm"] for s in kept] == [str(n) for n in range(10, 60)]


async def _silence(lobby: Lobby) -> None:
    """Every session has ended, so that a machine that comes now is no twin of one that runs."""
    async with lobby.store.write() as db:
        await db.execute(update(table(AgentSession)).values(ended_at=utcnow()))
        await db.execute(update(table(Interface)).values(updated_at=utcnow()))
