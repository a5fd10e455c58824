"""The firmware's boot entries: read, put in order, and what they start."""

from pathlib import Path

import pytest

from ramdisk_agent import efi_entries

# efibootmgr 17 under OVMF, booted over the network
LISTING = """BootCurrent: 0003
Timeout: 0 seconds
BootOrder: 0000,0003,0002
Boot0000* UiApp
Boot0002* UEFI Misc Device\tPciRoot(0x0)/Pci(0x3,0x0){auto_created_boot_option}
Boot0003* UEFI PXEv4 (MAC:525400123456)\tPciRoot(0x0)/Pci(0x2,0x0)/MAC(525400123456,1)/IPv4(0.0.0.0,0,DHCP)
Boot0004  debian
"""


def test_entries_are_read() -> None:
    """Numbers, labels without paths, order, the entry this boot came by; an inactive entry counts too."""
    found = efi_entries.parse(LISTING)
    assert found.entries["0003"] == "UEFI PXEv4 (MAC:525400123456)"
    assert found.entries["0004"] == "debian"
    assert (found.order, found.current, found.next) == (["0000", "0003", "0002"], "0003", None)


@pytest.mark.parametrize(
    ("order", "current", "wanted"),
    [
        (["0000", "0003", "0002"], "0003", ["0003", "0005", "0000", "0002"]),
        (["0003", "0005"], "0003", ["0003", "0005"]),
        (["0000", "0002"], "0009", ["0005", "0000", "0002"]),
        ([], None, ["0005"]),
    ],
)
def test_the_network_stays_first(order: list[str], current: str | None, wanted: list[str]) -> None:
    """The new entry comes behind the one this boot came by; first where that one is in no order."""
    assert efi_entries.ordered(order, "0005", current) == wanted


def test_the_loader_on_an_esp(tmp_path: Path) -> None:
    """Shim before GRUB, a vendor's before the one that belongs to everybody."""
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/debian/grubx64.efi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert efi_entries.find_loader(tmp_path, "x64") == r"\EFI\debian\grubx64.efi"
    (tmp_path / "EFI/debian/shimx64.efi").touch()
    assert efi_entries.find_loader(tmp_path, "x64") == r"\EFI\debian\shimx64.efi"
    assert efi_entries.find_loader(tmp_path, "aa64") is None
