"""Images against the real things: qemu-img, zstd, xz, gzip, tar, gpg, and a web server."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from provisiond.config import BootSettings, Settings
from provisiond.media import images, plain
from provisiond.media.blockmap import FRAME_MIB, MIB, read_map
from provisiond.media.fetch import MediaError
from provisiond.media.formats import format_of
from provisiond.media.images import ImageRequest, add_image
from provisiond.media.vouch import Proof
from tests.integration.test_media import (
    Signer,
    Web,
    disk,
    left_in,
    make_signer,
    qemu_img,
    quiet,
    settings,
    signer,
    stop_agent,
    web_server,
)

__all__ = ["settings", "signer", "web_server"]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
async def test_image_becomes_sparse_raw(settings: Settings, tmp_path: Path, format: str) -> None:
    """An image is kept as a sparse raw file whose map and digest cover exactly what is used."""
    source = disk(tmp_path / "disk", format)
    facts = await add_image(settings, ImageRequest("deb", str(source), format), quiet)
    raw = settings.state.image_dir / facts.path
    assert read_map(raw).extents == ((0, 1), (10, 1), (63, 1))
    assert (facts.size, facts.used, facts.format) == (64 * MIB, 3 * MIB, "raw")
    assert raw.stat().st_blocks * 512 < 4 * MIB
    content = raw.read_bytes()
    used = b"".join(content[first * MIB : (first + count) * MIB] for first, count in read_map(raw).extents)
    assert hashlib.sha256(used).hexdigest() == facts.sha256
    assert len(left_in(settings)) == 3


async def test_odd_sized_image(settings: Settings, tmp_path: Path) -> None:
    """A disk that ends within a MiB is padded with zeros, so that every block is whole."""
    source = tmp_path / "odd.raw"
    source.write_bytes(b"x" * (MIB + 512))
    facts = await add_image(settings, ImageRequest("odd", str(source), "raw"), quiet)
    assert (facts.size, facts.used) == (2 * MIB, 2 * MIB)


async def test_backing_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    """An image that would make qemu-img read another file of this machine is refused, and nothing is left."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * MIB)
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", secret, "-F", "raw", evil)
    with pytest.raises(MediaError, match="leans on another file"):
        await add_image(settings, ImageRequest("evil", str(evil), "qcow2"), quiet)
    assert left_in(settings) == []


async def test_data_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    """So is one that keeps its data in another file."""
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'},data_file_raw=on", evil, "8M")
    with pytest.raises(MediaError, match="another file"):
        await add_image(settings, ImageRequest("evil", str(evil), "qcow2"), quiet)
    assert left_in(settings) == []


async def test_format_is_said_not_guessed(settings: Settings, tmp_path: Path) -> None:
    """A qcow2 that is said to be raw is refused, and never opened as qcow2; so is whatever else is not what was said."""
    evil = tmp_path / "evil.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", evil, "1M")
    with pytest.raises(MediaError, match="is a qcow2 image"):
        await add_image(settings, ImageRequest("e", str(evil), "raw"), quiet)
    with pytest.raises(MediaError, match="no qcow2 image"):
        await add_image(settings, ImageRequest("e", "/bin/sh", "qcow2"), quiet)
    with pytest.raises(MediaError, match="say --format"):
        await add_image(settings, ImageRequest("e", str(evil), "vmdk"), quiet)


async def test_same_blocks_elsewhere_are_another_image(settings: Settings, tmp_path: Path) -> None:
    """Two disks with the same used blocks in other places are kept apart."""
    files = []
    for place in (1, 5):
        source = tmp_path / f"{place}.raw"
        with source.open("wb") as file:
            file.truncate(8 * MIB)
            file.seek(place * MIB)
            file.write(b"x" * MIB)
        files.append(await add_image(settings, ImageRequest("same", str(source), "raw"), quiet))
    assert files[0].sha256 == files[1].sha256
    assert files[0].path != files[1].path


async def test_image_by_http_needs_its_checksum(settings: Settings, web_server: Web, tmp_path: Path) -> None:
    """Plain http is taken with a checksum, the right one."""
    source = disk(web_server.root / "disk.qcow2")
    request = ImageRequest("deb", f"{web_server.url}/disk.qcow2", "qcow2")
    with pytest.raises(MediaError, match="--sha256"):
        await add_image(settings, request, quiet)
    with pytest.raises(MediaError, match="refused"):
        await add_image(settings, replace(request, proof=Proof("0" * 64)), quiet)
    assert left_in(settings) == []
    good = hashlib.sha256(source.read_bytes()).hexdigest()
    assert (await add_image(settings, replace(request, proof=Proof(good)), quiet)).used == 3 * MIB


async def test_empty_image(settings: Settings, tmp_path: Path) -> None:
    """A disk of zeros cannot be what somebody meant."""
    qemu_img("create", "-f", "qcow2", tmp_path / "empty", "8M")
    with pytest.raises(MediaError, match="empty"):
        await add_image(settings, ImageRequest("e", str(tmp_path / "empty"), "qcow2"), quiet)
    assert left_in(settings) == []


# --- compressed disks, and the compressed form -----------------------------------------------------------------


def packed(path: Path, tool: str) -> Path:
    """``path`` compressed by a real tool, beside it."""
    argv = {"zst": ["zstd", "-q", "-c"], "xz": ["xz", "-0", "-c"], "gz": ["gzip", "-1", "-c"]}[tool]
    out = path.with_name(f"{path.name}.{tool}")
    out.write_bytes(subprocess.run([*argv, path], check=True, capture_output=True).stdout)
    return out


def used_of(settings: Settings, name: str) -> bytes:
    """The used blocks of a raw image, one after another."""
    raw = settings.state.image_dir / name
    content = raw.read_bytes()
    return b"".join(content[first * MIB : (first + count) * MIB] for first, count in read_map(raw).extents)


@pytest.mark.parametrize("tool", ["zst", "xz", "gz"])
async def test_compressed_raw_disk(settings: Settings, tmp_path: Path, tool: str) -> None:
    """A compressed raw disk is the same image as the disk; its format follows from its name."""
    source = disk(tmp_path / "disk.raw", "raw")
    with source.open("ab") as file:
        file.write(b"end")  # not a whole MiB
    plain_facts = await add_image(settings, ImageRequest("deb", str(source)), quiet)
    facts = await add_image(settings, ImageRequest("deb", str(packed(source, tool))), quiet)
    assert facts == plain_facts
    assert facts.size == 65 * MIB
    assert read_map(settings.state.image_dir / facts.path).extents == ((0, 1), (10, 1), (63, 2))


async def test_compressed_form_and_its_map(settings: Settings, tmp_path: Path) -> None:
    """The frames of the compressed form, each by itself and read by zstd(1), are the used blocks in pieces of 8 MiB."""
    source = tmp_path / "d.raw"
    with source.open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.seek(20 * MIB)
        file.write((b"text" * 100 + os.urandom(100)) * (18 * MIB // 500))
        file.truncate(50 * MIB)
    facts = await add_image(settings, ImageRequest("d", str(source)), quiet)
    folder = settings.state.image_dir
    blocks = read_map(folder / facts.path)
    used = used_of(settings, facts.path)
    assert hashlib.sha256(used).hexdigest() == facts.sha256
    assert len(blocks.frames) == -(-blocks.used_mib // FRAME_MIB) == 3
    content = (folder / facts.zstd).read_bytes()
    assert len(content) == sum(blocks.frames) < len(used)
    at = 0
    for number, size in enumerate(blocks.frames):
        frame = zstandard.ZstdDecompressor().decompress(content[at : at + size])
        assert frame == used[number * FRAME_MIB * MIB :][: FRAME_MIB * MIB]
        at += size
    whole = subprocess.run(["zstd", "-dc", folder / facts.zstd], check=True, capture_output=True).stdout
    assert whole == used


async def test_without_the_compressed_form(settings: Settings, tmp_path: Path) -> None:
    """Where images are sent raw none is made; one that is there stays, as machines may be under way with it."""
    source = disk(tmp_path / "disk.raw", "raw")
    raw_only = settings.model_copy(update={"boot": BootSettings(image_encoding="raw")})
    facts = await add_image(raw_only, ImageRequest("deb", str(source)), quiet)
    assert facts.zstd == "" and read_map(settings.state.image_dir / facts.path).frames == ()
    with_zstd = await add_image(settings, ImageRequest("deb", str(source)), quiet)
    assert with_zstd.zstd and with_zstd.path == facts.path
    assert await add_image(raw_only, ImageRequest("deb", str(source)), quiet) == with_zstd


async def test_several_streams_in_one_file(settings: Settings, tmp_path: Path) -> None:
    """Files put behind one another, skippable frames and padding are read as the tools read them."""
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"a" * MIB)
    two.write_bytes(b"b" * MIB)
    skip = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    files = {
        "d.raw.zst": packed(one, "zst").read_bytes() + skip + packed(two, "zst").read_bytes(),
        "d.raw.xz": packed(one, "xz").read_bytes() + b"\0" * 8 + packed(two, "xz").read_bytes() + b"\0" * 4,
        "d.raw.gz": packed(one, "gz").read_bytes() + packed(two, "gz").read_bytes() + b"\0" * 8192,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        facts = await add_image(settings, ImageRequest("d", str(tmp_path / name)), quiet)
        assert used_of(settings, facts.path) == b"a" * MIB + b"b" * MIB, name


@pytest.mark.parametrize("tool", ["zst", "xz", "gz"])
async def test_broken_files(settings: Settings, tmp_path: Path, tool: str) -> None:
    """Cut short, damaged, or something else altogether: refused, and nothing is left."""
    good = tmp_path / "good"
    good.write_bytes(os.urandom(3 * MIB))
    content = packed(good, tool).read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    source = tmp_path / f"d.raw.{tool}"
    for what in (content[:-100], content[: len(content) // 2], bytes(damaged), b"", b"no such thing" * 1000):
        source.write_bytes(what)
        with pytest.raises(MediaError, match=r"cut short|cannot be unpacked|is empty"):
            await add_image(settings, ImageRequest("d", str(source)), quiet)
    assert left_in(settings) == []


@pytest.mark.parametrize("tool", ["zst", "xz", "gz"])
async def test_bomb(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    """A small file that unpacks to more than there may be is stopped on the way, for disks and for trees."""
    monkeypatch.setattr(images, "DISK_LIMIT", 16 * MIB)
    bomb = tmp_path / "bomb.raw"
    with bomb.open("wb") as file:
        file.truncate(200 * MIB)
    source = packed(bomb, tool)
    assert source.stat().st_size < MIB
    read: list[int] = []
    real = plain.Plain.read

    def counted(self: plain.Plain, size: int) -> bytes:
        found = real(self, size)
        read.append(len(found))
        return found

    monkeypatch.setattr(plain.Plain, "read", counted)
    with pytest.raises(MediaError, match="unpacks to more than 16 MiB"):
        await add_image(settings, ImageRequest("b", str(source)), quiet)
    assert sum(read) <= 18 * MIB
    with pytest.raises(MediaError, match=r"no tar|unpacks to more"):
        await add_image(settings, ImageRequest("b", str(source), f"tar.{tool}"), quiet)
    assert left_in(settings) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("https://x/a.QCOW2?y=1", "qcow2"), ("/a/b.raw.xz", "raw.xz"), ("/a/b.tgz", "tar.gz"), ("https://x/d.tar.zst#f", "tar.zst"),
     ("https://x/ubuntu.img", None), ("/a/raw", None), ("/a/b.qcow2.xz", None), ("https://x/", None)],
)  # fmt: skip
async def test_format_by_name(settings: Settings, name: str, expected: str | None) -> None:
    """The format follows from an unambiguous ending, or it must be said: .img may be anything."""
    if expected:
        assert format_of(name).name == expected
    else:
        with pytest.raises(MediaError, match="say --format"):
            format_of(name)


# --- root file systems ----------------------------------------------------------------------------------------------


def root_directory(path: Path) -> Path:
    """A small root file system with what such archives hold: links, a device, extended attributes, a name of 200 letters."""
    for name in ("etc", "usr/bin", "dev", "var/lib"):
        (path / name).mkdir(parents=True)
    (path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    (path / "usr/bin/true").write_bytes(b"\x7fELF" + os.urandom(3 * MIB))
    (path / "var/lib" / ("n" * 200)).write_text("long")
    (path / "bin").symlink_to("usr/bin")
    (path / "etc/mtab").symlink_to("/proc/self/mounts")
    os.link(path / "usr/bin/true", path / "usr/bin/wahr")
    os.mknod(path / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    return path


@pytest.mark.parametrize("format", ["tar", "tar.zst", "tar.xz", "tar.gz", "tgz"])
async def test_root_file_system(settings: Settings, tmp_path: Path, format: str) -> None:
    """A tar made by tar(1) is kept as tar.zst with every byte of it; zstd(1) and tar(1) read it again."""
    root = root_directory(tmp_path / "root")
    source = tmp_path / f"deb.{format}"
    subprocess.run(["tar", "-caf", source, "-C", root, "."], check=True)
    facts = await add_image(settings, ImageRequest("deb", str(source)), quiet)
    assert (facts.content, facts.format) == ("tree", "tar")
    assert facts.path.endswith(".tar.zst") and left_in(settings) == [facts.path]
    kept = settings.state.image_dir / facts.path
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == facts.sha256
    assert 3 * MIB < facts.size < 4 * MIB
    plain_tar = subprocess.run(["tar", "-cf", "-", "-C", root, "."], check=True, capture_output=True).stdout
    again = subprocess.run(["zstd", "-dc", kept], check=True, capture_output=True).stdout
    assert hashlib.sha256(again).digest() == hashlib.sha256(plain_tar).digest()
    subprocess.run(["tar", "--zstd", "-df", kept, "-C", root], check=True)


def tar_of(*members: tuple[str, bytes, str]) -> bytes:
    """A tar of (name, type, target) behind ./etc and ./usr, as no honest tool would make it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, target in (("./etc", tarfile.DIRTYPE, ""), ("./usr", tarfile.DIRTYPE, ""), *members):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return out.getvalue()


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (("../evil", tarfile.REGTYPE, ""), "leaves the root"),
        (("./etc/../../evil", tarfile.REGTYPE, ""), "leaves the root"),
        (("/etc/passwd", tarfile.REGTYPE, ""), "leaves the root"),
        (("./hard", tarfile.LNKTYPE, "../../etc/shadow"), "leaves the root"),
        (("./hard", tarfile.LNKTYPE, "/etc/shadow"), "leaves the root"),
        (("./tmp/disk", tarfile.BLKTYPE, ""), "a device outside of dev"),
        (("./usr/mem", tarfile.CHRTYPE, ""), "a device outside of dev"),
        (("./odd", b"Z", ""), "unknown kind"),
    ],
)
async def test_hostile_members(
    settings: Settings, tmp_path: Path, member: tuple[str, bytes, str], why: str
) -> None:
    """What could leave the place it is unpacked to is refused by name."""
    source = tmp_path / "evil.tar"
    source.write_bytes(tar_of(member))
    with pytest.raises(MediaError, match=why):
        await add_image(settings, ImageRequest("e", str(source)), quiet)
    assert left_in(settings) == []


async def test_members_below_a_link(settings: Settings, tmp_path: Path) -> None:
    """A link to the outside and a member below it; but a link that something else has taken the place of is none."""
    source = tmp_path / "evil.tar"
    source.write_bytes(tar_of(("./a", tarfile.SYMTYPE, "/"), ("./a/etc/cron.d/x", tarfile.REGTYPE, "")))
    with pytest.raises(MediaError, match="below a symbolic link"):
        await add_image(settings, ImageRequest("e", str(source)), quiet)
    source.write_bytes(
        tar_of(("./a", tarfile.SYMTYPE, "usr"), ("./a", tarfile.DIRTYPE, ""), ("./a/x", tarfile.REGTYPE, ""))
    )
    assert (await add_image(settings, ImageRequest("e", str(source)), quiet)).content == "tree"


def pax_header(size: int) -> bytes:
    """An extended header that says to be ``size`` bytes long."""
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: tar_of()[:700], "no tar|is no root"),
        (lambda: b"x" * 10240, "no tar"),
        (lambda: b"", "no tar|empty"),
        (lambda: pax_header(1 << 32) + b"\0" * MIB, "no tar"),
        (lambda: b"\0" * 10240, "no root file system"),
    ],
)
async def test_broken_tar(settings: Settings, tmp_path: Path, make: Callable[[], bytes], why: str) -> None:
    """No tar, half of one, one with a giant header, or one without a system in it."""
    source = tmp_path / "t.tar"
    source.write_bytes(make())
    with pytest.raises(MediaError, match=why):
        await add_image(settings, ImageRequest("t", str(source)), quiet)
    assert left_in(settings) == []


async def test_sparse_bomb_in_a_tar(settings: Settings, tmp_path: Path) -> None:
    """A file of holes that is larger than any disk is refused by what it would hold, whatever the archive's size."""
    root = root_directory(tmp_path / "root")
    with (root / "hole").open("wb") as file:
        file.truncate(3 << 40)
    source = tmp_path / "t.tar"
    subprocess.run(["tar", "--sparse", "-cf", source, "-C", root, "."], check=True)
    assert source.stat().st_size < 5 * MIB
    with pytest.raises(MediaError, match="more than 2 TiB"):
        await add_image(settings, ImageRequest("t", str(source)), quiet)


# --- who vouches ------------------------------------------------------------------------------------------------------


def armored(signer: Signer) -> str:
    return subprocess.run(
        ["gpg", "--homedir", signer.home, "--batch", "-q", "--armor", "--export"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> object:
    """Another key."""
    made = make_signer(tmp_path_factory.mktemp("gpg2") / "h")
    yield made
    stop_agent(made)


async def test_signed_image(settings: Settings, web_server: Web, signer: Signer, stranger: Signer) -> None:
    """A detached signature by the key that was given lets an image come over plain http; another's, or none, does not."""
    source = disk(web_server.root / "d.qcow2")
    for owner, name in ((signer, "good.asc"), (stranger, "other.sig")):
        armor = ["--armor"] if name.endswith("asc") else []
        owner.gpg(*armor, "--detach-sign", "--output", str(web_server.root / name), str(source))
    request = ImageRequest("d", f"{web_server.url}/d.qcow2")
    key = armored(signer)

    def by(name: str, key: str = key) -> ImageRequest:
        return replace(request, proof=Proof(signature=f"{web_server.url}/{name}", key=key))

    facts = await add_image(settings, by("good.asc"), quiet)
    assert "signature by key" in facts.verified_by
    for wrong in (by("other.sig"), by("good.asc", armored(stranger)), by("d.qcow2")):
        with pytest.raises(MediaError, match="no good signature"):
            await add_image(settings, wrong, quiet)
    with pytest.raises(MediaError, match="404"):
        await add_image(settings, by("none"), quiet)
    with pytest.raises(MediaError, match="no ASCII-armoured"):
        await add_image(settings, by("good.asc", "nonsense"), quiet)
    with pytest.raises(MediaError, match="without the key"):
        await add_image(settings, replace(request, proof=Proof(signature="https://x/y")), quiet)
    with source.open("ab") as file:
        file.write(b"x")
    with pytest.raises(MediaError, match="no good signature"):
        await add_image(settings, by("good.asc"), quiet)
    both = armored(stranger) + key
    source.write_bytes(source.read_bytes()[:-1])
    assert (await add_image(settings, by("good.asc", both), quiet)).path == facts.path


@pytest.mark.parametrize("kind", ["SHA256SUMS", "SHA512SUMS", "bsd", "clear"])
async def test_signed_checksums(settings: Settings, web_server: Web, signer: Signer, kind: str) -> None:
    """A signed list of checksums vouches for the image it lists, in each of the usual ways to write one."""
    source = disk(web_server.root / "d.qcow2")
    content = source.read_bytes()
    d256, d512 = hashlib.sha256(content).hexdigest(), hashlib.sha512(content).hexdigest()
    text = {
        "SHA256SUMS": f"{'0' * 64} *other.qcow2\n{d256} *d.qcow2\n",
        "SHA512SUMS": f"{d512}  d.qcow2\n",
        "bsd": f"# d.qcow2: {len(content)} bytes\nSHA256 (d.qcow2) = {d256}\n",
        "clear": f"{d256}  ./d.qcow2\n",
    }[kind]
    listing = web_server.root / "SUMS"
    listing.write_text(text)
    signature = ""
    if kind == "clear":
        signer.gpg("--clear-sign", "--output", str(web_server.root / "c"), str(listing))
        # what stands outside of the signed part is no list
        forged = f"{'1' * 64}  d.qcow2\n" + (web_server.root / "c").read_text()
        listing.write_text(forged)
    else:
        signer.gpg("--detach-sign", "--output", str(web_server.root / "SUMS.sig"), str(listing))
        signature = f"{web_server.url}/SUMS.sig"
    proof = Proof(checksums=f"{web_server.url}/SUMS", signature=signature, key=armored(signer))
    request = ImageRequest("d", f"{web_server.url}/d.qcow2", proof=proof)
    facts = await add_image(settings, request, quiet)
    assert "SUMS, signed by key" in facts.verified_by
    source.write_bytes(content + b"x")
    with pytest.raises(MediaError, match=r"is not the d\.qcow2 that"):
        await add_image(settings, request, quiet)
    source.rename(web_server.root / "e.qcow2")
    with pytest.raises(MediaError, match=r"does not list e\.qcow2"):
        await add_image(settings, replace(request, source=f"{web_server.url}/e.qcow2"), quiet)
    listing.write_text(listing.read_text() + f"{'2' * 64}  e.qcow2\n")
    if kind != "clear":
        with pytest.raises(MediaError, match="no good signature"):
            await add_image(settings, replace(request, source=f"{web_server.url}/e.qcow2"), quiet)


async def test_unsigned_checksums(settings: Settings, web_server: Web, tmp_path: Path) -> None:
    """A list that nobody signed is only as good as the way it came: not over plain http, and it is said."""
    source = disk(tmp_path / "d.qcow2")
    sums = tmp_path / "SHA256SUMS"
    sums.write_text(f"{hashlib.sha256(source.read_bytes()).hexdigest()}  d.qcow2\n")
    facts = await add_image(settings, ImageRequest("d", str(source), proof=Proof(checksums=str(sums))), quiet)
    assert facts.verified_by == "SHA256SUMS, which nobody signed"
    over_http = ImageRequest(
        "d", f"{web_server.url}/d.qcow2", proof=Proof(checksums=f"{web_server.url}/SHA256SUMS")
    )
    with pytest.raises(MediaError, match="plain http"):
        await add_image(settings, over_http, quiet)
    with pytest.raises(MediaError, match="metadata"):
        await add_image(
            settings, replace(over_http, proof=Proof("0" * 64, "http://169.254.169.254/x")), quiet
        )
