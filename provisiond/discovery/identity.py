"""Which host is this machine? By its network cards, then its maker's serial number, then what its firmware calls it.

A card can be moved, so a host whose serial number is another one is not the machine, whatever cards it shares. Nothing is taken
from a host by a report of another machine: what belongs to two of them is a conflict, told with both names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, literal, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery.context import real_cards
from provisiond.inventory.facts import Facts, real_serial, real_uuid
from provisiond.inventory.hardware_tables import AgentSession
from provisiond.inventory.tables import Host, Interface, table, utcnow

TWIN_SECONDS = 40.0  # another ramdisk of that host spoke this lately: then there are two machines
_host, _interface, _session = table(Host), table(Interface), table(AgentSession)
_SAID = (_host.c.id, _host.c.name, _host.c.serial, _host.c.machine_uuid, _host.c.state)


def _owners(serial: Any, uuid: Any, host: Any) -> Any:
    """The statement that finds whom MACs (b_macs), serial numbers, UUIDs and ids belong to, by conditions on these."""
    return union_all(
        select(literal("mac").label("what"), _interface.c.mac.label("value"), _interface.c.primary, *_SAID)
        .select_from(_interface.join(_host, _host.c.id == _interface.c.host_id))
        .where(_interface.c.mac.in_(bindparam("b_macs", expanding=True))),
        select(literal("serial"), _host.c.serial, literal(False), *_SAID).where(serial),
        select(literal("uuid"), _host.c.machine_uuid, literal(False), *_SAID).where(uuid),
        select(literal("session"), literal(""), literal(False), *_SAID).where(host),
    )


_OWNERS = _owners(
    _host.c.serial == bindparam("b_serial"),
    _host.c.machine_uuid == bindparam("b_uuid"),
    _host.c.id == bindparam("b_host"),
)
_OWNERS_OF_MANY = _owners(
    _host.c.serial.in_(bindparam("b_serials", expanding=True)),
    _host.c.machine_uuid.in_(bindparam("b_uuids", expanding=True)),
    _host.c.id.in_(bindparam("b_hosts", expanding=True)),
)
_TWINS = select(_session.c.macs).where(
    _session.c.host_id == bindparam("b_host"),
    _session.c.id != bindparam("b_session"),
    _session.c.ended_at.is_(None),
    _session.c.seen_at > bindparam("b_since"),
)


@dataclass(frozen=True)
class Machine:
    """Who a machine says it is; what identifies nothing is None. ``macs`` begin with the card it booted from."""

    macs: tuple[str, ...]
    serial: str | None
    uuid: str | None

    @classmethod
    def of(cls, facts: Facts, booted: str) -> Machine:
        serial = real_serial(facts.serial)
        macs = tuple(nic.mac for nic in real_cards(facts, booted) if nic.mac)
        return cls(
            macs or ((booted,) if booted else ()),
            serial if serial is None or len(serial) <= 128 else None,
            real_uuid(facts.uuid),
        )


@dataclass
class Found:
    """``host`` is the row of whom the machine is (None: nobody's), with ``how`` it was found.

    ``own_macs`` are those that it has already; ``cards`` maps MACs that other hosts have to those hosts' rows; ``serial_of`` is
    another host that has its serial number.
    """

    host: Any = None
    how: str = ""
    cards: dict[str, Any] = field(default_factory=dict)
    serial_of: Any = None
    own_macs: frozenset[str] = frozenset()

    @property
    def others(self) -> list[Any]:
        """Every other host that something of this machine belongs to, once."""
        rows = [*self.cards.values(), *([self.serial_of] if self.serial_of is not None else [])]
        return list({row.id: row for row in rows}.values())


async def find(session: AsyncSession, machine: Machine, session_id: str, host_id: str | None) -> Found:
    """The host of this machine; ``host_id`` is whose ticket it came with, if it was a host's."""
    owners = (
        await (await session.connection()).execute(
            _OWNERS,
            {
                "b_macs": list(machine.macs),
                "b_serial": machine.serial or "",
                "b_uuid": machine.uuid or "",
                "b_host": host_id or "",
            },
        )
    ).all()
    found = choose(machine, owners)
    shared = found.host is not None and found.how in ("serial", "uuid")
    if shared and await _has_twin(session, found.host.id, session_id, machine):
        if found.how == "serial":
            found.serial_of = found.host
        found.host, found.how = None, ""
    return found


async def find_all(session: AsyncSession, asked: Sequence[tuple[Machine, str | None]]) -> list[Found]:
    """``find`` for many machines (with the ids of their hosts, where they are known) at once. Found by its serial number or UUID
    alone a machine may still be a twin, which only ``find`` looks for."""
    rows = (
        await (await session.connection()).execute(
            _OWNERS_OF_MANY,
            {
                "b_macs": sorted({mac for machine, _ in asked for mac in machine.macs}),
                "b_serials": sorted({machine.serial for machine, _ in asked if machine.serial}),
                "b_uuids": sorted({machine.uuid for machine, _ in asked if machine.uuid}),
                "b_hosts": sorted({host_id for _, host_id in asked if host_id}),
            },
        )
    ).all()
    by_value: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        by_value.setdefault((row.what, row.id if row.what == "session" else row.value), []).append(row)
    found = []
    for machine, host_id in asked:
        keys = [("mac", mac) for mac in machine.macs]
        keys += [("serial", machine.serial or ""), ("uuid", machine.uuid or ""), ("session", host_id or "")]
        found.append(choose(machine, [row for key in keys for row in by_value.get(key, ())]))
    return found


def choose(machine: Machine, owners: Sequence[Any]) -> Found:
    """The decision of ``find``, from the rows (what, value, id, name, serial, machine_uuid, state) of everybody concerned."""
    by_mac = {row.value: row for row in owners if row.what == "mac"}
    by_serial = next((row for row in owners if row.what == "serial"), None)
    by_uuid = [row for row in owners if row.what == "uuid"]
    found = Found()
    mine = next((row for row in owners if row.what == "session"), None)
    if mine is not None:
        found.host, found.how = mine, "ticket"
    if found.host is None:
        possible = [
            by_mac[mac] for mac in machine.macs if mac in by_mac and not _another(by_mac[mac], machine)
        ]
        if possible:
            found.host, found.how = possible[0], "mac"
    if found.host is None and by_serial is not None and not _other_uuid(by_serial, machine):
        found.host, found.how = by_serial, "serial"
    if found.host is None and len(by_uuid) == 1 and not _another(by_uuid[0], machine):
        found.host, found.how = by_uuid[0], "uuid"
    own = found.host.id if found.host is not None else None
    found.cards = {mac: row for mac, row in by_mac.items() if row.id != own}
    found.own_macs = frozenset(mac for mac, row in by_mac.items() if row.id == own)
    if by_serial is not None and by_serial.id != own:
        found.serial_of = by_serial
    return found


def _another(host: Any, machine: Machine) -> bool:
    """Whether a host's serial number says that it is another machine."""
    return host.serial is not None and machine.serial is not None and host.serial != machine.serial


def _other_uuid(host: Any, machine: Machine) -> bool:
    """Whether two machines of one serial number (some makers write one into all) differ by their UUIDs, and so are two."""
    return host.machine_uuid is not None and machine.uuid is not None and host.machine_uuid != machine.uuid


async def _has_twin(session: AsyncSession, host_id: str, session_id: str, machine: Machine) -> bool:
    asked = {
        "b_host": host_id,
        "b_session": session_id,
        "b_since": utcnow() - timedelta(seconds=TWIN_SECONDS),
    }
    twins = (await (await session.connection()).execute(_TWINS, asked)).scalars()
    return any(macs and not set(macs) & set(machine.macs) for macs in twins)
