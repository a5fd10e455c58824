"""Ubuntu's live-server ISO: made small by genisoimage, listed, signed with a real key, fetched from a real web server."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from provisiond.config import Settings
from provisiond.media.fetch import MediaError
from provisiond.media.installers import InstallerRequest, add_medium
from tests.integration.test_media import (
    INITRD,
    KERNEL,
    Signer,
    Web,
    left_in,
    quiet,
    settings,
    signer,
    web_server,
)

__all__ = ["settings", "signer", "web_server"]
NAME = "ubuntu-24.04.3-live-server-amd64.iso"
SAYS = 'Ubuntu-Server 24.04.3 LTS "Noble Numbat" - Release amd64 (20250805.1)\n'


def build_release(root: Path, signer: Signer, *, says: str = SAYS, casper: bool = True) -> Path:
    """A directory of releases.ubuntu.com with two ISOs, of which one is whole, and gives that one's path."""
    tree = root / "tree"
    (tree / ".disk").mkdir(parents=True)
    (tree / ".disk/info").write_text(says)
    if casper:
        (tree / "casper").mkdir()
        (tree / "casper/vmlinuz").write_bytes(KERNEL)
        (tree / "casper/initrd").write_bytes(INITRD)
    folder = root / "24.04"
    folder.mkdir()
    iso = folder / NAME
    subprocess.run(["genisoimage", "-quiet", "-R", "-J", "-o", iso, tree], check=True, capture_output=True)
    digest = hashlib.sha256(iso.read_bytes()).hexdigest()
    others = ("ubuntu-24.04.1-live-server-amd64.iso", "ubuntu-24.04.3-desktop-amd64.iso")
    lines = [f"{digest} *{NAME}\n", *(f"{'0' * 64} *{name}\n" for name in others)]
    (folder / "SHA256SUMS").write_text("".join(lines))
    signer.gpg("--detach-sign", "--output", str(folder / "SHA256SUMS.gpg"), str(folder / "SHA256SUMS"))
    return iso


def ubuntu(source: str, signer: Signer) -> InstallerRequest:
    return InstallerRequest("ubuntu-24.04", "ubuntu", "24.04", source, keyring=signer.keyring)


@pytest.mark.parametrize("whole", [False, True])
async def test_from_a_signed_directory(
    settings: Settings, signer: Signer, web_server: Web, whole: bool
) -> None:
    """The newest live-server ISO of the release is taken, or the one that is named; kernel, initrd and the ISO itself are kept."""
    iso = build_release(web_server.root, signer)
    source = f"{web_server.url}/24.04" + (f"/{NAME}" if whole else "/")
    told: list[str] = []
    files = await add_medium(settings, ubuntu(source, signer), lambda what, *_: told.append(what))
    kept = {
        what: (settings.state.media_dir / str(file["path"])).read_bytes()
        for what, file in files.files.items()
    }
    assert kept == {"kernel": KERNEL, "initrd": INITRD, "iso": iso.read_bytes()}
    assert files.verified_by == f"SHA256SUMS of {web_server.url}/24.04, signed by a key of archive.gpg"
    assert files.mirror == "http://archive.ubuntu.com/ubuntu" and "iso" in told
    assert len(left_in(settings)) == 3


async def test_from_this_machine(settings: Settings, signer: Signer, tmp_path: Path) -> None:
    """A file beside its SHA256SUMS, and one that stands alone with the digest that was given; alone without one it is refused."""
    iso = build_release(tmp_path, signer)
    request = ubuntu(str(iso), signer)
    assert "signed by" in (await add_medium(settings, request, quiet)).verified_by
    unsigned = await add_medium(settings, replace(request, keyring=tmp_path / "none.gpg"), quiet)
    assert "its signature was not checked" in unsigned.verified_by
    alone = tmp_path / "alone.iso"
    alone.write_bytes(iso.read_bytes())
    with pytest.raises(MediaError, match="nothing vouches for the files"):
        await add_medium(settings, ubuntu(str(alone), signer), quiet)
    given = replace(ubuntu(str(alone), signer), sha256=hashlib.sha256(alone.read_bytes()).hexdigest())
    assert (await add_medium(settings, given, quiet)).verified_by == "the SHA-256 given for the ISO"
    with pytest.raises(MediaError, match="does not match the SHA-256 given"):
        await add_medium(settings, replace(given, sha256="0" * 64), quiet)


async def test_what_cannot_be_believed(settings: Settings, signer: Signer, web_server: Web) -> None:
    """A changed list, a changed ISO, and over plain http a list that nobody signed: refused, and nothing is kept."""
    iso = build_release(web_server.root, signer)
    sums = iso.parent / "SHA256SUMS"
    good = sums.read_text()
    sums.write_text(good.replace("desktop", "deskt0p"))
    with pytest.raises(MediaError, match="no good signature"):
        await add_medium(settings, ubuntu(f"{web_server.url}/24.04", signer), quiet)
    sums.write_text(good)
    content = bytearray(iso.read_bytes())
    content[-1] ^= 1
    iso.write_bytes(content)
    with pytest.raises(MediaError, match="does not match SHA256SUMS"):
        await add_medium(settings, ubuntu(f"{web_server.url}/24.04", signer), quiet)
    (iso.parent / "SHA256SUMS.gpg").unlink()
    with pytest.raises(MediaError, match="that can be believed"):
        await add_medium(settings, ubuntu(f"{web_server.url}/24.04", signer), quiet)
    with pytest.raises(MediaError, match="nothing vouches"):
        await add_medium(settings, ubuntu(f"{web_server.url}/24.04/{NAME}", signer), quiet)
    assert left_in(settings) == []


@pytest.mark.parametrize(
    ("says", "casper", "reason"),
    [
        ("Ubuntu-Server 22.04.5 LTS - Release amd64\n", True, "not Ubuntu 24.04 for amd64"),
        ("Ubuntu-Server 24.04.3 LTS - Release arm64\n", True, "not Ubuntu 24.04 for amd64"),
        (SAYS, False, "no live-server ISO"),
    ],
)
async def test_another_iso(
    settings: Settings, signer: Signer, tmp_path: Path, says: str, casper: bool, reason: str
) -> None:
    """Another release, another architecture, and a CD without a live system are told apart."""
    iso = build_release(tmp_path, signer, says=says, casper=casper)
    with pytest.raises(MediaError, match=reason):
        await add_medium(settings, ubuntu(str(iso), signer), quiet)
    assert left_in(settings) == []
