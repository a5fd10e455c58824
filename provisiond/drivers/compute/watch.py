"""What a hypervisor tells by itself: life-cycle events and consoles, brought from libvirt's event thread into asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import libvirt
import structlog

from provisiond.drivers.compute import HypervisorTarget, Machine, MachineEvent, MachineState
from provisiond.drivers.compute.connection import Connections, alive
from provisiond.drivers.compute.domains import list_machines, lookup, mark_of
from provisiond.errors import DriverRejected, DriverUnavailable

log = structlog.get_logger(__name__)

ALIVE_SECONDS = 1.0  # how often a silent connection is looked at
RETRY_SECONDS = (1.0, 30.0)  # first and longest pause before connecting again
_KINDS = {
    libvirt.VIR_DOMAIN_EVENT_DEFINED: "defined",
    libvirt.VIR_DOMAIN_EVENT_UNDEFINED: "removed",
    libvirt.VIR_DOMAIN_EVENT_STARTED: "started",
    libvirt.VIR_DOMAIN_EVENT_STOPPED: "stopped",
    libvirt.VIR_DOMAIN_EVENT_CRASHED: "crashed",
}


async def lifecycle(connections: Connections, target: HypervisorTarget) -> AsyncIterator[MachineEvent]:
    """Events of our machines, for ever. After each (re)connection the state of every one is told as started or stopped.

    A hypervisor that cannot be reached is tried again with growing pauses; DriverRejected ends it.
    """
    pause = RETRY_SECONDS[0]
    while True:
        since = time.monotonic()
        try:
            async with contextlib.aclosing(_connected(connections, target)) as events:
                async for event in events:
                    yield event
        except DriverUnavailable as error:
            if time.monotonic() - since > RETRY_SECONDS[1]:  # it had worked for a while
                pause = RETRY_SECONDS[0]
            log.warning("hypervisor.events_lost", hypervisor=target.name, error=str(error), again_in=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_SECONDS[1])


async def _connected(
    connections: Connections, target: HypervisorTarget
) -> AsyncGenerator[MachineEvent, None]:
    """Events for as long as one connection lasts."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[MachineEvent] = asyncio.Queue()

    def heard(_c: Any, domain: Any, event: int, _detail: int, _opaque: Any) -> None:
        if event in _KINDS:
            with contextlib.suppress(RuntimeError):  # the asyncio loop may have ended before libvirt's
                loop.call_soon_threadsafe(queue.put_nowait, MachineEvent(domain.UUIDString(), _KINDS[event]))

    link = await connections.get(target)

    def listen(connection: Any) -> tuple[int, list[Machine]]:
        number = link.listen(heard)  # comes first: what changes while the list is read is told after it
        try:
            return number, list_machines(connection)
        except libvirt.libvirtError:
            link.deafen(number)
            raise

    number, machines = await connections.on(link, target, "cannot listen to events", listen)
    try:
        known = {machine.uuid for machine in machines}
        for machine in machines:
            yield MachineEvent(
                machine.uuid, "started" if machine.state is MachineState.RUNNING else "stopped"
            )
        while alive(link.connection):
            try:
                async with asyncio.timeout(ALIVE_SECONDS):
                    event = await queue.get()
            except TimeoutError:
                continue
            if event.kind == "removed" or (event.uuid not in known and event.kind in ("defined", "started")):
                ours = partial(_is_ours, uuid=event.uuid)
                if await connections.run(target, "cannot read a machine", ours):
                    known.add(event.uuid)
                    if event.kind == "removed":  # and made again since: its NVRAM was cleared, no more
                        continue
            if event.uuid in known:
                if event.kind == "removed":
                    known.discard(event.uuid)
                yield event
        raise DriverUnavailable(f"hypervisor {target.name}: the connection broke")
    finally:
        with contextlib.suppress(RuntimeError):
            await connections.thread(partial(link.deafen, number))


def _is_ours(connection: Any, uuid: str) -> bool:
    domain = lookup(connection, uuid)
    return domain is not None and mark_of(domain) is not None


SILENT_SECONDS = 3.0  # a console that is silent for so long is asked after


async def console(connections: Connections, target: HypervisorTarget, uuid: str) -> AsyncIterator[bytes]:
    """Serial output until the machine stops."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    def put(data: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, data)

    def readable(stream: Any, happened: int, _opaque: Any) -> None:
        try:
            while isinstance(data := stream.recv(65536), bytes) and data:
                put(data)
            ended = isinstance(data, bytes)  # -2, not bytes: nothing more for now
        except libvirt.libvirtError:
            ended = True
        if ended or happened & (libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP):
            with contextlib.suppress(libvirt.libvirtError):
                stream.eventRemoveCallback()
            put(None)

    def attach(connection: Any) -> Any:
        stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
        connection.lookupByUUIDString(uuid).openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
        happenings = (
            libvirt.VIR_STREAM_EVENT_READABLE
            | libvirt.VIR_STREAM_EVENT_ERROR
            | libvirt.VIR_STREAM_EVENT_HANGUP
        )
        stream.eventAddCallback(happenings, readable, None)
        return stream

    try:
        stream = await connections.run(target, f"cannot open the console of machine {uuid}", attach)
    except DriverRejected as error:
        raise DriverRejected(f"{error} (a console can be read only while the machine runs)") from error

    def running(connection: Any) -> bool:
        domain = lookup(connection, uuid)
        return domain is not None and bool(domain.isActive())

    try:
        while True:
            try:
                async with asyncio.timeout(SILENT_SECONDS):
                    data = await queue.get()
            except TimeoutError:
                # libvirt was seen to lose the end of a stream: a machine that is off will say no more
                if (
                    await connections.run(target, f"cannot look at machine {uuid}", running)
                    or not queue.empty()
                ):
                    continue
                return
            if data is None:
                return
            yield data
    finally:

        def detach() -> None:
            for undo in (stream.eventRemoveCallback, stream.abort):
                with contextlib.suppress(libvirt.libvirtError):
                    undo()

        await connections.thread(detach)
