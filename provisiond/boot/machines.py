"""Who is asking, and what it is to boot: the facts boot/target.py decides by, read from the database for each request.

Also the tally of boots (the loop detector's), and the life of a build's token.
"""

from __future__ import annotations

import ipaddress
import re
import time
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.boot.target import Boot, Build, Chore, Target, boot_target
from provisiond.config import Settings
from provisiond.errors import NotFound, ProvisiondError
from provisiond.inventory.resolve import ResolvedHost, host_by_mac, host_by_token, resolve_host
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, Interface, Subnet, table
from provisiond.lifecycle import signals, task_signals
from provisiond.lifecycle.states.building import by_network
from provisiond.templating.context import BuildUrls
from provisiond.templating.release import Renderings

log = structlog.get_logger(__name__)

SAME_BOOT_SECONDS = 8.0
"""Requests this close together are one boot: loaders ask twice, UDP repeats itself, and no machine restarts this fast."""
RENEW_SECONDS = 60.0
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
_interface, _subnet, _host = table(Interface), table(Subnet), table(Host)


class BootWorld(Protocol):
    """What this room needs of lifecycle.world.World. ``boot_url`` is where machines reach HTTP boot, such as http://10.0.0.1:8421."""

    settings: Settings
    store: Store
    box: SecretBox
    renderings: Renderings
    boot_url: str


class TokenRefused(ProvisiondError):
    """A boot token is wrong, expired, or of a build that is over. ``status`` is the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


@dataclass(frozen=True)
class Machine:
    """A machine that asks: its host (None: unknown), the MAC it asked with ('' when it gave none), and what it is to boot."""

    host: ResolvedHost | None
    mac: str
    target: Target

    @property
    def name(self) -> str:
        return self.host.name if self.host else self.mac or "unknown machine"


def normal_mac(text: str) -> str:
    """``text`` as aa:bb:cc:dd:ee:ff; '' when it is no MAC. Takes colons, dashes, and PXELINUX's hardware type in front (01-)."""
    mac = text.strip().lower().replace("-", ":")
    if len(mac) == 20:  # 01:aa:bb:cc:dd:ee:ff
        mac = mac[3:]
    return mac if _MAC.fullmatch(mac) else ""


class Machines:
    """Answers for one boot server. Keeps nothing that matters: when a boot was last counted, a token last renewed."""

    def __init__(self, world: BootWorld) -> None:
        self.world = world
        self._counted: dict[str, float] = {}
        self._renewed: dict[str, float] = {}

    async def by_mac(self, mac: str, client_ip: str = "") -> Machine:
        """The machine with this network card. ``client_ip`` tells the subnet whose policy holds for unknown ones."""
        async with self.world.store.read() as session:
            host_id = await host_by_mac(session, mac) if mac else None
            return await self._machine(session, host_id, mac, client_ip)

    async def by_ip(self, client_ip: str) -> Machine:
        """The machine that was given this address."""
        address = _plain_ip(client_ip)
        async with self.world.store.read() as session:
            found = await session.execute(select(_interface.c.host_id).where(_interface.c.ip == address))
            ids = set(found.scalars())
            return await self._machine(session, ids.pop() if len(ids) == 1 else None, "", address)

    async def by_uuid(self, uuid: str) -> Machine | None:
        """The virtual machine with this UUID, which is its host's id. None: no host."""
        async with self.world.store.read() as session:
            try:
                return await self._machine(session, uuid.lower(), "", "")
            except NotFound:
                return None

    async def by_session(self, host_id: str | None, mac: str, client_ip: str) -> Machine:
        """The machine whose ramdisk has a session: of this host, or else with the card it was started from. Raises NotFound."""
        if host_id is None:
            return await self.by_mac(mac, client_ip)
        async with self.world.store.read() as session:
            return await self._machine(session, host_id, mac, client_ip)

    async def by_token(self, token: str) -> Machine:
        """The machine whose build this token belongs to; its build is alive. Raises TokenRefused."""
        async with self.world.store.read() as session:
            owner = await host_by_token(session, token)
            if owner is None:
                raise TokenRefused(
                    403,
                    "this boot token is not known or has expired; boot the machine again, or rebuild its host",
                )
            try:
                machine = await self._machine(session, owner.host_id, "", "")
            except NotFound:
                raise TokenRefused(410, "the host of this boot token was deleted") from None
        assert machine.host is not None
        deployment = machine.host.deployment
        if deployment is None or deployment.id != owner.deployment_id or deployment.ended_at is not None:
            raise TokenRefused(
                410, f"the build of host {machine.name} that this boot token was made for is over"
            )
        await self.alive(owner.deployment_id)
        return machine

    async def hand_out(self, machine: Machine) -> Machine:
        """Call before the machine is told how to boot: counts a boot that builds, or that is for its task. The answer may have become local disk."""
        host = machine.host
        if machine.target.tasked and host is not None and host.task is not None:
            return await self._hand_out_task(machine, host.task.id)
        if not machine.target.builds or host is None or host.deployment is None:
            return machine
        deployment, now = host.deployment, time.monotonic()
        if now - self._counted.get(deployment.id, -SAME_BOOT_SECONDS) < SAME_BOOT_SECONDS:
            return machine
        _remember(self._counted, deployment.id, now)
        limit = self.world.settings.boot.loop_limit
        what = str(machine.target.boot)
        count = await signals.boot_asked(self.world.store, host.id, deployment.id, what, limit=limit)
        log.info("boot.handed_out", host=host.name, what=what, boots=count)
        if 0 < count < limit:
            return machine
        why = f"boot loop: asked {count} times for its {what} in one build" if count else "its build is over"
        return replace(machine, target=Target(Boot.LOCAL, why))

    async def _hand_out_task(self, machine: Machine, task_id: str) -> Machine:
        now = time.monotonic()
        if now - self._counted.get(task_id, -SAME_BOOT_SECONDS) < SAME_BOOT_SECONDS:
            return machine
        _remember(self._counted, task_id, now)
        limit = self.world.settings.boot.loop_limit
        count, go = await task_signals.boot_asked(self.world.store, task_id, limit=limit)
        log.info("boot.handed_out", host=machine.name, what=str(machine.target.boot), boots=count)
        if go:
            return machine
        why = (
            f"boot loop: asked {count} times for its ramdisk, whose agent never answered"
            if count
            else "its task is over"
        )
        return replace(machine, target=Target(Boot.LOCAL, why))

    async def give_up(self, machine: Machine, why: str) -> None:
        """What the machine is to boot cannot be served: its build or its task fails at once with the reason, not by its time limit."""
        host = machine.host
        if machine.target.builds and host is not None and host.deployment is not None:
            await signals.failed(self.world.store, host.deployment.id, why, "")
        elif machine.target.tasked and host is not None and host.task is not None:
            await task_signals.failed(self.world.store, host.task.id, why)

    def token_of(self, machine: Machine) -> str:
        """The token of the machine's build, out of its encrypted copy."""
        assert machine.host is not None and machine.host.deployment is not None
        return self.world.box.decrypt(machine.host.deployment.secret_seed)

    def urls_of(self, machine: Machine) -> BuildUrls:
        """Where the machine's build is served."""
        return BuildUrls.of(self.world.boot_url, self.token_of(machine))

    async def _machine(self, session: AsyncSession, host_id: str | None, mac: str, client_ip: str) -> Machine:
        policy = "ignore"
        host = await resolve_host(session, host_id, self.world.store.known) if host_id else None
        if host is None and client_ip:
            policy = await _policy(session, client_ip)
        target = boot_target(
            host.row.state if host else None, host.row.step if host else "", _build(host), _chore(host), unknown=policy,
            loop_limit=self.world.settings.boot.loop_limit,
        )  # fmt: skip
        return Machine(host, mac or (host.mac or "" if host else ""), target)

    async def alive(self, deployment_id: str) -> None:
        """A request for the build is a sign of life, which keeps its token; written once a minute at most."""
        now = time.monotonic()
        if now - self._renewed.get(deployment_id, -RENEW_SECONDS) >= RENEW_SECONDS:
            _remember(self._renewed, deployment_id, now)
            await signals.renew_token(self.world.store, deployment_id, self.world.settings.boot.token_minutes)


def _build(host: ResolvedHost | None) -> Build | None:
    deployment = host.deployment if host else None
    if host is None or deployment is None:
        return None
    return Build(
        method=deployment.method,
        by_network=by_network(host),
        built=deployment.built_at is not None,
        failed=deployment.failed_at is not None,
        ended=deployment.ended_at is not None,
        boots=deployment.boots,
    )


def _chore(host: ResolvedHost | None) -> Chore | None:
    task = host.task if host else None
    if task is None:
        return None
    return Chore(
        kind=task.kind,
        started=task.started_at is not None,
        done=task.done_at is not None,
        failed=task.failed_at is not None,
        ended=task.ended_at is not None,
        boots=task.boots,
    )


async def _policy(session: AsyncSession, client_ip: str) -> str:
    """What the subnet of this address does with unknown machines; the narrowest subnet counts."""
    try:
        address = ipaddress.ip_address(_plain_ip(client_ip))
    except ValueError:
        return "ignore"
    rows = (await session.execute(select(_subnet.c.cidr, _subnet.c.unknown))).all()
    fitting = [
        (network.prefixlen, row.unknown)
        for row in rows
        if address in (network := ipaddress.ip_network(row.cidr, strict=False))
    ]
    return str(max(fitting)[1]) if fitting else "ignore"


def _plain_ip(text: str) -> str:
    """An IPv4 address that came over an IPv6 socket (::ffff:10.0.0.1), or with a zone, as it is stored."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return text
    return str(getattr(address, "ipv4_mapped", None) or address)


def _remember(times: dict[str, float], key: str, now: float) -> None:
    times[key] = now
    if len(times) > 4096:
        for old in [k for k, then in times.items() if now - then > RENEW_SECONDS]:
            del times[old]
