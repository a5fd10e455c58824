"""A known host and the machine that reported: the network cards and identities which the host lacks are added to it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery import changes
from provisiond.discovery.identity import Found, Machine
from provisiond.inventory import history
from provisiond.inventory.addresses import free_addresses
from provisiond.inventory.facts import Nic
from provisiond.inventory.tables import Interface, new_row, table, utcnow

_CARD = re.compile(r"[A-Za-z0-9_.-]{1,32}")
# Cards that came now would change the files of a build under way, or of what is in service.
_AT_WORK = frozenset({"building", "provisioned", "configuring", "active", "rescue"})
_interface = table(Interface)
_ADD_CARD = insert(_interface)
_CARDS = select(_interface).where(_interface.c.host_id == bindparam("b_host"))


async def link(
    db: AsyncSession, host: Any, found: Found, machine: Machine, cards: Sequence[Nic]
) -> tuple[list[str], dict[str, Any]]:
    """Add the ``cards`` and identities of ``machine`` that the locked ``host`` lacks: what was done, and columns of the host to set.

    A card that comes over from another host leaves ``found.cards``.
    """
    connection = await db.connection()
    said: list[str] = []
    columns: dict[str, Any] = {}
    macs = set(found.own_macs)
    there: Sequence[Any] = ()
    if not macs.issuperset(machine.macs):
        there = (await connection.execute(_CARDS, {"b_host": host.id})).all()
        macs = {row.mac for row in there}
    given = [mac for mac, owner in found.cards.items() if await _given_up(db, owner, mac)]
    for mac in given if host.state not in _AT_WORK else ():
        owner = found.cards.pop(mac)
        await _move_card(db, host, owner, mac)
        macs.add(mac)
        said.append(f"network card {mac} came over from host {owner.name}, which has reported without it")
    fresh = [nic for nic in cards if nic.mac not in macs and nic.mac not in found.cards]
    if fresh and host.state not in _AT_WORK:
        # the ramdisk's names are not those of the system that runs on a known host
        waits = host.state == "discovered"
        names = card_names(fresh, {row.name for row in there}) if waits else [""] * len(fresh)
        none = not there
        await connection.execute(
            _ADD_CARD,
            [
                new_row(Interface, host_id=host.id, mac=nic.mac, name=name, primary=none and place == 0)
                for place, (nic, name) in enumerate(zip(fresh, names, strict=True))
            ],
        )
        said += [f"network card {nic.mac} added" for nic in fresh]
    if machine.serial and host.serial is None and found.serial_of is None:
        columns["serial"] = machine.serial
        said.append(f"serial number {machine.serial} noted")
    if machine.uuid and host.machine_uuid != machine.uuid:
        columns["machine_uuid"] = machine.uuid
        if host.machine_uuid is not None:
            said.append(f"machine UUID is {machine.uuid}, was {host.machine_uuid}")
    return said, columns


def card_names(cards: Sequence[Nic], taken: Iterable[str] = ()) -> list[str]:
    """The names the kernel gave the cards, each once; '' where one cannot be kept."""
    used = set(taken) - {""}
    names = []
    for nic in cards:
        name = nic.name if nic.name and _CARD.fullmatch(nic.name) and nic.name not in used else ""
        used.add(name)
        names.append(name)
    return names


async def _move_card(db: AsyncSession, host: Any, owner: Any, mac: str) -> None:
    connection = await db.connection()
    row = (await connection.execute(select(_interface).where(_interface.c.mac == mac))).one()
    if row.ip is not None:
        await free_addresses(db, owner.id, [row.ip])
    await connection.execute(
        update(_interface)
        .where(_interface.c.id == row.id)
        .values(host_id=host.id, ip=None, subnet_id=None, primary=False, name="", updated_at=utcnow())
    )
    await history.add(
        db, kind="discovery.card_moved", host=owner, actor="machine",
        message=f"network card {mac} is in host {host.name} now, and was not in this one when it reported last",
    )  # fmt: skip


async def _given_up(db: AsyncSession, owner: Any, mac: str) -> bool:
    """Whether the host that has a card in the inventory has since said that it has it no more. The card it boots from stays its own."""
    if owner.primary or owner.state in _AT_WORK:
        return False
    newest = (await (await db.connection()).execute(changes.NEWEST, {"b_host": owner.id})).first()
    return newest is not None and all(nic.get("mac") != mac for nic in newest.facts.get("nics") or ())
