"""Installers of SUSE, Fedora CoreOS, Flatcar and Talos from made-up trees: directories, and a real web server on the loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from provisiond.config import Settings, StateSettings
from provisiond.media.fetch import MediaError
from provisiond.media.installers import InstallerRequest, add_medium
from tests.integration.test_media import quiet

KERNEL, INITRD, ROOTFS = b"kernel" * 10_000, b"initrd" * 10_001 + b"x", b"rootfs" * 30_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=StateSettings(dir=tmp_path / "state"))


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Path, str]]:
    """A web server over a directory, over plain http."""
    root = tmp_path / "web"
    root.mkdir()
    app = web.Application()
    app.router.add_static("/", root)
    async with TestServer(app) as running:
        yield root, str(running.make_url("")).rstrip("/")


def put(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def sums(files: dict[str, bytes], algorithm: str, prefix: str = "") -> bytes:
    return "".join(
        f"{hashlib.new(algorithm, content).hexdigest()}  {prefix}{path}\n" for path, content in files.items()
    ).encode()


def suse_tree(root: Path) -> Path:
    files = {"boot/x86_64/loader/linux": KERNEL, "boot/x86_64/loader/initrd": INITRD}
    put(root, {**files, "CHECKSUMS": sums(files, "sha256")})
    return root


def coreos_tree(root: Path) -> Path:
    files = {
        "live-kernel": ("fcos-live-kernel.x86_64", KERNEL),
        "live-initramfs": ("fcos-live-initramfs.x86_64.img", INITRD),
        "live-rootfs": ("fcos-live-rootfs.x86_64.img", ROOTFS),
    }
    images = {n: {"path": p, "sha256": hashlib.sha256(c).hexdigest()} for n, (p, c) in files.items()}
    meta = json.dumps({"buildid": "42.1", "coreos-assembler.basearch": "x86_64", "images": images})
    put(root, {**dict(files.values()), "meta.json": meta.encode()})
    return root


def flatcar_tree(root: Path) -> Path:
    files = {"flatcar_production_pxe.vmlinuz": KERNEL, "flatcar_production_pxe_image.cpio.gz": INITRD}
    for path, content in files.items():
        digests = b"".join(
            b"# %s HASH\n%s" % (name.encode(), sums({path: content}, name.lower()))
            for name in ("MD5", "SHA1", "SHA512")
        )
        put(root, {path: content, f"{path}.DIGESTS": digests})
    return root


def talos_tree(root: Path) -> Path:
    files = {"vmlinuz-amd64": KERNEL, "initramfs-amd64.xz": INITRD}
    put(root, {**files, "sha512sum.txt": sums(files, "sha512", "_out/")})
    return root


TREES = {"suse": suse_tree, "coreos": coreos_tree, "flatcar": flatcar_tree, "talos": talos_tree}


@pytest.mark.parametrize("family", list(TREES))
async def test_from_a_directory(settings: Settings, tmp_path: Path, family: str) -> None:
    """Kernel and initrd are taken and checked; CoreOS' root file system stands behind its initrd, where the kernel looks for it."""
    tree = TREES[family](tmp_path / "tree")
    taken = await add_medium(settings, InstallerRequest("m", family, "1", str(tree)), quiet)
    files = {n: (settings.state.media_dir / str(f["path"])).read_bytes() for n, f in taken.files.items()}
    initrd = INITRD + b"\0" * (-len(INITRD) % 4) + ROOTFS if family == "coreos" else INITRD
    assert files == {"kernel": KERNEL, "initrd": initrd}
    for name, content in files.items():
        assert taken.files[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert taken.files[name]["bytes"] == len(content)
    assert str(tree) in taken.verified_by and taken.mirror == ""
    assert {p.name for p in (settings.state.media_dir / "m").iterdir()} == {
        Path(str(f["path"])).name for f in taken.files.values()
    }


@pytest.mark.parametrize("family", list(TREES))
async def test_in_the_open_only_when_asked(settings: Settings, server: tuple[Path, str], family: str) -> None:
    """Over plain http nothing is taken but unverified, and even then damage is seen."""
    root, url = server
    TREES[family](root / "t")
    request = InstallerRequest("m", family, "1", f"{url}/t")
    with pytest.raises(MediaError, match=r"plain http .*https, or --unverified"):
        await add_medium(settings, request, quiet)
    taken = await add_medium(settings, replace(request, unverified=True), quiet)
    assert "unverified" in taken.verified_by
    assert taken.mirror == (f"{url}/t" if family == "suse" else "")
    damaged = max((p for p in (root / "t").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with pytest.raises(MediaError, match=f"{damaged.name}.* does not match"):
        await add_medium(settings, replace(request, unverified=True), quiet)


@pytest.mark.parametrize("family", list(TREES))
async def test_another_tree(settings: Settings, tmp_path: Path, family: str) -> None:
    """What is no tree of the family is refused with what is missing."""
    (tmp_path / "tree").mkdir()
    with pytest.raises(MediaError, match=r"is no .*(CHECKSUMS|meta\.json|DIGESTS|sha256sum\.txt)"):
        await add_medium(settings, InstallerRequest("m", family, "1", str(tmp_path / "tree")), quiet)


async def test_other_architecture(settings: Settings, tmp_path: Path) -> None:
    """A build of CoreOS for another architecture is refused."""
    tree = coreos_tree(tmp_path / "tree")
    request = InstallerRequest("m", "coreos", "42", str(tree), architecture="aarch64")
    with pytest.raises(MediaError, match="is for x86_64, not for aarch64"):
        await add_medium(settings, request, quiet)
