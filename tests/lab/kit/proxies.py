"""Bad networks: a UDP proxy that delays and loses packets, a TCP proxy that delays."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from tests.lab.kit.netns import Netns

HERE = "10.77.0.1"


class _Front(asyncio.DatagramProtocol):
    """Clients' side; one upstream socket per client, so that the server can tell them apart."""

    def __init__(self, server: tuple[str, int], delay: float, loss: float, seed: int) -> None:
        self.server, self.delay, self.loss = server, delay, loss
        self.dice = random.Random(seed)
        self.passed = self.lost = 0
        self.upstream: dict[tuple[str, int], asyncio.Future[asyncio.DatagramTransport]] = {}
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        if addr not in self.upstream:
            self.upstream[addr] = asyncio.ensure_future(self._connect(addr))
        if not self.lose():
            loop.call_later(self.delay, self._forward, addr, data)

    def lose(self) -> bool:
        lost = self.dice.random() < self.loss
        self.lost, self.passed = self.lost + lost, self.passed + (not lost)
        return lost

    def _forward(self, addr: tuple[str, int], data: bytes) -> None:
        self.upstream[addr].add_done_callback(lambda done: done.result().sendto(data))

    async def _connect(self, addr: tuple[str, int]) -> asyncio.DatagramTransport:
        front = self

        class Back(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, _: tuple[str, int]) -> None:
                if not front.lose():
                    asyncio.get_running_loop().call_later(front.delay, front.transport.sendto, data, addr)

        made, _ = await asyncio.get_running_loop().create_datagram_endpoint(Back, remote_addr=self.server)
        return made


@contextlib.asynccontextmanager
async def bad_udp(
    ns: Netns, port: int, *, delay: float = 0.0, loss: float = 0.0, seed: int = 1
) -> AsyncIterator[tuple[int, _Front]]:
    """The port of a proxy before HERE:``port``; ``delay`` seconds each way, ``loss`` share of packets each way."""
    loop = asyncio.get_running_loop()
    transport, front = await loop.create_datagram_endpoint(
        lambda: _Front((HERE, port), delay, loss, seed), sock=ns.udp(HERE)
    )
    try:
        yield transport.get_extra_info("sockname")[1], front
    finally:
        transport.close()
        for made in front.upstream.values():
            (await made).close()


@contextlib.asynccontextmanager
async def slow_tcp(ns: Netns, port: int, *, delay: float) -> AsyncIterator[int]:
    """The port of a proxy before HERE:``port`` that answers each piece ``delay`` seconds late."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(HERE, port)
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    server = await asyncio.start_server(serve, sock=ns.listen(HERE))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
