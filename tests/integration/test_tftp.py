"""The TFTP server with real clients (tftp-hpa, curl, tftpy), a path that loses, a flood of rubbish, and several addresses."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
import structlog
import tftpy

from provisiond.boot.tftp import TftpServer
from provisiond.errors import ConfigError
from tests.lab.kit.fixtures import need
from tests.lab.kit.netns import Netns

SIZES = [0, 1, 511, 512, 513, 1024, 1468, 1468 * 7, 100_000]


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


class Files:
    """What is served: ``mem-N`` from memory and ``file-N`` from the disk, N random bytes each."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[tuple[str, str]] = []
        self.before: Callable[[], asyncio.Future[None] | None] = lambda: None

    async def lookup(self, path: str, client: str) -> bytes | Path | None:
        self.asked.append((path, client))
        if wait := self.before():
            await wait
        kind, _, size = path.rpartition("/")[2].rpartition("-")
        if kind == "mem":
            return content(int(size))
        if kind == "file":
            file = self.directory / path
            if not file.exists():
                file.write_bytes(content(int(size)))
            return file
        if kind == "dir":
            return self.directory
        if kind == "gone":
            return self.directory / "gone"
        if kind == "bug":
            raise RuntimeError("a bug in the lookup")
        return None


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
async def server(files: Files) -> AsyncIterator[TftpServer]:
    tftp = TftpServer(["127.0.0.1", "::1"], 0, files.lookup)
    await tftp.start()
    yield tftp
    await tftp.close()
    assert tftp.active == 0 and not tftp._held and not tftp._per_client


async def run(*argv: str | Path, cwd: Path | None = None, wrong: bool | None = False) -> str:
    process = await asyncio.create_subprocess_exec(
        *argv, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert wrong is None or bool(process.returncode) == wrong, out.decode()
    return out.decode()


def digest(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


async def test_a_token_is_not_logged(server: TftpServer) -> None:
    """Neither of a transfer that went well nor of one without a file: GRUB and PXELINUX ask below the build's token."""
    need("curl")
    token = "t0ken" * 8
    url = f"tftp://127.0.0.1:{server.port}/boot/{token}"
    with structlog.testing.capture_logs() as lines:
        await run("curl", "-sS", "-o", "/dev/null", f"{url}/mem-512")
        await run("curl", "-sS", f"{url}/absent", wrong=True)
        async with asyncio.timeout(30):
            while server.active:
                await asyncio.sleep(0.01)
    assert {line["path"] for line in lines} == {"boot/TOKEN/mem-512", "boot/TOKEN/absent"}
    assert token not in str(lines)


# --- real clients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mem", "file"])
@pytest.mark.parametrize("options", [(), ("--tftp-blksize", "1468"), ("--tftp-no-options",)])
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_curl(
    server: TftpServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: tuple[str, ...],
    host: str,
) -> None:
    """curl gets every size, with its options and without, over IPv4 and IPv6."""
    need("curl")
    monkeypatch.setattr("provisiond.boot.tftp_transfer.TIMEOUT", 20.0)  # a slow machine is no lost packet
    for size in SIZES:
        out = tmp_path / f"got-{size}"
        await run("curl", "-sS", *options, "-o", out, f"tftp://{host}:{server.port}/{kind}-{size}")
        assert digest(out.read_bytes() if size else b"") == digest(content(size)), size
    async with asyncio.timeout(30):  # curl may end before its last acknowledgement is read
        while server.active:
            await asyncio.sleep(0.01)
    assert (server.transfers, server.errors, server.repeats) == (len(SIZES), 0, 0)
    assert server.bytes == sum(SIZES)


@pytest.mark.parametrize("mode", ["octet", "netascii"])
async def test_tftp_hpa(server: TftpServer, tmp_path: Path, mode: str) -> None:
    """tftp-hpa gets every size; its error for a missing file is ours."""
    need("tftp")
    for size in SIZES if mode == "octet" else [0]:
        await run(
            "tftp",
            "-4",
            "-m",
            mode,
            "127.0.0.1",
            str(server.port),
            "-c",
            "get",
            f"file-{size}",
            f"got-{size}",
            cwd=tmp_path,
        )
        assert digest((tmp_path / f"got-{size}").read_bytes()) == digest(content(size))
    said = await run(
        "tftp", "-4", "127.0.0.1", str(server.port), "-c", "get", "nosuch", cwd=tmp_path, wrong=None
    )
    assert "Error code 1: file not found" in said
    (tmp_path / "mine").write_text("x")
    said = await run(
        "tftp", "-4", "127.0.0.1", str(server.port), "-c", "put", "mine", cwd=tmp_path, wrong=None
    )
    assert "Error code 2: this server is read-only" in said


@pytest.mark.parametrize("options", [{}, {"blksize": 1428}, {"blksize": 8192, "tsize": 0}])
async def test_tftpys_client(server: TftpServer, tmp_path: Path, options: dict[str, int]) -> None:
    """tftpy's client gets every size."""
    for size in SIZES:
        client = tftpy.TftpClient("127.0.0.1", server.port, options)
        await asyncio.to_thread(client.download, f"mem-{size}", str(tmp_path / "got"), timeout=30)
        assert digest((tmp_path / "got").read_bytes()) == digest(content(size)), size


async def test_block_numbers_roll_over_with_curl(server: TftpServer, tmp_path: Path) -> None:
    """More than 65,535 blocks of 512 bytes."""
    need("curl")
    size = 65_537 * 512 + 7
    await run(
        "curl",
        "-sS",
        "--tftp-blksize",
        "512",
        "-o",
        tmp_path / "got",
        f"tftp://127.0.0.1:{server.port}/file-{size}",
    )
    assert digest((tmp_path / "got").read_bytes()) == digest(content(size))


# --- a client of our own, for what those cannot do -------------------------------------------------------


class Raw(asyncio.DatagramProtocol):
    """A client by hand: ``ask``, then ``take`` and ``tell``."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[tuple[bytes, tuple[str, int]]] = asyncio.Queue()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.came.put_nowait((data, addr))

    def ask(self, address: tuple[str, int], name: str, **options: int) -> None:
        words = [name, "octet", *(str(word) for pair in options.items() for word in pair)]
        self.transport.sendto(b"\0\1" + "\0".join(words).encode() + b"\0", address)

    async def take(self, seconds: float = 30) -> tuple[bytes, tuple[str, int]]:
        return await asyncio.wait_for(self.came.get(), seconds)

    def tell(self, number: int, address: tuple[str, int]) -> None:
        self.transport.sendto(b"\0\4" + (number & 0xFFFF).to_bytes(2, "big"), address)


@contextlib.asynccontextmanager
async def raw(local: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Raw]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(Raw, (local, port))
    try:
        yield protocol
    finally:
        transport.close()


async def fetch(client: Raw, address: tuple[str, int], name: str, **options: int) -> bytes:
    """A whole file, by RFC 1350, 2347 and 7440; asks again when it hears nothing."""
    blksize, window = options.get("blksize", 512), options.get("windowsize", 1)
    got, count, since, peer = bytearray(), 0, 0, None
    client.ask(address, name, **options)
    while True:
        try:
            data, sender = await client.take(1.5)
        except TimeoutError:
            if peer is None:
                client.ask(address, name, **options)
            else:
                client.tell(count, peer)
            continue
        peer = peer or sender
        assert sender == peer
        assert data[1] != 5, data
        if data[1] == 6:
            client.tell(0, peer)
            continue
        if data[2:4] != ((count + 1) & 0xFFFF).to_bytes(2, "big"):
            since = 0
            client.tell(count, peer)
            continue
        got += data[4:]
        count, since = count + 1, since + 1
        if len(data) - 4 < blksize:
            client.tell(count, peer)
            return bytes(got)
        if since == window:
            since = 0
            client.tell(count, peer)


@pytest.mark.parametrize("window", [1, 4, 16, 64])
@pytest.mark.parametrize("size", [0, 1468 * 16, 500_001])
async def test_windows(server: TftpServer, window: int, size: int) -> None:
    """RFC 7440: many blocks for one acknowledgement."""
    async with raw() as client:
        got = await fetch(client, ("127.0.0.1", server.port), f"file-{size}", blksize=1468, windowsize=window)
    assert got == content(size)


async def test_roll_over_with_a_window(server: TftpServer) -> None:
    """More than 65,535 blocks in windows of 16."""
    size = 70_000 * 8 + 1
    async with raw() as client:
        assert await fetch(
            client, ("127.0.0.1", server.port), f"file-{size}", blksize=8, windowsize=16
        ) == content(size)


class Lossy(asyncio.DatagramProtocol):
    """A UDP path that drops and doubles: one port per client, a relay to the server and to the transfer's own port."""

    def __init__(self, server: tuple[str, int], loss: float) -> None:
        self.server, self.chance, self.loss = server, random.Random(7), loss
        self.client: tuple[str, int] | None = None
        self.peer: tuple[str, int] | None = None
        self.dropped = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self.client in (None, addr) and addr != self.peer:
            self.client, target = addr, self.peer or self.server
        else:
            self.peer, target = addr, self.client
        if self.chance.random() < self.loss:
            self.dropped += 1
            return
        self.transport.sendto(data, target)
        if self.chance.random() < self.loss:
            self.transport.sendto(data, target)


@pytest.mark.parametrize(("window", "loss"), [(1, 0.01), (4, 0.02), (16, 0.02)])
async def test_a_lossy_path(server: TftpServer, window: int, loss: float) -> None:
    """Lost and doubled datagrams cost time, never bytes."""
    loop = asyncio.get_running_loop()
    transport, path = await loop.create_datagram_endpoint(
        lambda: Lossy(("127.0.0.1", server.port), loss), ("127.0.0.1", 0)
    )
    async with raw() as client:
        address = transport.get_extra_info("sockname")
        got = await asyncio.wait_for(
            fetch(client, address, "file-300001", blksize=1024, windowsize=window), 100
        )
    transport.close()
    assert got == content(300_001)
    await asyncio.sleep(0.1)
    assert path.dropped > 0 and server.repeats > 0


async def test_the_answer_comes_from_the_address_asked(files: Files) -> None:
    """On a wildcard socket each of the server's addresses answers for itself, errors too."""
    server = TftpServer(["0.0.0.0"], 0, files.lookup)
    await server.start()
    async with raw() as client:
        for host in ("127.0.0.1", "127.0.0.2", "127.9.9.9"):
            client.ask((host, server.port), "mem-3")
            data, sender = await client.take()
            assert (data, sender[0]) == (b"\0\3\0\1" + content(3), host)
            assert sender[1] != server.port
            client.tell(1, sender)
            client.ask((host, server.port), "nosuch")
            assert (await client.take())[1] == (host, server.port)
    await server.close()


async def test_errors_are_told(server: TftpServer, files: Files) -> None:
    """Missing, outside, not a file, a bug: each an ERROR, and none ends the server."""
    async with raw() as client:
        for name, answer in [
            ("nosuch", b"\0\5\0\1file not found\0"),
            ("gone-1", b"\0\5\0\1file not found\0"),
            ("../etc/passwd", b"\0\5\0\2the file name leads out of the tree\0"),
            ("dir-1", b"\0\5\0\0internal error\0"),
            ("bug-1", b"\0\5\0\0internal error\0"),
        ]:
            client.ask(("127.0.0.1", server.port), name)
            assert (await client.take())[0] == answer, name
        assert await fetch(client, ("127.0.0.1", server.port), "/mem-5") == content(5)
    assert (server.missing, server.malformed, server.errors) == (2, 1, 2)
    assert files.asked[-1] == ("mem-5", "127.0.0.1")


async def test_a_doubled_request_is_one_transfer(server: TftpServer, files: Files) -> None:
    """The same request twice, also while its file is looked up, is answered once; another one replaces it."""
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    files.before = lambda: gate
    async with raw() as client:
        here = ("127.0.0.1", server.port)
        client.ask(here, "mem-600")
        client.ask(here, "mem-600")
        await asyncio.sleep(0.1)
        gate.set_result(None)
        _, first = await client.take()
        client.ask(here, "mem-600")
        with pytest.raises(TimeoutError):
            await client.take(0.3)
        assert server.active == 1
        client.ask(here, "mem-2")  # as a ROM that gave up and begins anew from the same port
        packets = [await client.take(), await client.take()]
        assert {data[:2]: sender == first for data, sender in packets} == {b"\0\5": True, b"\0\3": False}
        assert server.active == 1
        client.tell(1, packets[1][1])
        await asyncio.sleep(0.1)
    assert (server.active, server.transfers, server.errors) == (0, 1, 1)


async def test_limits_let_requests_wait(files: Files) -> None:
    """Over a limit there is no answer and no error; room again, the repeated request is served."""
    server = TftpServer(["127.0.0.1"], 0, files.lookup, max_transfers=3, max_per_client=2)
    await server.start()
    here = ("127.0.0.1", server.port)
    async with raw() as a, raw() as b, raw() as c, raw("127.0.0.2") as d, raw("127.0.0.3") as e:
        for client in (a, b, c):
            client.ask(here, "mem-600")
        await asyncio.sleep(0.1)
        assert (server.active, server.refused) == (2, 1)  # two from one client
        d.ask(here, "mem-600")
        e.ask(here, "mem-600")
        await asyncio.sleep(0.1)
        assert (server.active, server.refused) == (3, 2)  # three in all
        _, peer = await a.take()
        a.transport.sendto(b"\0\5\0\0stop\0", peer)
        await asyncio.sleep(0.1)
        assert await fetch(c, here, "mem-600") == content(600)
    await server.close()
    assert server.active == 0


async def test_a_silent_client_is_given_up(server: TftpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transfer that nobody acknowledges is repeated and then ended."""
    monkeypatch.setattr("provisiond.boot.tftp_transfer.TIMEOUT", 0.05)
    monkeypatch.setattr("provisiond.boot.tftp_transfer.LONGEST", 0.1)
    async with raw() as client:
        client.ask(("127.0.0.1", server.port), "mem-600")
        async with asyncio.timeout(30):
            while server.active or not server.errors:
                await asyncio.sleep(0.02)
        assert (server.active, server.errors) == (0, 1)
        assert client.came.qsize() == 7


async def test_500_clients_at_once(server: TftpServer) -> None:
    """Five hundred transfers at a time, each whole; the limit per client counts addresses."""
    server.max_per_client = 1000
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(raw()) for _ in range(500)]
        here = ("127.0.0.1", server.port)
        got = await asyncio.gather(*(fetch(client, here, "file-50000", blksize=1428) for client in clients))
    assert set(got) == {content(50_000)}
    async with asyncio.timeout(30):
        while server.active:
            await asyncio.sleep(0.01)
    assert server.transfers == 500


async def test_100000_malformed_datagrams_and_then_a_good_transfer(server: TftpServer) -> None:
    """Rubbish of every kind ends nothing and leaves nothing behind."""
    chance = random.Random(42)
    heads = [
        b"",
        b"\0",
        b"\0\1",
        b"\0\1",
        b"\0\1mem-5\0octet\0",
        b"\0\1mem-5\0octet\0blksize\0",
        b"\0\2x\0octet\0",
    ]
    heads += [
        b"\0\3\0\1",
        b"\0\4\0\1",
        b"\0\5",
        b"\0\6blksize\0",
        b"\0\1\xff\0octet\0",
        b"\0\1a\0octet\0windowsize\0",
    ]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", server.port))
    for number in range(100_000):
        data = bytearray(chance.choice(heads) + chance.randbytes(chance.choice((0, 1, 3, 9, 40, 500))))
        if data and chance.random() < 0.3:
            data[chance.randrange(len(data))] = 0
        sock.send(data)
        if number % 20 == 0:
            await asyncio.sleep(0)
    await asyncio.sleep(0.2)
    async with raw() as client:
        assert await fetch(client, ("127.0.0.1", server.port), "file-5000") == content(5000)
    assert server.malformed > 50_000
    sock.close()
    assert server.active <= server.max_per_client


async def test_rubbish_on_a_transfers_own_port(server: TftpServer) -> None:
    """A client that sends nonsense in the midst of its transfer still gets its file."""
    chance = random.Random(3)
    async with raw() as client:
        client.ask(("127.0.0.1", server.port), "mem-600")
        _, peer = await client.take()
        for _ in range(2000):
            data = chance.randbytes(chance.choice((0, 1, 3, 4, 20, 600)))
            if data[:2] not in (b"\0\4", b"\0\5"):
                client.transport.sendto(data, peer)
        await asyncio.sleep(0.1)
        client.tell(1, peer)
        while (packet := (await client.take())[0])[3] != 2:
            client.tell(1, peer)  # the rubbish may have filled the socket that this was sent to
        assert packet[4:] == content(600)[512:]


async def test_a_taken_port_is_said(files: Files) -> None:
    """The error names address and port, and what to look for."""
    first = TftpServer(["127.0.0.1"], 0, files.lookup)
    await first.start()
    second = TftpServer(["127.0.0.1"], first.port, files.lookup)
    with pytest.raises(
        ConfigError, match=rf"cannot listen on 127\.0\.0\.1, UDP port {first.port}: Address already in use"
    ):
        await second.start()
    await first.close()


async def test_in_another_namespace_and_stopped_midway(files: Files, tmp_path: Path) -> None:
    """Sockets made elsewhere serve there; a stop tells the clients under way."""
    need("ip", "curl")
    with Netns(bridge="br0", addresses=("10.79.0.1/24", "fd79::1/64")) as there:

        def inside(family: int) -> socket.socket:
            with there.enter():
                return socket.socket(family, socket.SOCK_DGRAM)

        server = TftpServer(["0.0.0.0", "::"], 69, files.lookup, new_socket=inside)
        await server.start()
        for host in ("10.79.0.1", "[fd79::1]"):
            out = tmp_path / "got"
            await run("ip", "netns", "exec", there.name, "curl", "-sS", "-o", out, f"tftp://{host}/file-9999")
            assert out.read_bytes() == content(9999)
        scope = there.run(["ip", "-6", "-o", "addr", "show", "dev", "br0", "scope", "link"]).stdout.split()[3]
        local = f"tftp://[{scope.partition('/')[0]}%25br0]/file-5000"
        await run("ip", "netns", "exec", there.name, "curl", "-sS", "-o", out, local)
        assert out.read_bytes() == content(5000)
        client = there.udp("10.79.0.1")
        client.sendto(b"\0\1mem-600\0octet\0", ("10.79.0.1", 69))
        await asyncio.sleep(0.1)
        assert server.active == 1
        await server.close()
        assert client.recv(600)[:2] == b"\0\3"
        assert client.recv(600) == b"\0\5\0\0the server is stopping\0"
        client.close()


def test_descriptors_are_returned(files: Files) -> None:
    """No transfer, refused or ended, keeps a file or socket open."""

    async def life() -> None:
        server = TftpServer(["127.0.0.1"], 0, files.lookup)
        await server.start()
        async with raw() as client:
            for name in ("file-1000", "mem-10"):
                assert await fetch(client, ("127.0.0.1", server.port), name) == content(
                    int(name.split("-")[1])
                )
            for name in ("dir-1", "nosuch", "bug-1"):
                client.ask(("127.0.0.1", server.port), name)
                await client.take()
            client.ask(("127.0.0.1", server.port), "file-90000")
            await client.take()
        await server.close()

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(life())
    assert len(os.listdir("/proc/self/fd")) == before
