"""One machine's report: it is found among the hosts or becomes one, its hardware is kept, and rules are asked about it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import structlog
from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.config import Settings
from provisiond.discovery import apply, changes, identity, links, telling
from provisiond.discovery.context import real_cards, subnet_of, values_of
from provisiond.discovery.names import waiting_name
from provisiond.discovery.rules import first_that_holds, known_rules, known_subnets
from provisiond.errors import Conflict
from provisiond.inventory import history
from provisiond.inventory.facts import Facts, Nic
from provisiond.inventory.hardware_tables import AgentSession
from provisiond.inventory.known import Known
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, Interface, new_row, table, utcnow
from provisiond.lifecycle import rows

log = structlog.get_logger(__name__)
_ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_HOW = {"ticket": "boot", "mac": "network card", "serial": "serial number", "uuid": "machine UUID"}
_host, _interface, _session = table(Host), table(Interface), table(AgentSession)
_WAITING = select(func.count()).select_from(_host).where(_host.c.state == "discovered")
_ADD_HOST, _ADD_CARD = insert(_host), insert(_interface)
_SET_SESSION = update(_session).where(_session.c.id == bindparam("b_id"))


class World(Protocol):
    """What this needs of lifecycle.world.World."""

    settings: Settings
    store: Store
    box: SecretBox


class Session(Protocol):
    """What this needs of a row of agent_session."""

    @property
    def id(self) -> str: ...
    @property
    def mac(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def host_id(self) -> str | None: ...


class Report:
    """One report: ``work`` is its transaction, which may run again."""

    def __init__(self, world: World, session: Session, facts: Facts) -> None:
        self.world, self.session, self.facts = world, session, facts
        self.shown = facts.model_dump()
        self.machine = identity.Machine.of(facts, session.mac)
        self.cards = real_cards(facts, session.mac) or ([Nic(mac=session.mac)] if session.mac else [])

    async def work(self, db: AsyncSession) -> tuple[str, str]:
        """(the host's name, why it was refused)."""
        known = self.world.store.known
        found = await identity.find(db, self.machine, self.session.id, self.session.host_id)
        subnet = subnet_of(self.session.address, await known_subnets(db, known))
        rules = await known_rules(db, known)
        if found.host is None:
            free = [nic for nic in self.cards if nic.mac not in found.cards]
            if refused := await self._refused(db, found, free):
                return "", refused
            name = await self._discovered(db, found, free, rules, subnet, known)
        else:
            name = await self._known(db, found, rules, subnet, known)
        return name, ""

    # --- unknown machines ------------------------------------------------------------------------------------

    async def _refused(self, db: AsyncSession, found: identity.Found, free: Sequence[Nic]) -> str:
        """Why this machine becomes no host; '' if it may."""
        if not free:
            await telling.conflicts(db, self.session.id, self.machine, None, found)
            names = ", ".join(sorted(row.name for row in found.others))
            if not names:
                return "this machine told of no network card that could identify it: look at its console"
            return (
                f"every network card of this machine belongs to another host ({names}), whose serial number is not this machine's; "
                f"if its mainboard was replaced, give the host the new one: provisionctl host update {names.partition(',')[0]} "
                f"--serial {self.machine.serial}"
            )
        if await self.room(db) <= 0:
            limit = self.world.settings.discovery.max_waiting
            log.warning("discovery.too_many_waiting", mac=free[0].mac, limit=limit)
            return (
                f"{limit} machines wait for approval already (discovery.max_waiting): approve or delete some"
            )
        return ""

    async def _discovered(
        self, db: AsyncSession, found: identity.Found, free: Sequence[Nic], rules: Sequence[Any], subnet: Any, known: Known
    ) -> str:  # fmt: skip
        connection = await db.connection()
        row = self.new_host()
        if found.serial_of is not None:
            row["serial"] = None
        values = self._values(subnet)
        ruled = None
        if (rule := first_that_holds(rules, values)) is not None:
            ruled = await apply.settings_of(db, rule, values, host_id=row["id"], parameters={})
            row.update(ruled.columns)
        await connection.execute(_ADD_HOST, row)
        await connection.execute(_ADD_CARD, self.new_cards(row["id"], free))
        await self._belongs_to(db, row["id"])
        host = SimpleNamespace(**row)
        await changes.keep_first(db, host.id, self.shown)
        line = self.discovered(row, taken_in=ruled is not None and ruled.rule.approve)
        await history.add_many(db, [line])
        await telling.conflicts(db, self.session.id, self.machine, host, found)
        await telling.differences(db, host, self.shown, None)
        if ruled is not None:
            await apply.follow(
                db, self.world, host.id, ruled, self.facts, seen_subnet=subnet.id if subnet else None
            )
        return str(host.name)

    def new_host(self) -> dict[str, Any]:
        """The row of a machine that nobody knows; a rule may give it another name and more."""
        return new_row(
            Host, name=waiting_name(str(self.cards[0].mac)), state="discovered", comment="found on the boot network",
            serial=self.machine.serial, machine_uuid=self.machine.uuid, **self._basics(),
        )  # fmt: skip

    def new_cards(self, host_id: str, cards: Sequence[Nic] | None = None) -> list[dict[str, Any]]:
        """The rows of its network cards, or only of ``cards``; the first one is primary."""
        chosen = self.cards if cards is None else cards
        return [
            new_row(Interface, host_id=host_id, mac=nic.mac, name=name, primary=place == 0)
            for place, (nic, name) in enumerate(zip(chosen, links.card_names(chosen), strict=True))
        ]

    def discovered(self, row: dict[str, Any], *, taken_in: bool = False) -> dict[str, Any]:
        """The event of a new host as a row; ``taken_in``: a rule approves it at once."""
        message = telling.in_one_line(self.shown)
        if not taken_in:
            message += f" waits: 'provisionctl host approve {row['name']}' takes it in"
        told = {
            "macs": [nic.mac for nic in self.cards],
            "serial": self.machine.serial,
            "uuid": self.machine.uuid,
        }
        return history.line(
            kind="host.discovered", host=SimpleNamespace(**row), actor="machine", message=message, data=told
        )

    async def values(self, db: AsyncSession) -> dict[str, Any]:
        """What rules see of it."""
        subnets = await known_subnets(db, self.world.store.known)
        return self._values(subnet_of(self.session.address, subnets))

    async def room(self, db: AsyncSession) -> int:
        """How many more machines may wait."""
        waiting = (await (await db.connection()).execute(_WAITING)).scalar_one()
        return int(self.world.settings.discovery.max_waiting - waiting)

    def _basics(self) -> dict[str, Any]:
        """What a host's boot files depend on."""
        basics: dict[str, Any] = {}
        if (architecture := _ARCHITECTURES.get(self.facts.architecture or "")) is not None:
            basics["architecture"] = architecture
        if self.facts.firmware.mode in ("bios", "uefi"):
            basics["firmware"] = self.facts.firmware.mode
        return basics

    def _values(self, subnet: Any) -> dict[str, Any]:
        name = subnet.name if subnet else None
        return values_of(self.facts, mac=self.session.mac, address=self.session.address, subnet=name)

    # --- known machines --------------------------------------------------------------------------------------

    async def _known(
        self, db: AsyncSession, found: identity.Found, rules: Sequence[Any], subnet: Any, known: Known
    ) -> str:
        host = await rows.lock_host(db, found.host.id)
        if host is None:  # deleted at this moment
            raise Conflict("this machine's host was deleted just now; it is asked again at its next boot")
        await self._belongs_to(db, host.id)
        said, columns = await links.link(db, host, found, self.machine, self.cards)
        changed, before = await changes.keep(db, host.id, self.shown)
        first = before is None
        ruled = None
        if host.state == "discovered":
            columns |= {k: v for k, v in self._basics().items() if getattr(host, k) != v}
            values = self._values(subnet)
            rule = first_that_holds(rules, values)
            if rule is not None and not await apply.ruled_already(db, host.id, rule):
                ruled = await apply.settings_of(db, rule, values, host_id=host.id, parameters=host.parameters)
                columns.update(ruled.columns)
        if columns or changed or first:
            await rows.set_host(db, host.id, updated_at=utcnow(), **columns)
            host = await rows.lock_host(db, host.id)
        if said:
            await history.add(
                db, kind="host.linked", host=host, actor="machine", message=f"found by its {_HOW[found.how]}: {'; '.join(said)}"
            )  # fmt: skip
        if first:
            message = telling.in_one_line(self.shown)
            await history.add(db, kind="hardware.found", host=host, actor="machine", message=message)
        if changed:
            data = {"changes": [change.data for change in changed[:100]]}
            message = changes.told(changed)
            await history.add(
                db, kind="hardware.changed", host=host, actor="machine", message=message, data=data
            )
        await telling.conflicts(db, self.session.id, self.machine, host, found)
        if first or changed:
            await telling.differences(db, host, self.shown, before)
        if ruled is not None:
            await apply.follow(
                db, self.world, host.id, ruled, self.facts, seen_subnet=subnet.id if subnet else None
            )
        return str(host.name)

    # --- what both do ------------------------------------------------------------------------------------------

    async def _belongs_to(self, db: AsyncSession, host_id: str) -> None:
        now = utcnow()
        values = {"b_id": self.session.id, "host_id": host_id, "facts_at": now, "seen_at": now}
        await (await db.connection()).execute(_SET_SESSION, values)
