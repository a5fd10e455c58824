"""Unknown machines become hosts in state `discovered`: once their ramdisk asks what to do, where their subnet discovers.

What is written is what the machine shows without proof, its MAC. Nothing is done with it until somebody approves it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.boot.machines import Machine
from provisiond.boot.target import Boot, Target
from provisiond.inventory import history
from provisiond.inventory.hardware_tables import AgentSession
from provisiond.inventory.resolve import host_by_mac
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Host, Interface, table, utcnow

log = structlog.get_logger(__name__)

MAX_WAITING = 1000
"""More hosts than this never wait for approval: a flood of made-up MACs fills no database."""
_host, _session = table(Host), table(AgentSession)


async def discover(store: Store, machine: Machine) -> bool:
    """Write ``machine`` down as a discovered host, named after its MAC. False when it is known, not wanted, or one too many."""
    if machine.host is not None or machine.target.boot is not Boot.WAIT or not machine.mac:
        return False
    name = f"new-{machine.mac.replace(':', '')}"

    async def work(session: AsyncSession) -> bool:
        waiting = select(func.count()).select_from(_host).where(_host.c.state == "discovered")
        if (await session.execute(waiting)).scalar_one() >= MAX_WAITING:
            log.warning("boot.too_many_discovered", mac=machine.mac, limit=MAX_WAITING)
            return False
        host = Host(name=name, state="discovered", comment="found on the boot network")
        session.add(host)
        await session.flush()
        session.add(Interface(host_id=host.id, mac=machine.mac, primary=True))
        await session.flush()
        message = f"unknown machine {machine.mac} waits: 'provisionctl host approve {name}' takes it in"
        await history.add(session, kind="host.discovered", host=host, actor="machine", message=message)
        return True

    try:
        return await store.transact(work, HOSTS, EVENTS)
    except IntegrityError:  # it asked twice at once, or the name is taken
        return False


async def bind_discovered(store: Store, session_row: Any, machine: Machine) -> str:
    """The machine of a ramdisk's session is a host from now on; its name. The session is the host's."""
    unknown = replace(machine, target=Target(Boot.WAIT, ""))
    await discover(store, unknown)

    async def work(session: AsyncSession) -> str:
        host_id = await host_by_mac(session, machine.mac) if machine.host is None else machine.host.id
        bound = update(_session).where(_session.c.id == session_row.id)
        await session.execute(bound.values(host_id=host_id, facts_at=utcnow()))
        found = await session.execute(select(_host.c.name).where(_host.c.id == host_id))
        return str(found.scalar() or "")

    return await store.transact(work)
