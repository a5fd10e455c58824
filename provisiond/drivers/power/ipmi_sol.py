"""Serial over LAN: what the machine writes on its serial port, received over a session of its own.

The log-in runs in a thread; after it the socket is read by the event loop, so that open consoles cost no threads.
We only listen: nothing is ever sent to the machine's port. Source: IPMI v2.0 rev. 1.1, chapter 15 and 24.1 to 24.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import structlog
from pyghmi.exceptions import IpmiException

from provisiond.drivers.power import PowerTarget
from provisiond.drivers.power.ipmi_links import OPTIONS, Completion, Links, ask
from provisiond.drivers.power.ipmi_session import Session
from provisiond.drivers.power.options import Options
from provisiond.errors import DriverUnavailable

log = structlog.get_logger(__name__)

APP, ACTIVATE, DEACTIVATE, INSTANCE_INFO = 0x06, 0x48, 0x49, 0x4B
SOL = (1, 1)  # payload type, instance
ENCRYPTED = 0xC0
IN_USE, DISABLED, TOO_MANY = 0x80, 0x81, 0x82  # completion codes of Activate Payload, table 24-2
NODE_BUSY, NO_COMMAND = 0xC0, 0xC1  # as the codes above are passed on, table 5-2
ALIVE = 15.0  # seconds between two questions whether the payload is still ours
PAUSE_FIRST, PAUSE_LAST = 1.0, 30.0
BACKLOG = 4096  # packets kept for a slow reader; then the oldest go


async def listen(links: Links, target: PowerTarget) -> AsyncIterator[bytes]:
    """The bytes as they come; logs in again, for ever, when the controller breaks off.

    Raises Unsupported where there is no serial over LAN, DriverRejected when the log-in is refused.
    """
    steal = Options(target, OPTIONS).flag("steal_console", True)
    pause = PAUSE_FIRST
    while True:
        try:
            session = await links.run(target, lambda session, _link: _activate(session, steal), apart=True)
        except DriverUnavailable as error:
            log.info("power.console_waits", host=target.host, reason=str(error), seconds=pause)
        else:
            started = time.monotonic()
            console = _Console(session)
            try:
                async for chunk in console.chunks():
                    yield chunk
            finally:
                console.close()
            log.info("power.console_broken", host=target.host, reason=session.errormsg)
            if time.monotonic() - started > PAUSE_LAST:
                pause = PAUSE_FIRST
        await asyncio.sleep(pause)
        pause = min(pause * 2, PAUSE_LAST)


def _activate(session: Session, steal: bool) -> Session:
    """Ask for the payload; whoever has it (often ourselves before a restart) loses it when ``steal``."""
    try:
        _ask(session)
    except Completion as error:
        if error.code != IN_USE or not steal:
            raise
        with contextlib.suppress(Completion):
            ask(session, APP, DEACTIVATE, (*SOL, 0, 0, 0, 0))
        _ask(session)
    return session


def _ask(session: Session) -> None:
    try:
        ask(session, APP, ACTIVATE, (*SOL, ENCRYPTED, 0, 0, 0))
    except Completion as error:
        said = {
            IN_USE: (IN_USE, "another client has the serial console (steal_console=true takes it over)"),
            DISABLED: (
                NO_COMMAND,
                "serial over LAN is switched off in the BMC, or it has none: switch it on there",
            ),
            TOO_MANY: (NODE_BUSY, "it has no serial console session free"),
        }
        if error.code not in said:
            raise
        raise Completion(*said[error.code]) from None


class _Console:
    """An activated payload, read by the event loop."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._packets: asyncio.Queue[bytes] = asyncio.Queue(BACKLOG)
        self._last_sequence = self._last_size = 0
        self._ask_alive = time.monotonic() + ALIVE
        self._wake = asyncio.Event()
        self._descriptor: int = session.socket.fileno()
        session.sol_handler = self._packet

    async def chunks(self) -> AsyncIterator[bytes]:
        """Until the session breaks."""
        self._loop.add_reader(self._descriptor, self._readable)
        self._readable()
        while True:
            while not self._packets.empty():
                yield self._packets.get_nowait()
            if self._session.broken:
                return
            due = min(self._session.due(), self._ask_alive)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._wake.wait()
            self._wake.clear()
            self._session.tick()
            if time.monotonic() >= self._ask_alive and not self._session.broken:
                self._ask_alive = time.monotonic() + ALIVE
                with contextlib.suppress(IpmiException):
                    self._session.raw_command(
                        netfn=APP, command=INSTANCE_INFO, data=SOL, callback=self._alive
                    )

    def close(self) -> None:
        """Give the payload and the session back; sends two packets and waits for nothing."""
        self._loop.remove_reader(
            self._descriptor
        )  # before the socket is closed: its number is soon another's
        self._session.logout()

    def _readable(self) -> None:
        self._session.receive()
        if self._session.broken:
            self._loop.remove_reader(self._descriptor)
        self._wake.set()

    def _alive(self, answer: dict[str, object]) -> None:
        self._session.incommand = False
        data = answer.get("data")
        if answer.get("code") or not isinstance(data, bytearray) or len(data) < 4:
            return  # it does not know the question; the console lives as long as the session
        if int.from_bytes(data[:4], "little") not in (self._session.sessionid, self._session.localsid):
            self._session._mark_broken("another client took the serial console over")

    def _packet(self, payload: bytearray) -> None:
        """One packet (table 15-2): sequence, acknowledged sequence, accepted count, status, characters."""
        if len(payload) < 4:
            return
        sequence, text = payload[0] & 0x0F, bytes(payload[4:])
        if payload[3] & 0x10:
            self._session._mark_broken("the BMC ended the serial console")
            return
        if not sequence:
            return
        # a packet that comes again, since our word was lost, may hold more than the first time
        fresh = text[self._last_size :] if sequence == self._last_sequence else text
        self._last_sequence, self._last_size = sequence, len(text)
        self._session.send_payload(
            bytearray((0, sequence, min(len(text), 255), 0)), payload_type=1, retry=False
        )
        if fresh:
            if self._packets.full():
                self._packets.get_nowait()
            self._packets.put_nowait(fresh)
