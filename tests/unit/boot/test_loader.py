"""The table of network boot programs, and the files behind it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from provisiond.boot.loader import TABLE, load
from provisiond.boot.server import boot_options
from provisiond.config import BootSettings
from provisiond.errors import ConfigError


def folder(tmp_path: Path, *names: str) -> Path:
    """A directory with these programs, each holding its own name."""
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_choice_by_architecture(tmp_path: Path) -> None:
    """Option 93 picks the program; a kind that an architecture lacks falls back to iPXE, an unknown one to nothing."""
    names = (
        "undionly.kpxe",
        "snponly.efi",
        "ipxe.efi",
        "pxelinux.0",
        "shimx64.efi.signed",
        "snponly-arm64.efi",
    )
    loaders = load([folder(tmp_path, *names)])
    chosen = {
        (c, k): p and p.name
        for c in (0, 7, 9, 11, 16, 6)
        for k in ("ipxe", "grub", "pxelinux")
        for p in [loaders.choose(c, k)]
    }
    assert chosen == {
        (0, "ipxe"): "undionly.kpxe", (0, "grub"): "undionly.kpxe", (0, "pxelinux"): "pxelinux.0",
        (7, "ipxe"): "snponly.efi", (7, "grub"): "shimx64.efi", (7, "pxelinux"): "snponly.efi",
        (9, "ipxe"): "snponly.efi", (9, "grub"): "shimx64.efi", (9, "pxelinux"): "snponly.efi",
        (11, "ipxe"): "snponly-arm64.efi", (11, "grub"): None, (11, "pxelinux"): "snponly-arm64.efi",
        (16, "ipxe"): "ipxe.efi", (16, "grub"): "ipxe.efi", (16, "pxelinux"): "ipxe.efi",
        (6, "ipxe"): None, (6, "grub"): None, (6, "pxelinux"): None,
    }  # fmt: skip


def test_tables_for_dhcp(tmp_path: Path) -> None:
    """DHCP is told of programs that are there, HTTP boot by whole URLs."""
    loaders = load([folder(tmp_path, "undionly.kpxe", "ipxe.efi")])
    assert loaders.by_tftp() == ((0, "undionly.kpxe"),)
    assert loaders.by_http("http://10.0.0.1:8421") == ((16, "http://10.0.0.1:8421/boot/loader/ipxe.efi"),)
    assert loaders.missing["snponly.efi"] == "ipxe"


def test_served_is_what_was_found(tmp_path: Path) -> None:
    """A program that changes on disk later is served as it was at start, under the digest that was logged."""
    loaders = load([folder(tmp_path, "undionly.kpxe")])
    (tmp_path / "undionly.kpxe").write_bytes(b"swapped")
    program = loaders.get("undionly.kpxe")
    assert program is not None
    assert program.sha256 == hashlib.sha256(program.content).hexdigest()
    assert program.content == b"undionly.kpxe"


def test_first_directory_wins(tmp_path: Path) -> None:
    """The directories are an order: an administrator's own comes before the distribution's."""
    for name in ("own", "debian"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ipxe.efi").write_text(name)
    program = load([tmp_path / "own", tmp_path / "debian"]).get("ipxe.efi")
    assert program is not None and program.content == b"own"


def test_pinned_digest(tmp_path: Path) -> None:
    """A program that is not the pinned one keeps the daemon from starting, rather than machines from booting."""
    folder(tmp_path, "x.efi")
    table = tmp_path / "t.toml"
    head = "architecture = []\n[[program]]\nname = 'x.efi'\nfiles = ['x.efi']\n"
    table.write_text(head + f"sha256 = '{hashlib.sha256(b'x.efi').hexdigest()}'\n")
    assert load([tmp_path], table).get("x.efi") is not None
    table.write_text(head + f"sha256 = '{'0' * 64}'\n")
    with pytest.raises(ConfigError, match="pins"):
        load([tmp_path], table)


@pytest.mark.parametrize("text", ["", "not toml", "program = []\narchitecture = [{code = 1, name = 'x'}]"])
def test_broken_table(tmp_path: Path, text: str) -> None:
    """A wrong table is one sentence with its path."""
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.toml"):
        load([tmp_path], tmp_path / "t.toml")


def test_debians_packages() -> None:
    """What Debian's packages put where: every program of x86 is found with the default directories."""
    loaders = load(BootSettings().loader_dirs, TABLE)
    absent = {name for name in loaders.missing if "aa64" not in name and "arm64" not in name}
    if absent:
        pytest.skip(f"not installed: {', '.join(sorted(absent))}")
    assert [code for code, _ in loaders.by_tftp()] == [0, 7, 9]
    assert loaders.by_tftp("grub") == ((0, "undionly.kpxe"), (7, "shimx64.efi"), (9, "shimx64.efi"))


def test_pxelinux_goes_to_firmware_that_is_ipxe_too(tmp_path: Path) -> None:
    """Where PXELINUX was chosen and is there, DHCP gives it to BIOS machines whose ROM is iPXE; no other kind does so."""
    names = ("undionly.kpxe", "snponly.efi", "pxelinux.0", "shimx64.efi.signed")
    loaders = load([folder(tmp_path, *names)])
    assert {kind: loaders.instead_of_ipxe(kind) for kind in ("ipxe", "grub", "pxelinux")} == {
        "ipxe": (), "grub": (), "pxelinux": (0,),
    }  # fmt: skip
    options = boot_options(loaders, "http://10.0.0.1:8421", "pxelinux")
    assert (options.programs[0], options.over_ipxe) == ((0, "pxelinux.0"), (0,))
    (tmp_path / "pxelinux.0").unlink()
    assert load([tmp_path]).instead_of_ipxe("pxelinux") == ()
