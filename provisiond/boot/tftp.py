"""The TFTP server: read-only, one event loop, a socket for each transfer and no thread or task for it.

Each listening socket hears for which of its addresses a request was meant, and the transfer answers from that one (RFC 1122
section 4.1.3.5), so that a server with several networks works. The sockets of all transfers hang in one epoll of their own:
the loop is woken once for all that is ready, and a block costs a receive and a send.
"""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from provisiond.boot.paths import without_token
from provisiond.boot.tftp_request import NOT_FOUND, Refused, Request, negotiate, parse
from provisiond.boot.tftp_socket import SocketFactory, asked, connected, listening, reply, udp
from provisiond.boot.tftp_transfer import Content, Transfer
from provisiond.errors import ConfigError

log = structlog.get_logger(__name__)

Lookup = Callable[[str, str], Awaitable[bytes | Path | None]]

LOOKUP_SECONDS = 10.0
SWEEP_SECONDS = 0.1  # how finely repetitions are timed
FRESH_SECONDS = 1.0  # a request that comes twice while its transfer runs this well is a duplicate
_BATCH = 64  # datagrams or transfers taken before others have their turn


@dataclass
class _Held:
    """A request that is being answered; ``transfer`` None while its file is looked up."""

    datagram: bytes
    client: str
    transfer: Transfer | None = None


class TftpServer:
    """Serves what ``lookup(path, client address)`` gives: bytes, the path of a regular file, or None (not found).

    ``listen`` are addresses, ``port`` 0 takes a free one. Beyond ``max_transfers`` at once, or ``max_per_client`` from one
    address, a request is left without an answer: clients ask again, and a boot storm is then served in turn.
    ``new_socket(family)`` makes the UDP sockets, in another network namespace if the caller likes.

    Counters, since the start: ``transfers`` that ended well, ``errors`` that did not, ``bytes`` of files sent, ``missing``
    (no such file), ``refused`` (over a limit), ``malformed`` requests, ``repeats`` (packets sent again).
    """

    def __init__(
        self,
        listen: Sequence[str],
        port: int,
        lookup: Lookup,
        *,
        max_transfers: int = 1000,
        max_per_client: int = 16,
        new_socket: SocketFactory | None = None,
    ) -> None:
        self.listen, self.port = tuple(listen), port
        self.max_transfers, self.max_per_client = max_transfers, max_per_client
        self.transfers = self.errors = self.bytes = self.missing = 0
        self.refused = self.malformed = self.repeats = 0
        self._lookup, self._new_socket = lookup, new_socket or udp
        self._listeners: list[socket.socket] = []
        self._held: dict[tuple[Any, str], _Held] = {}
        self._per_client: Counter[str] = Counter()
        self._running: dict[int, tuple[tuple[Any, str], Transfer]] = {}  # by descriptor
        self._lookups: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._epoll: select.epoll
        self._loop: asyncio.AbstractEventLoop
        self._warned = 0.0

    @property
    def active(self) -> int:
        """Transfers under way."""
        return len(self._running)

    async def start(self) -> None:
        """Listen. Raises ConfigError naming the address that cannot be listened on."""
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._loop.add_reader(self._epoll.fileno(), self._ready)
        for address in self.listen:
            try:
                listener = listening(address, self.port, self._new_socket)
            except OSError as problem:
                await self.close()
                raise ConfigError(
                    f"boot.tftp_listen: cannot listen on {address}, UDP port {self.port}: {problem.strerror or problem}; "
                    "is another TFTP server running, or the privilege to use a port below 1024 missing?"
                ) from problem
            self.port = self.port or listener.getsockname()[1]
            self._listeners.append(listener)
            self._loop.add_reader(listener.fileno(), self._requests, listener)

    async def close(self) -> None:
        """Stop listening and end the transfers under way."""
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)
        for descriptor, (_, transfer) in list(self._running.items()):
            transfer.abort(0, "the server is stopping")
            self._finish(descriptor)
        if self._sweeper:
            self._sweeper.cancel()
            self._sweeper = None
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    # --- requests -------------------------------------------------------------------------------------

    def _requests(self, listener: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _, peer = listener.recvmsg(2048, 128)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP answer to an error that we sent
            local, source = asked(ancillary)
            self._request(listener, data, peer, local, source)

    def _request(self, listener: socket.socket, data: bytes, peer: Any, local: str, source: Any) -> None:
        key = (peer, local)
        held = self._held.get(key)
        if held and held.datagram == data and _fresh(held):
            return  # it came twice; the transfer repeats by itself what got lost
        try:
            request = parse(data)
        except Refused as refused:
            self.malformed += 1
            reply(listener, peer, source, refused.code, refused.message)
            return
        if request is None:
            self.malformed += 1
            return
        if held:
            self._forget(key)  # the client has begun anew, from the same port
        client = peer[0]
        if len(self._held) >= self.max_transfers or self._per_client[client] >= self.max_per_client:
            self._over(client)
            return
        held = self._held[key] = _Held(data, client)
        self._per_client[client] += 1
        task = self._loop.create_task(self._answer(listener, key, held, request, source))
        self._lookups.add(task)
        task.add_done_callback(self._lookups.discard)

    def _over(self, client: str) -> None:
        self.refused += 1
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            log.warning(
                "TFTP is at a limit; requests wait",
                client=client,
                transfers=len(self._held),
                from_client=self._per_client[client],
                refused=self.refused,
            )

    async def _answer(
        self, listener: socket.socket, key: tuple[Any, str], held: _Held, request: Request, source: Any
    ) -> None:
        """Look the file up and begin its transfer; a client that has gone on to another request is left alone."""
        peer, local = key
        code, words = 0, "internal error"
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self._lookup(request.path, held.client)
            if found is not None:
                if self._held.get(key) is held:
                    self._begin(key, held, request, Content(found), local)
                return
            code, words = NOT_FOUND, "file not found"
        except FileNotFoundError:
            code, words = NOT_FOUND, "file not found"
        except Exception as problem:
            self.errors += 1
            log.error(
                "TFTP cannot answer",
                path=without_token(request.path),
                client=held.client,
                cause=str(problem),
                exc_info=problem,
            )
        except asyncio.CancelledError:
            self._release(key, held)
            raise
        if code == NOT_FOUND:
            self.missing += 1
            log.info("TFTP has no such file", path=without_token(request.path), client=held.client)
        self._release(key, held)
        if listener.fileno() >= 0:
            reply(listener, peer, source, code, words)

    def _begin(
        self, key: tuple[Any, str], held: _Held, request: Request, content: Content, local: str
    ) -> None:
        peer, _ = key
        try:
            sock = connected(local, peer, self._new_socket)
        except OSError:
            content.close()
            raise
        transfer = held.transfer = Transfer(
            sock, content, negotiate(request, content.size), request.path, held.client
        )
        self._running[sock.fileno()] = key, transfer
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        transfer.begin()
        if transfer.done:
            self._finish(sock.fileno())
        elif self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    # --- transfers ------------------------------------------------------------------------------------

    def _ready(self) -> None:
        for descriptor, _ in self._epoll.poll(0, _BATCH):
            transfer = self._running[descriptor][1]
            transfer.readable()
            if transfer.done:
                self._finish(descriptor)

    def _sweep(self) -> None:
        now = time.monotonic()
        late = [descriptor for descriptor, (_, transfer) in self._running.items() if transfer.deadline <= now]
        for descriptor in late:
            transfer = self._running[descriptor][1]
            transfer.overdue()
            if transfer.done:
                self._finish(descriptor)
        again = self._running and not self._epoll.closed
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if again else None

    def _finish(self, descriptor: int) -> None:
        key, transfer = self._running.pop(descriptor)
        self._epoll.unregister(descriptor)
        transfer.close()
        self._release(key, self._held.get(key))
        self.bytes += transfer.sent
        self.repeats += transfer.repeats
        told = {
            "path": without_token(transfer.path),
            "client": transfer.client,
            "bytes": transfer.sent,
            "repeats": transfer.repeats,
        }
        if transfer.failure:
            self.errors += 1
            say = log.info if transfer.untouched else log.warning  # anybody can make us begin a transfer
            say("TFTP transfer failed", cause=transfer.failure, **told)
        else:
            self.transfers += 1
            log.info("TFTP transfer done", **told)

    def _forget(self, key: tuple[Any, str]) -> None:
        held = self._held[key]
        for descriptor, (_, transfer) in list(self._running.items()):
            if transfer is held.transfer:
                transfer.abort(0, "the client asked anew")
                self._finish(descriptor)
                return
        self._release(key, held)

    def _release(self, key: tuple[Any, str], held: _Held | None) -> None:
        if held is not None and self._held.get(key) is held:
            del self._held[key]
            self._per_client[held.client] -= 1
            if not self._per_client[held.client]:
                del self._per_client[held.client]


def _fresh(held: _Held) -> bool:
    transfer = held.transfer
    return transfer is None or transfer.untouched or time.monotonic() - transfer.touched < FRESH_SECONDS
