"""The composition root: everything the daemon is made of, put together once and taken apart in reverse.

Read ``compose`` from top to bottom to see what there is; each part is opened where it is first needed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import uvloop
from aiohttp import web
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provisiond.api.app import api_app
from provisiond.api.deps import ApiDeps
from provisiond.boot.http import BootAccessLogger
from provisiond.boot.server import BootRoom, boot_options, open_room
from provisiond.boot.tftp import TftpServer
from provisiond.config import Settings, require_boot_url
from provisiond.drivers import load
from provisiond.drivers.dhcp import Dhcp, DhcpOptions
from provisiond.errors import ConfigError
from provisiond.inventory import access, migrate
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.lifecycle.consoles import Consoles
from provisiond.lifecycle.leases import Leases
from provisiond.lifecycle.reconciler import Boundary, Reconciler
from provisiond.lifecycle.watch import Watch
from provisiond.lifecycle.world import Rooms, World
from provisiond.media.jobs import MediaJobs
from provisiond.observe.follow import History
from provisiond.observe.health import Check, database_check
from provisiond.observe.metrics import Metrics
from provisiond.observe.notices import Notices, open_targets
from provisiond.rollouts.controller import Rollouts
from provisiond.rollouts.shadow import ShadowRuns
from provisiond.templating.polling import Poller
from provisiond.templating.release import Renderings
from provisiond.templating.sources import Sources

log = structlog.get_logger(__name__)

ENGINE_SILENT_SECONDS = 30.0  # and three sweeps, where those are longer


@dataclass
class Daemon:
    """A running daemon. ``api_url`` is where it answers, with the port it was really given."""

    settings: Settings
    world: World
    reconciler: Reconciler
    history: History
    api_url: str
    boot_url: str


@asynccontextmanager
async def compose(settings: Settings, *, boundary: Boundary | None = None) -> AsyncIterator[Daemon]:
    """Open everything, yield the running daemon, and close it in reverse order. ``boundary`` is for tests (see Reconciler).

    Raises ConfigError, Conflict (another daemon has the database file), DriverError (DHCP cannot start).
    """
    async with AsyncExitStack() as stack:
        _make_directories(settings)
        store = Store(settings.database_url(), pool_size=settings.database.pool_size)
        await store.open()  # first, as it takes the SQLite file: nobody migrates it under a daemon that runs
        stack.push_async_callback(store.close)
        await asyncio.to_thread(migrate.upgrade, settings.database_url())
        box = SecretBox.open(settings.state.key_file)
        if await access.first_admin_token(store, settings.state.admin_token_file):
            log.info("daemon.first_start", admin_token_file=str(settings.state.admin_token_file))

        renderings = await Renderings.open(store, settings.templates, [_ssh_public_key(settings)])
        stack.push_async_callback(renderings.close)
        rooms = Rooms(lambda room, name: _driver(settings, room, name))
        stack.push_async_callback(rooms.close)
        consoles = Consoles(settings.state.console_dir)
        stack.push_async_callback(consoles.close)
        dhcp = _dhcp(settings)
        world = World(
            settings=settings, store=store, box=box, rooms=rooms, dhcp=dhcp, renderings=renderings,
            boot_url=settings.boot.url.rstrip("/"), consoles=consoles,
        )  # fmt: skip

        metrics, checks = Metrics(store), {"database": database_check(store)}
        history = History(store)
        history.listen(metrics.count_events)
        await history.start()
        stack.push_async_callback(history.close)
        watch = Watch(world)
        if settings.boot.enabled:
            room = await _boot_doors(stack, settings, world, metrics)
            leases = Leases(
                store, dhcp, boot_options(room.loaders, world.boot_url, settings.boot.loader), watch.on_lease
            )
            await leases.start()
            stack.push_async_callback(leases.stop)
            checks["dhcp"] = _dhcp_check(dhcp)

        reconciler = Reconciler(world, boundary=boundary)
        await reconciler.start()
        stack.push_async_callback(reconciler.stop, settings.server.shutdown_seconds)
        await watch.start()
        stack.push_async_callback(watch.stop)
        checks["engine"] = _engine_check(reconciler)
        metrics.source("engine", lambda: {"busy": reconciler.busy, "stale_writes": reconciler.stale})

        rollouts = Rollouts(
            store, settings.rollout, reconciler.owner, lease_seconds=settings.engine.lease_seconds
        )
        history.listen(rollouts.heard)
        await rollouts.start()
        stack.push_async_callback(rollouts.stop)

        shadows = ShadowRuns(world, reconciler.owner, workers=settings.templates.shadow_workers)
        await shadows.start()
        stack.push_async_callback(shadows.stop)

        notices = Notices(
            store, history, open_targets(settings.notify), settings.notify.kinds, reconciler.owner
        )
        await notices.start()
        stack.push_async_callback(notices.stop)
        metrics.source("notices", lambda: notices.counts)

        jobs = MediaJobs(settings, store)
        stack.push_async_callback(jobs.close)
        poller = Poller(store, Sources(store, box, settings))
        await poller.start()
        stack.push_async_callback(poller.stop)
        deps = ApiDeps(
            store, box, settings, history, metrics, consoles, jobs, renderings, world.boot_url, checks
        )
        api_url = await _api_door(stack, settings, deps)
        yield Daemon(settings, world, reconciler, history, api_url, world.boot_url)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT."""
    log_to(settings)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with compose(settings) as daemon:
        log.info("daemon.ready", api=daemon.api_url, boot=daemon.boot_url, engine=daemon.reconciler.owner)
        _notify("READY=1")
        await stopping.wait()
        _notify("STOPPING=1")
        log.info("daemon.stopping", busy=daemon.reconciler.busy)
    log.info("daemon.stopped")


# --- doors ---------------------------------------------------------------------------------------------


async def _boot_doors(stack: AsyncExitStack, settings: Settings, world: World, metrics: Metrics) -> BootRoom:
    """HTTP boot and TFTP; settles ``world.boot_url`` when the port is known."""
    room = open_room(world)
    metrics.source("images", room.shares.figures)
    runner = web.AppRunner(
        room.app,
        access_log_class=BootAccessLogger,
        access_log=logging.getLogger("provisiond.boot"),
        shutdown_timeout=settings.server.shutdown_seconds,  # a machine that lost its power leaves a call that never ends
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    port = await _listen(runner, "boot", settings.boot.listen, settings.boot.http_port)
    if not world.boot_url:
        require_boot_url(settings)
        world.boot_url = f"http://{_bracketed(settings.boot.listen)}:{port}"
    if settings.boot.tftp_listen:
        tftp = TftpServer(
            settings.boot.tftp_listen, settings.boot.tftp_port, room.files.lookup,
            max_transfers=settings.boot.tftp_max_transfers, max_per_client=settings.boot.tftp_max_per_client,
        )  # fmt: skip
        await tftp.start()
        stack.push_async_callback(tftp.close)
        names = ("active", "transfers", "errors", "bytes", "missing", "refused", "malformed", "repeats")
        metrics.source("tftp", lambda: {name: float(getattr(tftp, name)) for name in names})
    return room


async def _api_door(stack: AsyncExitStack, settings: Settings, deps: ApiDeps) -> str:
    runner = web.AppRunner(api_app(deps), access_log=None, shutdown_timeout=settings.server.shutdown_seconds)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    context = None
    if settings.server.tls_cert and settings.server.tls_key:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(settings.server.tls_cert, settings.server.tls_key)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(
                f"server.tls_cert {settings.server.tls_cert} with server.tls_key {settings.server.tls_key}: {error.strerror or error}"
            ) from error
    port = await _listen(runner, "server", settings.server.listen, settings.server.port, context)
    if settings.server.socket:
        await _listen_on_socket(runner, settings.server.socket)
    return f"{'https' if context else 'http'}://{_bracketed(settings.server.listen)}:{port}"


async def _listen(
    runner: web.AppRunner, section: str, host: str, port: int, context: ssl.SSLContext | None = None
) -> int:
    """Listen, and return the port really taken."""
    try:
        await web.TCPSite(runner, host, port, ssl_context=context, backlog=1024).start()
    except OSError as error:
        raise ConfigError(
            f"{section}.listen: cannot listen on {host} port {port}: {error.strerror}; is another provisiond running there?"
        ) from error
    return int(runner.addresses[0][1])


async def _listen_on_socket(runner: web.AppRunner, path: Path) -> None:
    """Listen on a unix socket. One left by a killed daemon is replaced; the database's lock has shown that it is no other's."""
    try:
        if path.is_socket():
            path.unlink()
        await web.UnixSite(runner, path, backlog=1024).start()
        path.chmod(0o660)
    except OSError as error:
        raise ConfigError(f"server.socket: cannot listen on {path}: {error.strerror}") from error


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# --- parts -----------------------------------------------------------------------------------------------


def _make_directories(settings: Settings) -> None:
    state = settings.state
    try:
        for path in (state.dir, state.media_dir, state.image_dir, state.console_dir, state.run_dir):
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise ConfigError(f"state.dir: cannot make {error.filename}: {error.strerror}") from error


def _driver(settings: Settings, room: str, name: str) -> Any:
    """A driver by room and name. Handover keeps its runs in a directory of its own."""
    made = load(room, name)
    if room == "handover":
        runs = settings.state.run_dir / "handover"
        return made(runs) if name == "fake" else made(runs, sources=settings.handover.sources)
    return made()


def _dhcp(settings: Settings) -> Any:
    options = DhcpOptions(
        run_dir=settings.state.run_dir / "dhcp", interfaces=tuple(settings.dhcp.interfaces), proxy=settings.dhcp.proxy,
        dnsmasq=settings.dhcp.dnsmasq, lease_seconds=settings.dhcp.lease_seconds,
    )  # fmt: skip
    return load("dhcp", settings.dhcp.driver)(options)


def _ssh_public_key(settings: Settings) -> str:
    """The public half of the key handover logs in with; the pair is made at the first start, private part 0600."""
    path = settings.handover.ssh_key or settings.state.dir / "ssh" / "id_ed25519"
    if path.exists():
        try:
            key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
        except (ValueError, OSError, UnsupportedAlgorithm) as error:
            raise ConfigError(
                f"handover.ssh_key: {path} cannot be read or is no OpenSSH private key without a passphrase: {error}"
            ) from None
    else:
        key = Ed25519PrivateKey.generate()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode()} provisiond"


def _dhcp_check(dhcp: Dhcp) -> Check:
    async def check() -> str:
        return "machines get no answer from DHCP; the log says why" if dhcp.problem else ""

    return check


def _engine_check(reconciler: Reconciler) -> Check:
    async def check() -> str:
        silent = time.monotonic() - reconciler.looked_at
        return (
            ""
            if silent < max(ENGINE_SILENT_SECONDS, 3 * reconciler.settings.sweep_seconds)
            else f"the engine has not looked for due hosts for {silent:.0f} s"
        )

    return check


def log_to(settings: Settings) -> None:
    """JSON lines, or text for people, on standard error; the standard library's loggers go the same way."""
    level = getattr(logging, settings.log.level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: Any = (
        structlog.processors.JSONRenderer()
        if settings.log.format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            *shared,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)


def _notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); elsewhere nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
