"""DHCP by dnsmasq, run as a child of the daemon with files of its own.

A reservation is a file of ``dhcp-hostsdir``: dnsmasq takes a new one live, within milliseconds. It never forgets one
without a restart, though (not when the file goes, not when the file names another address), so what is taken away costs a
restart of about 30 ms, one for all that is asked within ``SETTLE_SECONDS``; leases stay. SIGHUP is never sent: dnsmasq 2.90
aborts on it after it has served a lease from such a file.
"""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
from collections.abc import Sequence
from pathlib import Path

import structlog

from provisiond.drivers.dhcp import (
    BootOptions,
    DhcpOptions,
    DhcpSubnet,
    Lease,
    OnLease,
    Reservation,
)
from provisiond.drivers.dhcp.dnsmasq_child import Child
from provisiond.drivers.dhcp.dnsmasq_config import Paths, configuration, event_script, reservation_lines
from provisiond.drivers.dhcp.dnsmasq_leases import LeaseFeed, drop_leases, read_leases
from provisiond.drivers.dhcp.files import ReservationFiles, checked, ipv4_only, normal_mac
from provisiond.errors import DriverUnavailable

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 0.1  # how long deletions are gathered for one restart
LIVE_SECONDS = 2.0  # how long a new reservation is waited for in dnsmasq's log


class DnsmasqDhcp:
    """The driver. Its calls come from one event loop; dnsmasq runs in the network namespace of the caller."""

    def __init__(self, settings: DhcpOptions) -> None:
        self.settings = settings
        self.paths = Paths(settings.run_dir.absolute())
        self._files = ReservationFiles(self.paths.hosts, reservation_lines)
        self._subnets: tuple[DhcpSubnet, ...] | None = None
        self._feed: LeaseFeed | None = None
        self._stale: set[str] = set()  # addresses that dnsmasq holds reserved though no file says so any more
        self._drop_macs: set[str] = set()
        self._drop_addresses: set[str] = set()
        self._unread: dict[str, asyncio.Event] = {}  # file name -> dnsmasq has read it
        self._restart: asyncio.Task[None] | None = None  # the one that further changes may still join
        self._restarts: set[asyncio.Task[None]] = set()
        self.child = Child(
            settings.dnsmasq,
            self.paths.config,
            ready="/".join(self.paths.loaded.parts[-2:]),
            prepare=self._while_down,
            on_line=self._on_line,
        )

    @property
    def problem(self) -> str:
        """Why no DHCP is served now, in dnsmasq's words."""
        return (self._subnets and self.child.problem) or ""

    async def start(self, subnets: Sequence[DhcpSubnet], boot: BootOptions, on_lease: OnLease) -> None:
        """Begin to serve ``subnets``, or change over to them; see the contract."""
        user, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
        served = ipv4_only(subnets)
        text = configuration(self.settings, self.paths, served, boot, user=user, group=group)
        try:
            self.paths.run_dir.mkdir(parents=True, exist_ok=True)
            unchanged = self.child.pid is not None and self.paths.config.read_text() == text
            self._subnets = served
            self._files.all()
            self.paths.loaded.parent.mkdir(exist_ok=True)
            self.paths.loaded.write_text("# nothing\n")
            if self._feed is None:
                _write(self.paths.script, event_script(self.paths), 0o700)
                feed = LeaseFeed(self.paths.events, self.paths.leases, on_lease)
                feed.open()
                self._feed = feed
            self._feed.on_lease = on_lease
            _write(self.paths.config, text, 0o600)
        except OSError as error:
            raise DriverUnavailable(
                f"cannot write dnsmasq's files in {self.paths.run_dir}: {error}"
            ) from error
        if not served:
            await self.child.stop()  # without a range it would serve nothing, and not read what we tell it
        elif not unchanged:
            await self.child.restart()

    async def reserve(self, reservation: Reservation) -> None:
        """Reserve; returns when dnsmasq has taken it.

        DriverUnavailable when dnsmasq does not run: the reservation is kept, but nobody would serve it now.
        """
        wanted = checked(reservation, self._subnets)
        earlier = self._files.all().get(wanted.mac)
        if earlier == wanted and wanted.ip not in self._stale:
            await self._serving()
            return
        other = self._files.holder(wanted.ip)
        if other and other.mac != wanted.mac:
            log.warning(
                "an address is reserved for another MAC now", ip=wanted.ip, was=other.mac, now=wanted.mac
            )
            self._forget(other.mac)
        if earlier and reservation_lines(earlier) != reservation_lines(wanted):
            self._stale.add(earlier.ip)
        taken = self._feed.by_ip.get(wanted.ip) if self._feed else None
        if taken and taken.mac != wanted.mac:
            # dnsmasq gives no reserved address that another MAC has leased
            self._drop_addresses.add(wanted.ip)
        if wanted.ip in self._stale or wanted.ip in self._drop_addresses:
            self._files.write(wanted)
            await self._restart_soon()
        else:
            await self._write_live(wanted)

    async def release(self, mac: str) -> None:
        """Forget the MAC; returns when dnsmasq has forgotten it too."""
        mac = normal_mac(mac)
        if self._forget(mac) or (self._feed and any(lease.mac == mac for lease in self._feed.by_ip.values())):
            self._drop_macs.add(mac)
            await self._restart_soon()
        elif mac in self._drop_macs:
            await self._restart_soon()  # asked twice: both wait for the same one

    async def reservations(self) -> list[Reservation]:
        """What the files say."""
        return list(self._files.all().values())

    async def leases(self) -> list[Lease]:
        """The leases as dnsmasq told them; before ``start``, those of its file."""
        if self._feed is None:
            return read_leases(self.paths.leases)
        return list(self._feed.by_ip.values())

    async def close(self) -> None:
        """Stop serving. Reservations and leases stay on the disk."""
        await asyncio.gather(*self._restarts, return_exceptions=True)
        await self.child.stop()
        if self._feed:
            await self._feed.close()
            self._feed = None

    # --- how a change reaches dnsmasq -----------------------------------------------------------------

    def _forget(self, mac: str) -> bool:
        gone = self._files.remove(mac)
        if gone:
            self._stale.add(gone.ip)
        return gone is not None

    async def _write_live(self, wanted: Reservation) -> None:
        name = self._files.path(wanted.mac).name
        read = self._unread.setdefault(name, asyncio.Event())
        self._files.write(wanted)
        if self._feed is None or self.settings.proxy:
            self._unread.pop(name, None)
            return  # it reads every file when it starts; as a proxy it has no use for them
        try:
            await self._serving()
            async with asyncio.timeout(LIVE_SECONDS):
                await read.wait()
        except TimeoutError:
            await self._restart_soon()
        finally:
            self._unread.pop(name, None)

    async def _serving(self) -> None:
        """Once started, a reservation is no good while nobody serves it: the caller shall try again later."""
        if self._feed is not None:
            await self.child.serving(LIVE_SECONDS)

    async def _restart_soon(self) -> None:
        """Wait for the next restart, which everybody who asks within ``SETTLE_SECONDS`` shares."""
        if self._feed is None or not self._subnets or self.settings.proxy:
            return  # not started: dnsmasq will read the files as they are then
        if self._restart is None:
            self._restart = asyncio.create_task(self._restart_once(), name="dhcp-restart")
            self._restarts.add(self._restart)
            self._restart.add_done_callback(self._restarts.discard)
        await asyncio.shield(self._restart)

    async def _restart_once(self) -> None:
        await asyncio.sleep(SETTLE_SECONDS)
        self._restart = None  # from here on a change needs the next restart
        await self.child.restart()

    def _while_down(self) -> None:
        macs, addresses = self._drop_macs, self._drop_addresses
        drop_leases(self.paths.leases, macs, addresses)
        if self._feed and (macs or addresses):
            self._feed.forget(lambda lease: lease.mac in macs or lease.ip in addresses)
        self._drop_macs, self._drop_addresses, self._stale = set(), set(), set()

    def _on_line(self, line: str) -> None:
        if line.startswith("read ") and (read := self._unread.get(Path(line[5:]).name)):
            read.set()
        if " at line " in line and str(self.paths.hosts) in line and not line.startswith("duplicate"):
            log.error("dnsmasq refuses a reservation", words=line)
        else:
            log.debug("dnsmasq", words=line)


def _write(path: Path, text: str, mode: int) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.chmod(mode)
    temporary.replace(path)
