"""Network cards of hosts as somebody asks for them: checked against what is there, then given addresses and written."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, FieldError
from provisiond.inventory.addresses import (
    Pools,
    free_addresses,
    holders_of,
    insert_positions,
    lock_subnets,
    position,
    take_free,
)
from provisiond.inventory.shapes import HostCreate, HostUpdate, InterfaceSpec
from provisiond.inventory.tables import Interface, Subnet, new_row, table, utcnow

_interface, _subnet = table(Interface), table(Subnet)
_SUBNETS = select(_subnet).where(_subnet.c.id.in_(bindparam("ids", expanding=True)))


@dataclass
class Card:
    """One wanted network card. ``path`` is where the request speaks of it; ``row`` the interface it is now, if it is one."""

    path: str
    host_id: str
    mac: str | None
    name: str = ""
    subnet: str | None = None
    ip: str | None = None
    primary: bool = True
    row: Any = None
    subnet_id: str | None = None


def wanted_cards(path: str, host_id: str, spec: HostCreate | HostUpdate) -> list[Card]:
    """The cards of a request; the first one is primary if none says so."""
    if spec.interfaces is None:
        return [Card(path, host_id, spec.mac, subnet=spec.subnet, ip=spec.ip)]
    chosen = next((i for i, c in enumerate(spec.interfaces) if c.primary), 0)
    return [
        Card(f"{path}interfaces.{i}.", host_id, c.mac, c.name, c.subnet, c.ip, primary=i == chosen)
        for i, c in enumerate(spec.interfaces)
    ]


def update_cards(
    host_id: str, change: HostUpdate, rows: Sequence[Any], subnets: dict[str, str]
) -> list[Card]:
    """The cards after an update of a host that has ``rows``; ``subnets`` maps ids to names.

    ``interfaces`` replaces them all (one with a known MAC stays itself); mac, subnet and ip change the primary one.
    """
    if change.interfaces is not None:
        cards = wanted_cards("", host_id, change)
        known = {row.mac: row for row in rows}
        for card, spec in zip(cards, change.interfaces, strict=True):
            _take_over(card, known.get(card.mac), spec, subnets)
        return cards
    given = change.model_fields_set
    cards = []
    for row in rows:
        spec = InterfaceSpec()
        card = Card("", host_id, row.mac, row.name, primary=row.primary)
        if row.primary:
            spec = InterfaceSpec.model_construct(
                given & {"subnet", "ip"}, subnet=change.subnet, ip=change.ip, mac=None, name="", primary=None
            )
            card.mac, card.subnet, card.ip = change.mac or row.mac, change.subnet, change.ip
        _take_over(card, row, spec, subnets)
        cards.append(card)
    return cards or wanted_cards("", host_id, change)


def _take_over(card: Card, row: Any, spec: InterfaceSpec, subnets: dict[str, str]) -> None:
    if row is None:
        return
    card.row = row
    card.name = card.name or row.name
    if "subnet" not in spec.model_fields_set:
        card.subnet = subnets.get(row.subnet_id)
    if "ip" not in spec.model_fields_set and card.subnet == subnets.get(row.subnet_id):
        card.ip = row.ip


def random_mac() -> str:
    """A MAC of the range QEMU and libvirt use for their machines."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def check_within(cards: Iterable[Card]) -> list[FieldError]:
    """MACs and addresses that come twice in one request."""
    errors: list[FieldError] = []
    macs: dict[str, Card] = {}
    ips: dict[tuple[str | None, str], Card] = {}
    for card in cards:
        if card.mac is not None and (other := macs.setdefault(card.mac, card)) is not card:
            errors.append(FieldError(f"{card.path}mac", f"{card.mac} comes twice: also in {other.path}mac"))
        if card.ip is not None and (other := ips.setdefault((card.subnet_id, card.ip), card)) is not card:
            errors.append(FieldError(f"{card.path}ip", f"{card.ip} comes twice: also in {other.path}ip"))
    return errors


async def load_pools(session: AsyncSession, cards: Iterable[Card]) -> dict[str, Pools]:
    """The subnets the cards are in, by id."""
    wanted = sorted({card.subnet_id for card in cards if card.subnet_id})
    if not wanted:
        return {}
    rows = await session.execute(_SUBNETS, {"ids": wanted})
    return {row.id: Pools.of(row) for row in rows}


async def check_addresses(
    session: AsyncSession, cards: Sequence[Card], pools: dict[str, Pools]
) -> list[FieldError]:
    """Wanted addresses that no host may have, that are taken, or that have no subnet."""
    errors: list[FieldError] = []
    by_subnet: dict[str, list[Card]] = {}
    for card in cards:
        if card.ip is None or (
            card.row is not None and (card.row.subnet_id, card.row.ip) == (card.subnet_id, card.ip)
        ):
            continue
        if card.subnet_id is None:
            if card.subnet is None:
                errors.append(
                    FieldError(f"{card.path}subnet", f"an address ({card.ip}) needs the subnet it is in")
                )
        elif reason := pools[card.subnet_id].why_not(card.ip):
            errors.append(FieldError(f"{card.path}ip", reason))
        else:
            by_subnet.setdefault(card.subnet_id, []).append(card)
    for subnet_id, group in by_subnet.items():
        holders = await holders_of(session, subnet_id, [card.ip for card in group if card.ip])
        for card in group:
            if card.ip in holders and not (card.row is not None and card.row.ip == card.ip):
                errors.append(FieldError(f"{card.path}ip", f"{card.ip} is taken by host {holders[card.ip]}"))
    return errors


async def settle_cards(
    session: AsyncSession, cards: Sequence[Card], gone: Sequence[Any], pools: dict[str, Pools]
) -> None:
    """Write the cards: give back addresses no longer wanted, take the new ones, insert, change and delete interfaces.

    The hosts' rows are there already. Raises PoolExhausted, or Conflict where somebody took a wanted address just now.
    """
    for row in gone:
        await session.execute(delete(_interface).where(_interface.c.id == row.id))
    moved = [
        c
        for c in cards
        if c.row is not None and (c.row.subnet_id != c.subnet_id or (c.ip and c.row.ip != c.ip))
    ]
    for row in [*gone, *(card.row for card in moved)]:
        if row.ip is not None:
            await free_addresses(session, row.host_id, [row.ip])
    await _take(session, [card for card in cards if card.row is None or card in moved], pools)
    fresh = [card for card in cards if card.row is None]
    if fresh:
        await session.execute(
            insert(_interface),
            [
                new_row(
                    Interface,
                    host_id=c.host_id,
                    name=c.name,
                    mac=c.mac,
                    ip=c.ip,
                    subnet_id=c.subnet_id,
                    primary=c.primary,
                )
                for c in fresh
            ],
        )
    for c in cards:
        if c.row is not None:
            new = {
                "name": c.name,
                "mac": c.mac,
                "ip": c.ip if c in moved else c.row.ip,
                "subnet_id": c.subnet_id,
                "primary": c.primary,
            }
            if any(getattr(c.row, column) != value for column, value in new.items()):
                await session.execute(
                    update(_interface).where(_interface.c.id == c.row.id).values(**new, updated_at=utcnow())
                )


async def _take(session: AsyncSession, cards: Sequence[Card], pools: dict[str, Pools]) -> None:
    by_subnet: dict[str, list[Card]] = {}
    for card in cards:
        if card.subnet_id is not None:
            by_subnet.setdefault(card.subnet_id, []).append(card)
    await lock_subnets(session, sorted(by_subnet))
    for subnet_id, group in sorted(by_subnet.items()):
        subnet = pools[subnet_id]
        for card in (c for c in group if c.ip is not None):
            assert card.ip is not None
            if not await insert_positions(
                session, subnet, [(position(subnet.network, card.ip), card.host_id)]
            ):
                raise Conflict(
                    f"{card.ip} in subnet {subnet.name} was taken by another request just now; choose another"
                )
        free = [card for card in group if card.ip is None]
        if free and subnet.ranges:
            for card, ip in zip(
                free, await take_free(session, subnet, [c.host_id for c in free]), strict=True
            ):
                card.ip = ip
