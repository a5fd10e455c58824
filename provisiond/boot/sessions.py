"""Sessions of the ramdisk: a ticket is claimed once, by the machine it was handed to, and a secret of its own proves it from then on.

The database holds SHA-256 of that secret. A session ends when a newer boot of the same machine claims, and with its host. What is
refused is an event of the host, because a second machine with the same ticket is a copy, a mistake in the rack, or a stranger.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import structlog
from aiohttp import web
from sqlalchemy import bindparam, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.boot import tickets
from provisiond.boot.machines import BootWorld, Machine, Machines
from provisiond.boot.tickets import Ticket
from provisiond.errors import ProvisiondError
from provisiond.inventory import history
from provisiond.inventory.facts import real_mac, real_serial, real_uuid
from provisiond.inventory.hardware_tables import AgentSession
from provisiond.inventory.resolve import host_by_mac
from provisiond.inventory.store import EVENTS
from provisiond.inventory.tables import Host, table, utcnow
from provisiond.lifecycle import rows

log = structlog.get_logger(__name__)

SEEN_SECONDS = 10.0  # that a machine asked is written this often at most; inventory/agents.py counts on it
KEPT = timedelta(days=7)  # sessions nobody has used for so long are forgotten
MAX_STRANGERS = 2000  # sessions of machines that are no host: a flood of made-up MACs fills no database
MAX_MACS = 64
_SECRET = re.compile(r"[0-9a-f]{64}")
_BEARER = re.compile(r"Bearer ([0-9a-f-]{36}):([0-9a-f]{64})")

_session, _host = table(AgentSession), table(Host)
_FIND = select(_session).where(_session.c.id == bindparam("b_id"))
_PROVE = (
    select(_session, _host.c.state.label("host_state"))
    .select_from(_session.outerjoin(_host, _host.c.id == _session.c.host_id))
    .where(_session.c.id == bindparam("b_id"))
)
_SEEN = update(_session).where(_session.c.id == bindparam("b_id"), _session.c.ended_at.is_(None))
_SAME_MACHINE = or_(_session.c.host_id == bindparam("b_host"), _session.c.mac == bindparam("b_mac"))
_LATER = select(_session.c.id).where(_SAME_MACHINE, _session.c.claimed_at > bindparam("b_made")).limit(1)
_END = update(_session).where(_SAME_MACHINE, _session.c.ended_at.is_(None))
_STRANGERS = (
    select(func.count())
    .select_from(_session)
    .where(_session.c.host_id.is_(None), _session.c.seen_at > bindparam("b_since"))
)
_PRUNE = delete(_session).where(_session.c.seen_at < bindparam("b_before"))
_ADD = insert(_session)


class AgentRefused(ProvisiondError):
    """A claim or a request of the agent is refused. ``status`` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Identity:
    """What a machine says of itself at its claim; placeholders are None already. ``address`` is where it asked from."""

    macs: tuple[str, ...]
    serial: str | None
    uuid: str | None
    address: str


@dataclass(frozen=True)
class Claim:
    """What was claimed: ``session`` is its id, ``host`` the host's name, None for a machine nobody knows yet."""

    session: str
    host: str | None


@dataclass(frozen=True)
class _Refusal:
    """Decided within the transaction, which keeps the event, and raised after it."""

    status: int
    message: str
    host: Any = None
    kind: str = ""  # of the event
    said: str = ""  # the event's message, where it is not ``message``
    data: dict[str, Any] = field(default_factory=dict)


def identity_of(given: Any, address: str) -> Identity:
    """The identity in a claim's body, read forgivingly. ``address`` is the client's."""
    said = given if isinstance(given, dict) else {}
    macs = said.get("macs")
    real = [real_mac(mac) for mac in macs[:MAX_MACS]] if isinstance(macs, list) else []
    return Identity(
        tuple(dict.fromkeys(mac for mac in real if mac)),
        (real_serial(said.get("serial")) or "")[:128] or None,
        real_uuid(said.get("uuid")),
        address[:64],
    )


async def claim(world: BootWorld, text: str, secret: str, identity: Identity) -> Claim:
    """Begin the session of the ticket ``text``, or answer its claim again where the answer was lost. Raises AgentRefused.

    ``secret`` is 64 hex digits that the agent made up at this boot.
    """
    if not _SECRET.fullmatch(secret):
        raise AgentRefused(400, "secret must be 64 hex digits in lower case")
    ticket = tickets.read(world.box.derived(tickets.PURPOSE), text)
    if ticket is None:
        raise AgentRefused(
            403,
            "this ticket was not made by this daemon, or before its keys changed: restart the machine from the network",
        )
    minutes = world.settings.boot.ticket_minutes

    async def work(session: AsyncSession) -> Claim | _Refusal:
        answer = await _claim(session, ticket, _hash(secret), identity, minutes)
        if isinstance(answer, _Refusal) and answer.kind:
            # one for a ticket and kind of refusal: whoever goes on trying fills no history
            await history.add(
                session, host=answer.host, kind=answer.kind, actor="machine",
                message=answer.said or answer.message, data=answer.data, key=f"{ticket.id}:{answer.kind}",
            )  # fmt: skip
        return answer

    try:
        answer = await world.store.transact(work, EVENTS)
    except IntegrityError:  # another has just claimed it: now it is there to compare with
        answer = await world.store.transact(work, EVENTS)
    if isinstance(answer, _Refusal):
        log.warning("agent.claim_refused", client=identity.address, mac=ticket.mac, why=answer.message)
        raise AgentRefused(answer.status, answer.message)
    return answer


async def prove(machines: Machines, request: web.Request) -> tuple[Any, Machine]:
    """The session's row of the request's Authorization header, and its machine as it stands now. Raises AgentRefused.

    That the machine lives is written down.
    """
    store, address = machines.world.store, request.remote or ""
    given = _BEARER.fullmatch(request.headers.get("Authorization", ""))
    if given is None:
        raise AgentRefused(401, "Authorization must be 'Bearer SESSION:SECRET' of a claim")
    async with store.connect() as connection:
        row = (await connection.execute(_PROVE, {"b_id": given[1]})).first()
    if row is None or not hmac.compare_digest(row.secret_hash, _hash(given[2])):
        raise AgentRefused(401, "this session is not known: restart the machine")
    if row.ended_at is not None:
        raise AgentRefused(410, "this session is over: a newer boot of this machine has taken its place")
    if row.host_state == "retired":
        raise AgentRefused(410, "this session is over: its host is retired")
    now = utcnow()
    if now - row.seen_at > timedelta(seconds=SEEN_SECONDS):

        async def seen(session: AsyncSession) -> None:
            values = {"b_id": row.id, "seen_at": now, "address": address[:64]}
            await (await session.connection()).execute(_SEEN, values)

        await store.transact(seen)
    return SimpleNamespace(**row._mapping), await machines.by_session(row.host_id, row.mac, address)


# --- inner -----------------------------------------------------------------------------------------------


async def _claim(
    session: AsyncSession, ticket: Ticket, secret_hash: str, identity: Identity, minutes: float
) -> Claim | _Refusal:
    connection = await session.connection()
    host = await _host_of(session, ticket)  # locked first: two claims of one host come one after the other
    there = (await connection.execute(_FIND, {"b_id": ticket.id})).first()
    now = utcnow()
    who = _who(identity)
    if there is not None and hmac.compare_digest(there.secret_hash, secret_hash):
        if there.ended_at is not None:
            return _Refusal(403, "this ticket's session is over: restart the machine from the network")
        return Claim(there.id, host.name if host else None)
    if there is not None:
        # the session may have become another host's than the ticket knew
        owner = (
            host
            if there.host_id in (None, getattr(host, "id", None))
            else await rows.lock_host(session, there.host_id)
        )
        return _Refusal(
            403, "this ticket was used by another machine: restart this one from the network", owner,
            "agent.ticket_reused" if owner else "",
            f"a second machine showed the ticket of this host's ramdisk: {who}; it was used by {there.mac or there.macs} at {there.address} "
            "before. If both are one machine, it was copied or frozen; else somebody reads along on the boot network",
            {"address": identity.address, "macs": list(identity.macs)[:8], "before": there.address, "before_mac": there.mac},
        )  # fmt: skip
    if ticket.expired(now, minutes):
        return _Refusal(
            403, f"this ticket is older than {minutes:g} minutes (boot.ticket_minutes): restart the machine from the network"
        )  # fmt: skip
    if ticket.mac and ticket.mac not in identity.macs:
        return _Refusal(
            403, f"this ticket was handed to the network card {ticket.mac}, which this machine does not have", host,
            "agent.ticket_reused" if host else "",
            f"a machine without the network card {ticket.mac} showed the ticket that was handed to it: {who}",
            {"address": identity.address, "macs": list(identity.macs)[:8], "ticket_mac": ticket.mac},
        )  # fmt: skip
    if host is None and ticket.host_id is not None:
        return _Refusal(403, "the host that this ticket was made for was deleted: restart the machine")
    if host is not None and host.state == "retired":
        return _Refusal(403, f"host {host.name} is retired: its machine gets no work")
    if host is not None and (wrong := _other_serial(host, identity)) is not None:
        return wrong
    same = {"b_host": host.id if host else None, "b_mac": ticket.mac or None}
    if (await connection.execute(_LATER, {**same, "b_made": ticket.made_at})).first() is not None:
        return _Refusal(403, "a newer boot of this machine has begun: restart it from the network")
    if host is None:
        since = {"b_since": now - timedelta(hours=1)}
        if (await connection.execute(_STRANGERS, since)).scalar_one() >= MAX_STRANGERS:
            return _Refusal(403, f"more than {MAX_STRANGERS} unknown machines are waiting: try later")
    await connection.execute(_PRUNE, {"b_before": now - max(KEPT, 2 * timedelta(minutes=minutes))})
    await connection.execute(_END, {**same, "ended_at": now})
    await connection.execute(_ADD, _row(ticket, host, secret_hash, identity, now))
    if host is not None:
        data = {"address": identity.address, "mac": ticket.mac}
        message = f"the ramdisk runs, at {identity.address}"
        await history.add(
            session, host=host, kind="agent.claimed", actor="machine", message=message, data=data
        )
    return Claim(ticket.id, host.name if host else None)


async def _host_of(session: AsyncSession, ticket: Ticket) -> Any:
    """The locked row of the ticket's host, or of the one that has its MAC by now."""
    host_id = ticket.host_id or (await host_by_mac(session, ticket.mac) if ticket.mac else None)
    return await rows.lock_host(session, host_id) if host_id else None


def _other_serial(host: Any, identity: Identity) -> _Refusal | None:
    known = real_serial(host.serial)
    if known is None or identity.serial is None or known == identity.serial:
        return None
    return _Refusal(
        409,
        f"host {host.name} has serial number {known}, this machine says {identity.serial}: if the machine (or its board) was exchanged, "
        f"'provisionctl host update {host.name} --serial {identity.serial}', then restart it; else its network card belongs to another host",
        host, "agent.serial_differs", "", {"address": identity.address, "known": known, "said": identity.serial},
    )  # fmt: skip


def _row(ticket: Ticket, host: Any, secret_hash: str, identity: Identity, now: datetime) -> dict[str, Any]:
    return {
        "id": ticket.id, "host_id": host.id if host else None, "mac": ticket.mac, "secret_hash": secret_hash,
        "macs": list(identity.macs), "serial": identity.serial, "machine_uuid": identity.uuid, "address": identity.address,
        "facts_at": None, "claimed_at": now, "seen_at": now, "ended_at": None,
    }  # fmt: skip


def _who(identity: Identity) -> str:
    return f"{_some(identity.macs)} at {identity.address}"


def _some(macs: Sequence[str]) -> str:
    return ", ".join(macs[:4]) + (" ..." if len(macs) > 4 else "") or "no MAC"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
