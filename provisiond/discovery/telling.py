"""What the history says of machines that report: whose they are, what they are made of, and what does not fit."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery import profiles
from provisiond.discovery.identity import Found, Machine
from provisiond.inventory import history
from provisiond.inventory.hardware_tables import HardwareProfile
from provisiond.inventory.host_checks import nearest
from provisiond.inventory.resolve import group_paths
from provisiond.inventory.tables import table

_profile = table(HardwareProfile)
_EXPECTED = select(_profile.c.name, _profile.c.expected).where(_profile.c.id == bindparam("b_id"))


async def conflicts(db: AsyncSession, session_id: str, machine: Machine, host: Any, found: Found) -> None:
    """One event for each host that something of this machine belongs to, with both names; once a boot.

    ``host`` is whom the machine was found to be (None: nobody)."""
    this = f"host {host.name}" if host is not None else "an unknown machine"
    whose = f"{this} (serial number {machine.serial or 'unknown'}, {', '.join(machine.macs[:4])})"
    for other in found.others:
        macs = sorted(mac for mac, row in found.cards.items() if row.id == other.id)
        what = [f"network card {mac}" for mac in macs]
        if found.serial_of is not None and found.serial_of.id == other.id:
            what.append(f"serial number {machine.serial}")
        advice = (
            f"if the card was moved, boot {other.name} into the ramdisk once (provisionctl host inspect {other.name}) and it is "
            "taken over at the next report of this one"
            if macs
            else f"if both are one machine, delete or retire one of them (provisionctl host delete {host.name if host else other.name})"
        )
        message = f"{', '.join(what)} of host {other.name} was reported by {whose}; nothing was taken from {other.name}; {advice}"
        data = {
            "host": host.name if host else None,
            "other": other.name,
            "macs": macs,
            "serial": machine.serial,
        }
        for told in (host, other) if host is not None else (other,):
            key = f"conflict:{session_id}:{told.id}:{other.id}"
            await history.add(
                db, kind="discovery.conflict", host=told, actor="machine", message=message, data=data, key=key
            )  # fmt: skip


async def differences(
    db: AsyncSession, host: Any, now: dict[str, Any], before: dict[str, Any] | None
) -> None:
    """An event where the host is not as its profile, its own or its group's, expects, and was not so ``before`` already."""
    profile_id = host.profile_id
    if profile_id is None and host.group_id is not None:
        path = (await group_paths(db, [host.group_id])).get(host.group_id, ())
        profile_id = nearest(path, "profile_id")
    if profile_id is None:
        return
    profile = (await (await db.connection()).execute(_EXPECTED, {"b_id": profile_id})).first()
    if profile is None:
        return
    wrong = profiles.differences(profile.expected, now)
    if wrong and (before is None or wrong != profiles.differences(profile.expected, before)):
        message = f"differs from {profile.name}: {'; '.join(wrong)}"
        data = {"profile": profile.name, "differs": wrong}
        await history.add(db, kind="hardware.differs", host=host, actor="machine", message=message, data=data)


def in_one_line(facts: dict[str, Any]) -> str:
    """A machine in one line, such as "Dell Inc. PowerEdge R640 ABC1234, 2 CPUs with 32 cores, 64 GiB, 2 disks"."""
    short = profiles.summary(facts)
    parts = [" ".join(filter(None, (short["vendor"], short["model"], short["serial"]))) or "a machine"]
    if short["cores"]:
        sockets = short["sockets"] or 1
        parts.append(f"{sockets} CPU{'s' if sockets != 1 else ''} with {short['cores']} cores")
    if short["memory_mib"]:
        parts.append(f"{round(short['memory_mib'] / 1024, 1):g} GiB")
    parts.append(f"{len(short['disks'])} disk{'s' if len(short['disks']) != 1 else ''}")
    if short["switch_port"]:
        parts.append(f"at {short['switch_port']}")
    return ", ".join(parts)
