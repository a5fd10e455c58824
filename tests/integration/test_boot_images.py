"""From a file to a machine: an image is added as an operator adds it, and fetched as its plan says, in each form."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import zstandard
from sqlmodel import select

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Image, Subnet
from provisiond.media.blockmap import MIB
from provisiond.media.images import ImageRequest
from provisiond.media.jobs import MediaJobs
from tests.boot_world import Served, boot_world
from tests.integration.test_images import root_directory


@pytest_asyncio.fixture(params=["auto", "raw"])
async def served(
    sqlite_store: Store, box: SecretBox, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Served]:
    """A boot server that sends images compressed, or raw."""
    async with boot_world(sqlite_store, box, tmp_path, image_encoding=request.param) as running:
        yield running


async def replace_image(served: Served, source: Path) -> Image:
    """Add ``source`` in place of the image that hosts have."""
    jobs = MediaJobs(served.world.settings, served.world.store)
    job = await jobs.start_image(ImageRequest("debian", str(source)), operating_system=None, actor="user:eva")
    await job.finished.wait()
    await jobs.close()
    assert job.state == "done", job.message
    async with served.world.store.read() as session:
        return (await session.execute(select(Image))).scalar_one()


async def fetch(served: Served, url: str) -> bytes:
    async with served.client.get(url) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


def disk_with_a_root(path: Path) -> Path:
    """A disk of 40 MiB with one partition: ext4, labelled root, with some files in it."""
    (path.parent / "files/etc").mkdir(parents=True)
    (path.parent / "files/etc/fstab").write_text("LABEL=root / ext4 defaults 0 1\n")
    part = path.parent / "part"
    with part.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", path.parent / "files", part], check=True
    )
    with path.open("wb") as file:
        file.truncate(40 * MIB)
    table = "label: gpt\nstart=8192, size=65536, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root\n"
    subprocess.run(["sfdisk", "-q", path], input=table, text=True, check=True)
    subprocess.run(
        ["dd", f"if={part}", f"of={path}", "bs=1M", "seek=4", "conv=notrunc,sparse", "status=none"],
        check=True,
    )
    return path


async def test_a_disk(served: Served, tmp_path: Path) -> None:
    """What the plan names is the disk, block by block, with its digest, its map and its root partition."""
    source = disk_with_a_root(tmp_path / "disk.raw")
    row = await replace_image(served, source)
    plan = await (await (await served.host("web01")).agent()).plan()
    image = plan["image"]
    blocks = json.loads(await fetch(served, image["map"]))
    stream = await fetch(served, image["url"])
    if served.world.settings.boot.image_encoding == "raw":
        assert image["encoding"] == "raw" and row.zstd == "" and blocks["frames"] == []
        used = stream
    else:
        assert image["encoding"] == "zstd" and len(stream) == sum(blocks["frames"]) < 10 * MIB
        used = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read()
    assert hashlib.sha256(used).hexdigest() == image["sha256"] == row.sha256
    assert len(used) == image["used_mib"] * MIB
    disk, at = bytearray(blocks["size_mib"] * MIB), 0
    for first, count in blocks["extents"]:
        disk[first * MIB : (first + count) * MIB] = used[at : at + count * MIB]
        at += count * MIB
    assert bytes(disk) == source.read_bytes()
    assert image["root"]["filesystem"] == "ext4" and image["root"]["label"] == "root"


async def test_a_root_file_system(served: Served, tmp_path: Path) -> None:
    """A tree is sent as one tar.zst, in ranges too, and its machine is always given a layout."""
    root = root_directory(tmp_path / "root")
    source = tmp_path / "root.tar.gz"
    subprocess.run(["tar", "-caf", source, "-C", root, "."], check=True)
    row = await replace_image(served, source)
    plan = await (await (await served.host("web01")).agent()).plan()
    image = plan["image"]
    assert (image["encoding"], image["map"]) == ("tar.zst", None)
    assert plan["layout"] is not None
    stream = await fetch(served, image["url"])
    assert hashlib.sha256(stream).hexdigest() == image["sha256"] == row.sha256
    async with served.client.get(image["url"], headers={"Range": "bytes=1000-"}) as answer:
        assert answer.status == 206 and await answer.read() == stream[1000:]
    listing = subprocess.run(["tar", "--zstd", "-t"], input=stream, check=True, capture_output=True).stdout
    assert b"./usr/bin/true\n" in listing


async def test_a_subnet_s_limit(served: Served) -> None:
    """The parameters of a machine's subnet hold: with one stream allowed the second machine is told when to ask again."""
    async with served.world.store.write() as session:
        subnet = (await session.execute(select(Subnet))).scalar_one()
        subnet.parameters = {"image_streams": 1, "image_mbps": 1}
    one, two = await served.host("web01"), await served.host("web02")
    url = served.world.boot_url
    async with served.client.get(f"{url}{one.base}/image") as first:
        assert first.status == 200
        async with served.client.get(f"{url}{two.base}/image") as second:
            assert second.status == 503 and int(second.headers["Retry-After"]) >= 1
            assert "number 1 in the queue" in await second.text()
        first.close()
