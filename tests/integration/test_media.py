"""Media against the real things: gpgv and a signed mirror served over HTTP, qemu-img, ISO images, Debian's netboot package."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from sqlmodel import select

from provisiond.config import Settings, StateSettings
from provisiond.errors import Conflict, NotFound
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Event, Image, Medium
from provisiond.media.blockmap import MIB
from provisiond.media.fetch import MediaError
from provisiond.media.images import ImageRequest, add_image
from provisiond.media.installers import InstallerRequest, add_medium
from provisiond.media.jobs import MediaJobs, MediumWish
from tests.integration.doors import open_doors

KERNEL, INITRD = b"kernel" * 100_000, b"initrd" * 200_000
NETBOOT = "dists/bookworm/main/installer-amd64/current/images/netboot/debian-installer/amd64"
IMAGES = "main/installer-amd64/current/images"
PACKAGE = Path("/usr/lib/debian-installer/images/12/amd64/text")


def quiet(*_: object) -> None:
    """Progress nobody looks at."""


@dataclass
class Signer:
    """A throw-away OpenPGP key."""

    home: Path
    keyring: Path

    def gpg(self, *arguments: str) -> None:
        subprocess.run(
            ["gpg", "--homedir", self.home, "--batch", "-q", *arguments], check=True, capture_output=True
        )


def make_signer(home: Path) -> Signer:
    home.mkdir(mode=0o700)
    signer = Signer(home, home / "archive.gpg")
    signer.gpg("--passphrase", "", "--quick-gen-key", "archive@test", "ed25519", "sign", "never")
    signer.gpg("--output", str(signer.keyring), "--export")
    return signer


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signer]:
    """The key the mirror is signed with; its agent is ended afterwards."""
    signer = make_signer(tmp_path_factory.mktemp("gpg") / "h")
    yield signer
    stop_agent(signer)


def stop_agent(signer: Signer) -> None:
    """End the agent that gpg started for this key."""
    subprocess.run(["gpgconf", "--homedir", signer.home, "--kill", "gpg-agent"], check=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=StateSettings(dir=tmp_path / "state"))


def build_mirror(root: Path, signer: Signer, *, codename: str = "bookworm", inline: bool = True) -> Path:
    """A Debian mirror with an installer and nothing else."""
    netboot = root / NETBOOT
    netboot.mkdir(parents=True)
    (netboot / "linux").write_bytes(KERNEL)
    (netboot / "initrd.gz").write_bytes(INITRD)
    lines = [
        f"{hashlib.sha256(d).hexdigest()}  ./netboot/debian-installer/amd64/{n}\n"
        for n, d in (("linux", KERNEL), ("initrd.gz", INITRD))
    ]
    sums = root / "dists/bookworm" / IMAGES / "SHA256SUMS"
    sums.write_text("".join(lines))
    release = root / "dists/bookworm/Release"
    digest = hashlib.sha256(sums.read_bytes()).hexdigest()
    release.write_text(
        f"Codename: {codename}\nSHA256:\n {digest} {sums.stat().st_size} {IMAGES}/SHA256SUMS\n"
    )
    if inline:
        signer.gpg("--yes", "--clearsign", "--output", str(release.with_name("InRelease")), str(release))
    else:
        signer.gpg("--yes", "--detach-sign", "--armor", "--output", f"{release}.gpg", str(release))
    return root


@dataclass
class Web:
    """A web server over a directory; ``cut`` paths break off half-way, ``moved`` ones redirect."""

    root: Path
    url: str = ""
    cut: frozenset[str] = frozenset()
    moved: dict[str, str] | None = None
    asked: list[str] | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.lstrip("/")
        if self.asked is not None:
            self.asked.append(path)
        if self.moved and path in self.moved:
            raise web.HTTPFound(self.moved[path])
        file = self.root / path
        if not file.is_file():
            raise web.HTTPNotFound
        if path in self.cut:
            response = web.StreamResponse()
            response.content_length = file.stat().st_size
            await response.prepare(request)
            await response.write(file.read_bytes()[: file.stat().st_size // 2])
            assert request.transport is not None
            request.transport.close()
            return response
        return web.FileResponse(file)


@pytest.fixture
async def web_server(tmp_path: Path) -> AsyncIterator[Web]:
    served = Web(tmp_path / "www", asked=[])
    served.root.mkdir()
    app = web.Application()
    app.router.add_get("/{path:.*}", served.handle)
    server = TestServer(app)
    await server.start_server()
    served.url = str(server.make_url("/")).rstrip("/")
    yield served
    await server.close()


def debian(source: str, signer: Signer) -> InstallerRequest:
    return InstallerRequest("debian-12", "debian", "12", source, keyring=signer.keyring)


def left_in(settings: Settings) -> list[str]:
    """Every file below the media and images."""
    return sorted(
        p.name
        for d in (settings.state.media_dir, settings.state.image_dir)
        for p in d.rglob("*")
        if p.is_file()
    )


# --- installers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
async def test_debian_from_a_signed_mirror(
    settings: Settings, signer: Signer, web_server: Web, inline: bool
) -> None:
    """Kernel and initrd come in whole, checked down from the signature, with their progress told."""
    build_mirror(web_server.root / "debian", signer, inline=inline)
    told: list[tuple[str, int, int | None]] = []
    files = await add_medium(settings, debian(f"{web_server.url}/debian", signer), lambda *p: told.append(p))
    kernel = settings.state.media_dir / str(files.files["kernel"]["path"])
    assert kernel.read_bytes() == KERNEL
    assert files.files["initrd"]["sha256"] == hashlib.sha256(INITRD).hexdigest()
    assert files.mirror == f"{web_server.url}/debian"
    assert "signed" in files.verified_by
    assert ("kernel", len(KERNEL), len(KERNEL)) in told
    assert len(left_in(settings)) == 2


TAMPERED = {
    "kernel": (f"{NETBOOT}/linux", "does not match"),
    "initrd": (f"{NETBOOT}/initrd.gz", "does not match"),
    "sums": (f"dists/bookworm/{IMAGES}/SHA256SUMS", "does not match the signed Release"),
    "release": ("dists/bookworm/InRelease", "no good signature"),
}


@pytest.mark.parametrize("what", TAMPERED)
async def test_tampered_mirror_is_refused(
    settings: Settings, signer: Signer, web_server: Web, what: str
) -> None:
    """One changed byte anywhere in the chain: refused with the reason, and no file is left."""
    path, reason = TAMPERED[what]
    file = build_mirror(web_server.root, signer) / path
    content = bytearray(file.read_bytes())
    place = content.index(b"Codename") if what == "release" else 10
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(MediaError, match=reason):
        await add_medium(settings, debian(web_server.url, signer), quiet)
    assert left_in(settings) == []


async def test_mirror_signed_by_a_stranger(
    settings: Settings, signer: Signer, web_server: Web, tmp_path: Path
) -> None:
    """A good signature by a key that is not in the ring is no signature."""
    stranger = make_signer(tmp_path / "g")
    try:
        build_mirror(web_server.root, stranger)
    finally:
        subprocess.run(["gpgconf", "--homedir", stranger.home, "--kill", "gpg-agent"], check=False)
    with pytest.raises(MediaError, match="no good signature"):
        await add_medium(settings, debian(web_server.url, signer), quiet)
    assert left_in(settings) == []


async def test_text_outside_the_signature_counts_for_nothing(
    settings: Settings, signer: Signer, web_server: Web
) -> None:
    """Lines put before the signed part of InRelease are not read."""
    build_mirror(web_server.root, signer, codename="trixie")
    release = web_server.root / "dists/bookworm/InRelease"
    release.write_text("Codename: bookworm\n" + release.read_text())
    with pytest.raises(MediaError, match=r"trixie|no good signature"):
        await add_medium(settings, debian(web_server.url, signer), quiet)


async def test_broken_off_download(settings: Settings, signer: Signer, web_server: Web) -> None:
    """A server that hangs up half-way leaves no half kernel, and files of the earlier import stay as they were."""
    build_mirror(web_server.root, signer)
    before = await add_medium(settings, debian(web_server.url, signer), quiet)
    web_server.cut = frozenset({f"{NETBOOT}/initrd.gz"})
    with pytest.raises(MediaError, match="broke off"):
        await add_medium(settings, debian(web_server.url, signer), quiet)
    assert len(left_in(settings)) == 2
    assert (settings.state.media_dir / str(before.files["initrd"]["path"])).read_bytes() == INITRD


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest", "file:///etc/shadow", "http://[fd00:ec2::254]/"]
)
async def test_redirects_are_checked(
    settings: Settings, signer: Signer, web_server: Web, target: str
) -> None:
    """A mirror cannot send the daemon to a metadata service or a local file."""
    build_mirror(web_server.root, signer)
    web_server.moved = {"dists/bookworm/InRelease": target}
    with pytest.raises(MediaError, match=r"metadata|http://"):
        await add_medium(settings, debian(web_server.url, signer), quiet)


async def test_redirects_are_followed_and_bounded(
    settings: Settings, signer: Signer, web_server: Web
) -> None:
    """A redirect to another path is followed; one to itself ends."""
    build_mirror(web_server.root / "real", signer)
    web_server.moved = {f"{NETBOOT}/linux": f"/real/{NETBOOT}/linux"}
    shutil.copytree(web_server.root / "real/dists", web_server.root / "dists")
    await add_medium(settings, debian(web_server.url, signer), quiet)
    web_server.moved = {f"{NETBOOT}/linux": f"/{NETBOOT}/linux"}
    with pytest.raises(MediaError, match="redirects"):
        await add_medium(settings, debian(web_server.url, signer), quiet)


async def test_leftovers_of_a_crash_are_removed(settings: Settings, signer: Signer, web_server: Web) -> None:
    """What a killed daemon left is gone at the next try of the same medium."""
    build_mirror(web_server.root, signer)
    folder = settings.state.media_dir / "debian-12"
    folder.mkdir(parents=True)
    (folder / "kernel.part").write_bytes(b"half")
    await add_medium(settings, debian(web_server.url, signer), quiet)
    assert not any(name.endswith(".part") for name in left_in(settings))


async def test_netboot_package_of_debian(settings: Settings) -> None:
    """The directory of the installed package is vouched for by dpkg's own list."""
    if not PACKAGE.is_dir():
        pytest.skip("package debian-installer-12-netboot-amd64 is not installed")
    files = await add_medium(settings, InstallerRequest("d", "debian", "12", str(PACKAGE)), quiet)
    assert "debian-installer-12-netboot-amd64" in files.verified_by
    kernel = settings.state.media_dir / str(files.files["kernel"]["path"])
    assert kernel.read_bytes()[0x202:0x206] == b"HdrS"  # Linux boot protocol


async def test_directory_nobody_vouches_for(settings: Settings, tmp_path: Path) -> None:
    """Bare files are refused, and taken when that is asked for, which is then on record."""
    (tmp_path / "linux").write_bytes(KERNEL)
    (tmp_path / "initrd.gz").write_bytes(INITRD)
    request = InstallerRequest("d", "debian", "12", str(tmp_path))
    with pytest.raises(MediaError, match="--unverified"):
        await add_medium(settings, request, quiet)
    assert left_in(settings) == []
    files = await add_medium(settings, replace(request, unverified=True), quiet)
    assert files.verified_by.startswith("nothing")


def redhat_tree(root: Path, kernel: bytes = KERNEL) -> Path:
    (root / "images/pxeboot").mkdir(parents=True)
    (root / "images/pxeboot/vmlinuz").write_bytes(kernel)
    (root / "images/pxeboot/initrd.img").write_bytes(INITRD)
    rows = {"vmlinuz": KERNEL, "initrd.img": INITRD}
    sums = "".join(f"images/pxeboot/{n} = sha256:{hashlib.sha256(d).hexdigest()}\n" for n, d in rows.items())
    (root / ".treeinfo").write_text(f"[checksums]\n{sums}\n[tree]\narch = x86_64\n")
    return root


def make_iso(root: Path, iso: Path) -> Path:
    subprocess.run(["genisoimage", "-quiet", "-R", "-J", "-o", iso, root], check=True, capture_output=True)
    return iso


@pytest.mark.parametrize(
    ("shape", "family", "version"),
    [("directory", "redhat", "9"), ("iso", "redhat", "10"), ("iso", "fedora", "43")],
)
async def test_redhat_tree(settings: Settings, tmp_path: Path, shape: str, family: str, version: str) -> None:
    """A tree of RHEL's kin or Fedora, unpacked or on its ISO, is checked by its .treeinfo."""
    tree = redhat_tree(tmp_path / "tree")
    source = tree if shape == "directory" else make_iso(tree, tmp_path / "tree.iso")
    files = await add_medium(settings, InstallerRequest("medium", family, version, str(source)), quiet)
    assert (settings.state.media_dir / str(files.files["kernel"]["path"])).read_bytes() == KERNEL
    assert "treeinfo" in files.verified_by


async def test_esxi_is_not_imported(settings: Settings, tmp_path: Path) -> None:
    """What ESXi boots is not a kernel and an initrd: the refusal says what to do."""
    tree = redhat_tree(tmp_path / "tree")
    with pytest.raises(MediaError, match=r"mboot\.efi.*boot\.cfg"):
        await add_medium(settings, InstallerRequest("esxi-8", "esxi", "8.0", str(tree)), quiet)
    assert left_in(settings) == []


async def test_damaged_redhat_iso(settings: Settings, tmp_path: Path) -> None:
    """A kernel that is not the one .treeinfo lists is refused; so is an ISO with another digest, or cut short."""
    iso = make_iso(redhat_tree(tmp_path / "tree", kernel=b"other"), tmp_path / "bad.iso")
    with pytest.raises(MediaError, match="does not match"):
        await add_medium(settings, InstallerRequest("r", "redhat", "9", str(iso)), quiet)
    with pytest.raises(MediaError, match="SHA-256"):
        await add_medium(settings, InstallerRequest("r", "redhat", "9", str(iso), sha256="0" * 64), quiet)
    os.truncate(iso, 40_000)
    with pytest.raises(MediaError):
        await add_medium(settings, InstallerRequest("r", "redhat", "9", str(iso)), quiet)
    assert left_in(settings) == []


async def test_mini_iso_by_its_digest(settings: Settings, tmp_path: Path) -> None:
    """Debian's mini.iso lists no checksums: its own digest vouches for what is in it."""
    tree = tmp_path / "mini"
    tree.mkdir()
    (tree / "linux").write_bytes(KERNEL)
    (tree / "initrd.gz").write_bytes(INITRD)
    iso = make_iso(tree, tmp_path / "mini.iso")
    request = InstallerRequest("d", "debian", "12", str(iso))
    with pytest.raises(MediaError, match="nothing vouches"):
        await add_medium(settings, request, quiet)
    files = await add_medium(
        settings, replace(request, sha256=hashlib.sha256(iso.read_bytes()).hexdigest()), quiet
    )
    assert "SHA-256" in files.verified_by


async def test_redhat_over_plain_http(settings: Settings, web_server: Web) -> None:
    """Checksums that come the same open way as the files vouch for nothing."""
    redhat_tree(web_server.root / "r")
    request = InstallerRequest("r", "redhat", "9", f"{web_server.url}/r")
    with pytest.raises(MediaError, match="https"):
        await add_medium(settings, request, quiet)
    assert "unverified" in (await add_medium(settings, replace(request, unverified=True), quiet)).verified_by


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def disk(path: Path, format: str = "qcow2") -> Path:
    """A 64 MiB disk with data in MiB 0, 10 and 63."""
    qemu_img("create", "-f", format, path, "64M")
    for at in ("0 4k", "10485760 1M", "67104768 4k"):
        offset, length = at.split()
        subprocess.run(
            ["qemu-io", "-f", format, "-c", f"write -P 0x5a {offset} {length}", path],
            check=True,
            capture_output=True,
        )
    return path


# --- jobs ---------------------------------------------------------------------------------------------------


async def test_import_in_the_background(settings: Settings, sqlite_store: Store, tmp_path: Path) -> None:
    """A medium's row is there at once, ready only when its files are; the history says what vouched for it."""
    jobs = MediaJobs(settings, sqlite_store)
    tree = redhat_tree(tmp_path / "tree")
    wish = MediumWish("rocky-9", "rocky-9", source=str(tree), mirror="http://mirror/rocky")
    job = await jobs.start_medium(wish, actor="user:eva")
    with pytest.raises(Conflict):
        await jobs.start_medium(wish, actor="user:eva")
    async with sqlite_store.read() as session:
        assert (await session.execute(select(Medium))).scalar_one().ready is False
    await asyncio.wait_for(job.finished.wait(), 30)
    assert job.state == "done", job.message
    async with sqlite_store.read() as session:
        row = (await session.execute(select(Medium))).scalar_one()
        assert row.ready and "treeinfo" in row.verified_by and row.mirror == "http://mirror/rocky"
        events = (await session.execute(select(Event))).scalars().all()
        assert [(e.kind, e.actor) for e in events] == [("medium.added", "user:eva")]
    # again, with another kernel: the old file goes when the new one is in the row
    again = await jobs.start_medium(wish, actor="user:eva")
    await asyncio.wait_for(again.finished.wait(), 30)
    assert len(left_in(settings)) == 2
    await jobs.close()


async def test_failed_import_keeps_what_there_was(
    settings: Settings, sqlite_store: Store, tmp_path: Path
) -> None:
    """A failed import says why in the job and the history, and the medium stays as ready as it was."""
    jobs = MediaJobs(settings, sqlite_store)
    job = await jobs.start_medium(
        MediumWish("rocky-9", "rocky-9", source=str(tmp_path / "none")), actor="user:eva"
    )
    await asyncio.wait_for(job.finished.wait(), 30)
    await jobs.close()
    assert job.state == "failed" and "does not exist" in job.message
    async with sqlite_store.read() as session:
        assert (await session.execute(select(Medium))).scalar_one().ready is False
        assert [e.kind for e in (await session.execute(select(Event))).scalars()] == ["medium.failed"]
    with pytest.raises(NotFound):
        await jobs.start_medium(MediumWish("x", "plan9-4", source=str(tmp_path)), actor="user:eva")


async def test_image_import_and_stop(
    settings: Settings, sqlite_store: Store, tmp_path: Path, web_server: Web
) -> None:
    """An image's row appears with its files; a stopped daemon leaves neither."""
    source = disk(tmp_path / "disk.qcow2")
    jobs = MediaJobs(settings, sqlite_store)
    job = await jobs.start_image(
        ImageRequest("deb", str(source), "qcow2"),
        operating_system="debian-12",
        user="debian",
        actor="user:eva",
    )
    await asyncio.wait_for(job.finished.wait(), 30)
    assert job.state == "done", job.message
    async with sqlite_store.read() as session:
        row = (await session.execute(select(Image))).scalar_one()
        assert (row.format, row.size, row.user) == ("raw", 64 * MIB, "debian")
    before = left_in(settings)
    slow = await jobs.start_image(
        ImageRequest("two", str(source), "qcow2"), operating_system=None, actor="user:eva"
    )
    await asyncio.sleep(0.02)
    await jobs.close()
    assert slow.state in {"failed", "done"}
    if slow.state == "failed":
        assert left_in(settings) == before


# --- who may ------------------------------------------------------------------------------------------------


async def test_only_an_admin_names_a_local_path(tmp_path: Path) -> None:
    """An operator cannot have the daemon read its own files and serve them to a machine; a URL may be given by either."""
    async with open_doors(tmp_path / "state") as doors:
        await doors.call("POST", "/users", {"name": "olga", "role": "operator"})
        _, made = await doors.call("POST", "/tokens", {"user": "olga"})
        secret = {"name": "x", "source": str(tmp_path / "state/secret.key"), "format": "raw"}
        for path, body in (
            ("/images", secret),
            ("/media", {"name": "x", "operating_system": "debian-12", "source": "/etc"}),
        ):
            status, answer = await doors.call("POST", path, body, token=made["token"])
            assert status == 403 and "admin" in answer["detail"]
        status, _ = await doors.call(
            "POST", "/images", {**secret, "source": "https://127.0.0.1:9/x"}, token=made["token"]
        )
        assert status == 202


async def test_missing_program(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where qemu-img is not installed, the sentence says which package has it."""
    source = disk(tmp_path / "disk.qcow2")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MediaError, match="apt install"):
        await add_image(settings, ImageRequest("deb", str(source), "qcow2"), quiet)
    assert left_in(settings) == []
