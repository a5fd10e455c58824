"""Leases of dnsmasq: its lease file, and the events that its script writes to a FIFO."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Set
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog

from provisiond.drivers.dhcp import Lease, LeaseEvent, OnLease

log = structlog.get_logger(__name__)

_KINDS = {"add": "added", "old": "renewed", "del": "removed"}


def read_leases(path: Path) -> list[Lease]:
    """The IPv4 leases of a dnsmasq lease file: lines ``expiry mac address name client-id``. Absent is empty."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [lease for line in lines if (lease := _lease(line.split())) is not None]


def _lease(words: list[str]) -> Lease | None:
    if len(words) < 4 or not words[0].isdigit() or "." not in words[2]:
        return None  # "duid ..." and leases of IPv6
    return Lease(
        mac=words[1], ip=words[2], hostname="" if words[3] == "*" else words[3], expires=_when(words[0])
    )


def _when(seconds: str) -> datetime | None:
    return datetime.fromtimestamp(int(seconds), UTC) if seconds.isdigit() and int(seconds) else None


def drop_leases(path: Path, macs: Set[str], addresses: Set[str]) -> None:
    """Take the leases of ``macs`` and on ``addresses`` out of the file, while dnsmasq is down."""
    try:
        lines = path.read_text(errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [
        line
        for line in lines
        if (lease := _lease(line.split())) is None or not (lease.mac in macs or lease.ip in addresses)
    ]
    if len(kept) < len(lines):
        temporary = path.with_name(path.name + ".new")
        temporary.write_text("".join(kept))
        temporary.replace(path)


class LeaseFeed:
    """Reads the FIFO, keeps the table of leases by address, and hands each event to ``on_lease`` in order.

    A slow ``on_lease`` never holds dnsmasq up: what more than ``LIMIT`` events wait for it is dropped and counted.
    """

    LIMIT = 10_000

    def __init__(self, fifo: Path, leases: Path, on_lease: OnLease) -> None:
        self.by_ip = {lease.ip: lease for lease in read_leases(leases)}
        self.dropped = 0
        self.on_lease = on_lease
        self._fifo = fifo
        self._rest = b""
        self._queue: asyncio.Queue[LeaseEvent] = asyncio.Queue(self.LIMIT)
        self._descriptor = -1
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Make the FIFO and begin to listen. Raises OSError."""
        self._fifo.unlink(missing_ok=True)
        os.mkfifo(self._fifo, 0o600)
        # open for writing too: the FIFO then outlives each of its writers
        self._descriptor = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        self._task = asyncio.create_task(self._deliver(), name="dhcp-lease-events")

    async def close(self) -> None:
        """Hand over what came in already (for a second at most) and end."""
        if self._descriptor < 0:
            return
        self._read()
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._queue.join()
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    def forget(self, matches: Callable[[Lease], bool]) -> None:
        """Drop leases that were taken out of the file, each with its event."""
        for lease in [lease for lease in self.by_ip.values() if matches(lease)]:
            del self.by_ip[lease.ip]
            self._put(LeaseEvent("removed", lease.mac, lease.ip, lease.hostname))

    def _read(self) -> None:
        try:
            while chunk := os.read(self._descriptor, 65536):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                for line in lines:
                    self._take(line.decode(errors="replace"))
        except BlockingIOError:
            pass

    def _take(self, line: str) -> None:
        words = line.split("|")
        if len(words) != 5 or words[0] not in _KINDS or ":" in words[2]:
            return  # IPv6, "tftp", and what newer versions may add
        kind, mac, ip, hostname, expires = words
        lease = Lease(mac=mac, ip=ip, hostname=hostname, expires=_when(expires))
        known = self.by_ip.get(ip)
        if kind == "del":
            if known is None:
                return
            del self.by_ip[ip]
        else:
            self.by_ip[ip] = lease
            if kind == "old" and known == lease:
                return  # dnsmasq names every lease of its file when it starts
        self._put(LeaseEvent(_KINDS[kind], mac, ip, hostname))

    def _put(self, event: LeaseEvent) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1

    async def _deliver(self) -> None:
        while True:
            event = await self._queue.get()
            try:
                await self.on_lease(event)
            except Exception:
                log.exception("a lease event was not taken", mac=event.mac, ip=event.ip, kind=event.kind)
            finally:
                self._queue.task_done()
