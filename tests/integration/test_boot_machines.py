"""The scripts as real loaders read them: iPXE, PXELINUX and GRUB in QEMU, on BIOS and UEFI, up to a kernel's command line or the disk.

Networking is QEMU's own (slirp): the machine reaches this server on the loopback, and nothing else is configured. What TFTP
would serve is put into a directory for slirp's TFTP server (tests/integration/test_tftp.py tries ours with the same loaders).
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from tests.boot_world import Built, Served, boot_world

KERNELS = sorted(Path("/boot").glob("vmlinuz-*"))
PXELINUX = Path("/usr/lib/PXELINUX/pxelinux.0")
LDLINUX = Path("/usr/lib/syslinux/modules/bios/ldlinux.c32")
GRUB = Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
OVMF_CODE, OVMF_VARS = Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
DEAD_ENDS = ("grub> ", "No more network devices", "UEFI Interactive Shell")
PATIENCE = 200.0  # seconds; a quiet machine needs 10 to 40

pytestmark = [
    pytest.mark.timeout(500),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="qemu-system-x86 is not installed"),
    pytest.mark.skipif(not KERNELS, reason="there is no /boot/vmlinuz-*"),
]

# Writes a word to the serial port and stops: what a machine's own disk boots in these tests.
#   xor ax,ax; mov ds,ax; mov si,0x7c15; again: lodsb; test al,al; jz end; mov dx,0x3f8; out dx,al; jmp again; end: hlt; jmp end
BOOT_SECTOR = bytes.fromhex("31c08ed8be157cac84c07406baf803eeebf5f4ebfd") + b"OWN-DISK-BOOTED\r\n\0"


@pytest_asyncio.fixture
async def served(sqlite_store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server that machines reach at slirp's address of the host, with a real kernel for a ramdisk and an installer."""
    async with boot_world(sqlite_store, box, tmp_path) as running:
        for kernel in (tmp_path / "ramdisk/vmlinuz", tmp_path / "state/media/debian-12/kernel"):
            shutil.copy(KERNELS[-1], kernel)
        running.world.boot_url = running.world.boot_url.replace("127.0.0.1", "10.0.2.2")
        yield running


async def boot(
    host: Built,
    folder: Path,
    until: str,
    *,
    bootfile: str,
    tftp: Path | None = None,
    uefi: bool = False,
    rom: bool = True,
) -> str:
    """Start the machine and return its serial console once it says ``until``. Fails with the console when it never does."""
    disk, serial = folder / "own.raw", folder / "serial.log"
    disk.write_bytes(BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    command = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "512", "-display", "none", "-no-reboot", "-nodefaults",
        "-serial", f"file:{serial}", "-drive", f"file={disk},format=raw,if=virtio", "-boot", "n" if not uefi else "order=n",
        "-netdev", f"user,id=n,bootfile={bootfile}" + (f",tftp={tftp}" if tftp else ""),
        "-device", f"virtio-net-pci,netdev=n,mac={host.mac}" + ("" if rom else ",romfile="),
    ]  # fmt: skip
    if uefi:
        shutil.copy(OVMF_VARS, folder / "vars.fd")
        command += [
            "-drive",
            f"if=pflash,format=raw,readonly=on,file={OVMF_CODE}",
            "-drive",
            f"if=pflash,format=raw,file={folder / 'vars.fd'}",
        ]
    machine = await asyncio.create_subprocess_exec(*command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    console = ""
    try:
        for _ in range(int(PATIENCE * 4)):
            await asyncio.sleep(0.25)
            console = serial.read_text(errors="replace") if serial.exists() else ""
            if until in console or machine.returncode is not None or any(end in console for end in DEAD_ENDS):
                break
    finally:
        if machine.returncode is None:
            machine.kill()
        await machine.wait()
    assert until in console, f"the machine never said {until!r}:\n{console[-3000:]}"
    return console


async def tftp_tree(served: Served, host: Built, folder: Path, *names: str) -> Path:
    """A directory with what TFTP serves this machine under these names."""
    for name in names:
        content = await served.tftp(name, host.ip)
        assert content is not None, name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def command_line(console: str) -> list[str]:
    """The words the kernel was given."""
    line = next(line for line in console.splitlines() if "Command line:" in line)
    return line.partition("Command line:")[2].split()


@pytest.mark.parametrize("method", ["image", "installer"])
async def test_ipxe_on_bios(served: Served, tmp_path: Path, method: str) -> None:
    """iPXE follows the entry script to its own and starts the kernel with exactly the arguments that were meant; then its disk."""
    host = await served.host("web01", method=method, parameters={"kernel_arguments": ["a=b,c", "d=e;f"]})
    entry = f"{served.world.boot_url}/boot/ipxe"
    words = command_line(await boot(host, tmp_path, "Command line:", bootfile=entry))
    base = f"{served.world.boot_url}{host.base}"
    root = f"provisiond.url={served.world.boot_url}"
    assert (root if method == "image" else f"url={base}/unattended") in words
    assert {"initrd=initrd.img", "console=ttyS0,115200n8", "a=b,c", "d=e;f"} <= set(words)
    assert (await host.deployment()).boots == 1
    await host.set_deployment(built_at=(await host.deployment()).token_expires)
    await boot(host, tmp_path, "OWN-DISK-BOOTED", bootfile=entry)
    assert (await host.deployment()).boots == 1


@pytest.mark.skipif(not OVMF_CODE.exists(), reason="ovmf is not installed")
async def test_ipxe_on_uefi(served: Served, tmp_path: Path) -> None:
    """iPXE as a UEFI driver reads the same scripts and starts the installer's kernel with its initrd."""
    host = await served.host("web01", method="installer", firmware="uefi")
    console = await boot(
        host, tmp_path, "Command line:", bootfile=f"{served.world.boot_url}/boot/ipxe", uefi=True
    )
    words = command_line(console)
    assert {
        f"url={served.world.boot_url}{host.base}/unattended",
        "initrd=initrd.img",
        "hostname=web01",
    } <= set(words)


async def test_boot_loop_of_a_real_machine(served: Served, tmp_path: Path) -> None:
    """A machine that comes back to its installer for the third time boots its own disk instead."""
    host = await served.host("web01")
    await host.set_deployment(boots=2)
    await boot(host, tmp_path, "OWN-DISK-BOOTED", bootfile=f"{served.world.boot_url}/boot/ipxe")
    assert "3 times" in (await host.deployment()).failure


@pytest.mark.skipif(
    not (PXELINUX.exists() and LDLINUX.exists()), reason="pxelinux or syslinux-common is not installed"
)
async def test_pxelinux_on_bios(served: Served, tmp_path: Path) -> None:
    """PXELINUX reads its configuration, fetches kernel and initrd by TFTP below the token; after built it starts the disk."""
    host = await served.host("web01")
    config = f"pxelinux.cfg/01-{host.mac.replace(':', '-')}"
    tree = await tftp_tree(
        served, host, tmp_path / "tftp", config, f"boot/{host.token}/kernel", f"boot/{host.token}/initrd"
    )
    shutil.copy(PXELINUX, tree)
    shutil.copy(LDLINUX, tree)
    words = command_line(await boot(host, tmp_path, "Command line:", bootfile="pxelinux.0", tftp=tree))
    assert f"provisiond.url={served.world.boot_url}" in words
    assert len([word for word in words if word.startswith("provisiond.ticket=")]) == 1
    await host.set_deployment(built_at=(await host.deployment()).token_expires)
    await tftp_tree(served, host, tmp_path / "tftp", config)
    await boot(host, tmp_path, "OWN-DISK-BOOTED", bootfile="pxelinux.0", tftp=tree)


@pytest.mark.skipif(
    not (GRUB.exists() and OVMF_CODE.exists()), reason="grub-efi-amd64-signed or ovmf is not installed"
)
async def test_grub_on_uefi(served: Served, tmp_path: Path) -> None:
    """Debian's signed GRUB reads its configuration by MAC and starts the kernel with the arguments, quotes and all."""
    host = await served.host("web01", parameters={"kernel_arguments": ["a=&b", "c=d;e"]})
    names = [f"grub/grub.cfg-{host.mac}", f"boot/{host.token}/kernel", f"boot/{host.token}/initrd"]
    tree = await tftp_tree(served, host, tmp_path / "tftp", *names)
    entry = await served.tftp("grub/grub.cfg", "198.51.100.1")  # asked from an address no host has
    assert entry is not None
    (tree / "grub/grub.cfg").write_bytes(entry)
    shutil.copy(GRUB, tree / "grubx64.efi")
    words = command_line(
        await boot(host, tmp_path, "Command line:", bootfile="grubx64.efi", tftp=tree, uefi=True, rom=False)
    )
    assert f"provisiond.url={served.world.boot_url}" in words
    assert len([word for word in words if word.startswith("provisiond.ticket=")]) == 1
    assert {"a=&b", "c=d;e"} <= set(words)
