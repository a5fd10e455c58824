"""Rules asked again about the machines that wait: after a rule was made or changed, without booting a machine."""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery import apply, changes
from provisiond.discovery.apply import DiscoveryWorld
from provisiond.discovery.rules import first_that_holds, known_rules
from provisiond.discovery.views import Machine, machines
from provisiond.inventory.facts import Facts
from provisiond.inventory.shapes import View
from provisiond.inventory.store import EVENTS, HOSTS
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle import rows


class Applied(View):
    """A machine that was taken: ``host`` as it was called, ``name`` as it is called now."""

    host: str
    rule: str
    name: str
    state: str


async def apply_rules(world: DiscoveryWorld) -> list[Applied]:
    """Ask the rules about every machine that waits. One whose rule was applied already, as that stands, is left as it is."""
    async with world.store.read() as session:
        found = await machines(session, world.store, waiting=True)
    done = []
    for machine in found:
        for last in (False, False, True):
            try:
                taken = await _one(world, machine)
            except IntegrityError:  # another machine was given the name at this moment
                if last:
                    raise
                continue
            done += [taken] if taken is not None else []
            break
    return done


async def _one(world: DiscoveryWorld, machine: Machine) -> Applied | None:
    async def work(session: AsyncSession) -> Applied | None:
        host: Any = await rows.lock_host(session, machine.row.id)
        if host is None or host.state != "discovered":
            return None
        rule = first_that_holds(await known_rules(session, world.store.known), machine.values)
        if rule is None or await apply.ruled_already(session, host.id, rule):
            return None
        ruled = await apply.settings_of(
            session, rule, machine.values, host_id=host.id, parameters=host.parameters
        )
        if ruled.columns:
            await rows.set_host(session, host.id, updated_at=utcnow(), **ruled.columns)
        newest = (await session.execute(changes.NEWEST, {"b_host": host.id})).one()
        facts = Facts.model_validate(newest.facts)
        subnet = machine.subnet.id if machine.subnet else None
        await apply.follow(session, world, host.id, ruled, facts, seen_subnet=subnet)
        now = await rows.lock_host(session, host.id)
        return Applied(host=host.name, rule=rule.name, name=now.name, state=now.state)

    return await world.store.transact(work, HOSTS, EVENTS)
