"""Lists of checksums as their vendors write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.media.checks import checksum_list, dpkg_list, treeinfo
from provisiond.media.fetch import MediaError
from provisiond.media.staging import check_name
from provisiond.media.trees import DirectoryTree

TREEINFO = b"""[checksums]
images/pxeboot/initrd.img = sha256:AA11
images/pxeboot/vmlinuz = sha512:bb22
images/old = md5:cc33

[general]
arch = x86_64
family = Rocky Linux

[tree]
arch = x86_64
"""


def test_treeinfo() -> None:
    """Digests by path; weak algorithms vouch for nothing."""
    assert treeinfo(TREEINFO, "here", "x86_64").digests == {
        "images/pxeboot/initrd.img": ("sha256", "aa11"),
        "images/pxeboot/vmlinuz": ("sha512", "bb22"),
    }


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[general]\narch = x86_64\n", b"no section"])
def test_broken_treeinfo(text: bytes) -> None:
    """A .treeinfo without checksums, or that is none, is refused in one sentence."""
    with pytest.raises(MediaError, match="treeinfo"):
        treeinfo(text, "here", "x86_64")


def test_treeinfo_without_checksums_says_what_to_take() -> None:
    """The message names what is missing and what to do, not a Python exception."""
    with pytest.raises(MediaError, match=r"lists no \[checksums\].*take a whole tree"):
        treeinfo(b"[general]\narch = x86_64\n", "here", "x86_64")


def test_treeinfo_of_another_architecture() -> None:
    """A tree for another machine is refused, with the option that would take it."""
    with pytest.raises(MediaError, match="--arch x86_64"):
        treeinfo(TREEINFO, "here", "aarch64")


async def test_checksum_list_is_found_above(tmp_path: Path) -> None:
    """SHA256SUMS lists files below itself, wherever above the folder it lies."""
    (tmp_path / "netboot").mkdir()
    (tmp_path / "SHA256SUMS").write_text(f"{'ab' * 32}  ./netboot/linux\nnot a line\n")
    found = await checksum_list(DirectoryTree(tmp_path), "netboot")
    assert found is not None
    assert found.digests == {"netboot/linux": ("sha256", "ab" * 32)}
    assert await checksum_list(DirectoryTree(tmp_path / "netboot"), "") is None


def test_dpkg_list_of_a_stranger(tmp_path: Path) -> None:
    """Files that no package owns are vouched for by none."""
    assert dpkg_list(DirectoryTree(tmp_path), ("linux", "initrd.gz")) is None


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", "UP", "a..b", ".hidden", "x" * 65, "a\n"])
def test_names_cannot_leave_their_folder(name: str) -> None:
    """A medium's name becomes a directory: what could lead out of it is no name."""
    with pytest.raises(MediaError):
        check_name(name)
    assert check_name("debian-12") == "debian-12"
