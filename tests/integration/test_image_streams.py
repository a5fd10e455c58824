"""Images sent over real connections: many machines at once, transfers that break off, limits of a subnet, every encoding."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop
import zstandard
from aiohttp import ClientSession, web

from provisiond.boot import stream
from provisiond.boot.image_source import Encoding, ImageSource
from provisiond.boot.shares import Limits, Shares
from provisiond.boot.stream import send_image
from provisiond.media.blockmap import MIB
from provisiond.media.pack import pack


def quiet(*_: object) -> None:
    """Progress nobody looks at."""


def make_source(folder: Path, encoding: Encoding = "zstd", mib: int = 24) -> tuple[ImageSource, bytes]:
    """An image of ``mib`` used MiB, every other one a hole, and the bytes of its stream."""
    raw = folder / "d.raw"
    with raw.open("wb") as file:
        for place in range(mib):
            file.seek(2 * place * MIB)
            file.write(os.urandom(MIB // 2) + bytes([place + 1]) * (MIB // 2))
        file.truncate(2 * mib * MIB)
    packed = pack(raw, folder / "d.zst", quiet)
    if encoding == "raw":
        runs = [(first * MIB, count * MIB) for first, count in packed.map.extents]
        content = raw.read_bytes()
        used = b"".join(content[offset : offset + count] for offset, count in runs)
        return ImageSource(raw, "raw", runs, packed.sha256, packed.map, 2 * mib * MIB), used
    content = (folder / "d.zst").read_bytes()
    source = ImageSource(
        folder / "d.zst", encoding, [(0, len(content))], packed.sha256, packed.map, 2 * mib * MIB
    )
    return source, content


def serve(
    source: ImageSource,
    limits: Limits,
    scenario: Callable[[str, Shares], Coroutine[Any, Any, None]],
) -> None:
    """Run ``scenario`` with the URL of a server in the daemon's own event loop; ?machine= says who asks."""

    async def life() -> None:
        shares = Shares()

        async def handle(request: web.Request) -> web.StreamResponse:
            return await send_image(request, source, shares, limits, request.query["machine"])

        app = web.Application()
        app.router.add_get("/image", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with asyncio.timeout(120):
                await scenario(f"http://127.0.0.1:{runner.addresses[0][1]}/image", shares)
        finally:
            await runner.cleanup()

    uvloop.run(life())


async def take(url: str, machine: str, *, cut: random.Random | None = None) -> tuple[str, int, int]:
    """Fetch the whole stream as the agent does: (its SHA-256, connections, times put off).

    ``cut``: the connection is broken off at random and the transfer taken up again.
    """
    digest, have, connections, put_off = hashlib.sha256(), 0, 0, 0
    async with ClientSession() as client:
        while True:
            headers = {"Range": f"bytes={have}-"} if have else {}
            async with client.get(url, params={"machine": machine}, headers=headers) as answer:
                if answer.status == 503:
                    put_off += 1
                    await asyncio.sleep(min(0.2, int(answer.headers["Retry-After"])))
                    continue
                assert answer.status == (206 if have else 200)
                connections += 1
                total = have + int(answer.headers["Content-Length"])
                left = cut.randrange(MIB, 12 * MIB) if cut and connections < 4 else total
                while left > 0 and (chunk := await answer.content.read(min(left, 256 << 10))):
                    digest.update(chunk)
                    have, left = have + len(chunk), left - len(chunk)
                if have == total:
                    return digest.hexdigest(), connections, put_off
                answer.close()


@pytest.mark.parametrize("encoding", ["raw", "zstd"])
def test_fifty_machines_at_once(tmp_path: Path, encoding: Encoding) -> None:
    """Fifty machines get every byte, half of them over broken connections; the figures count what was sent."""
    source, content = make_source(tmp_path, encoding)
    good = hashlib.sha256(content).hexdigest()

    async def scenario(url: str, shares: Shares) -> None:
        seed = random.Random(4)
        takers = [take(url, f"m{n}", cut=seed if n % 2 else None) for n in range(50)]
        results = await asyncio.gather(*takers)
        assert {digest for digest, _, _ in results} == {good}
        assert max(connections for _, connections, _ in results) > 1
        while shares.figures()["streams"]:
            await asyncio.sleep(0.05)
        assert shares.bytes_sent >= 50 * len(content)

    serve(source, Limits("rack", 0, 0), scenario)


def test_limit_of_streams(tmp_path: Path) -> None:
    """No more than the limit at once; the others wait, and all of them get it."""
    source, content = make_source(tmp_path, mib=4)
    most = 0

    async def scenario(url: str, shares: Shares) -> None:
        nonlocal most

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, int(shares.figures()["streams"]))
                await asyncio.sleep(0.001)

        watcher = asyncio.ensure_future(watch())
        results = await asyncio.gather(*(take(url, f"m{n}") for n in range(12)))
        watcher.cancel()
        assert {digest for digest, _, _ in results} == {hashlib.sha256(content).hexdigest()}
        assert sum(put_off for _, _, put_off in results) == shares.figures()["put_off"] > 0

    serve(source, Limits("rack", 3, 0), scenario)
    assert 1 <= most <= 3


def test_limit_of_bytes(tmp_path: Path) -> None:
    """All machines of a subnet together are not sent more a second than it allows, and share it."""
    source, content = make_source(tmp_path, mib=4)
    mbps = 80  # 10 MB/s

    async def scenario(url: str, shares: Shares) -> None:
        begun = time.monotonic()
        ends = []

        async def timed(name: str) -> None:
            await take(url, name)
            ends.append(time.monotonic() - begun)

        await asyncio.gather(*(timed(f"m{n}") for n in range(8)))
        fewest = 8 * len(content) / (mbps * 125_000)
        assert ends[-1] > 0.9 * fewest - 0.2  # the burst
        assert ends[0] > 0.3 * ends[-1]  # nobody was done long before the others

    serve(source, Limits("rack", 0, mbps), scenario)


def test_a_machine_that_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds nobody up, and is given up after a while; its place is free then."""
    source, content = make_source(tmp_path)
    monkeypatch.setattr(stream, "STALL_SECONDS", 1.0)

    async def scenario(url: str, shares: Shares) -> None:
        host, port = url.removeprefix("http://").removesuffix("/image").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET /image?machine=dead HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        assert (await take(url, "alive"))[0] == hashlib.sha256(content).hexdigest()
        while shares.figures()["streams"]:
            await asyncio.sleep(0.05)
        assert shares.bytes_sent < 2 * len(content)
        writer.close()

    serve(source, Limits("rack", 2, 8000), scenario)


def test_asking_anew_while_the_old_connection_stands(tmp_path: Path) -> None:
    """With one stream allowed a machine whose connection hangs is not its own obstacle."""
    source, content = make_source(tmp_path)

    async def scenario(url: str, shares: Shares) -> None:
        async with ClientSession() as client, client.get(url, params={"machine": "m"}) as hanging:
            assert hanging.status == 200
            assert (await take(url, "m"))[:2] == (hashlib.sha256(content).hexdigest(), 1)

    serve(source, Limits("rack", 1, 0), scenario)


def test_if_range(tmp_path: Path) -> None:
    """A range is given of the image that was begun; of another one, all of it."""
    source, content = make_source(tmp_path, mib=2)

    async def scenario(url: str, shares: Shares) -> None:
        async with ClientSession() as client:
            for tag, status in ((source.etag, 206), ('"other"', 200)):
                headers = {"Range": "bytes=100-199", "If-Range": tag}
                async with client.get(url, params={"machine": "m"}, headers=headers) as answer:
                    assert answer.status == status
                    assert await answer.read() == (content[100:200] if status == 206 else content)
                    assert answer.headers["ETag"] == source.etag

    serve(source, Limits("rack", 0, 0), scenario)


def test_both_encodings_are_one_image(tmp_path: Path) -> None:
    """The frames of the compressed stream, from any of them on, are the raw stream from that place on."""
    raw, used = make_source(tmp_path, "raw")
    zstd = ImageSource(
        tmp_path / "d.zst", "zstd", [(0, (tmp_path / "d.zst").stat().st_size)], "x", raw.map, 0
    )
    assert raw.map is not None

    async def scenario(url: str, shares: Shares) -> None:
        assert raw.map is not None
        async with ClientSession() as client:
            for frame in range(len(raw.map.frames)):
                headers = {"Range": f"bytes={sum(raw.map.frames[:frame])}-"}
                async with client.get(url, params={"machine": "m"}, headers=headers) as answer:
                    packed = await answer.read()
                unpacked = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True).read()
                assert unpacked == used[frame * 8 * MIB :]

    serve(zstd, Limits("rack", 0, 0), scenario)


def test_from_a_cold_disk(tmp_path: Path) -> None:
    """What is not in the page cache is read on the way."""
    source, content = make_source(tmp_path, "raw")
    with source.path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    async def scenario(url: str, shares: Shares) -> None:
        assert (await take(url, "m"))[0] == hashlib.sha256(content).hexdigest()

    serve(source, Limits("rack", 0, 0), scenario)
