"""Who the agent says that it is, and what it reads of the kernel's arguments."""

from pathlib import Path

from ramdisk_agent.__main__ import arguments, boot_secret, identity


def test_arguments() -> None:
    """The address of the card comes from its own argument, else from what the boot loader says."""
    line = "quiet provisiond.url=http://[2001:db8::1]:8421 BOOTIF=01-52-54-00-AA-BB-CC provisiond.ticket=T provisiond.shell"
    assert arguments(line) == {
        "url": "http://[2001:db8::1]:8421",
        "mac": "52:54:00:aa:bb:cc",
        "ticket": "T",
        "shell": "",
    }
    assert (
        arguments("provisiond.mac=52-54-00-00-00-01 BOOTIF=01-52-54-00-AA-BB-CC")["mac"]
        == "52:54:00:00:00:01"
    )


def card(sys: Path, name: str, mac: str, device: str | None) -> None:
    """A network card below a sysfs."""
    folder = sys / "class/net" / name
    folder.mkdir(parents=True)
    (folder / "address").write_text(f"{mac}\n")
    if device:
        (sys / device).mkdir(parents=True, exist_ok=True)
        (folder / "device").symlink_to(sys / device)


def test_identity(tmp_path: Path) -> None:
    """Real cards, the one that was booted from first; no bridges, and no card of a management controller on USB."""
    card(tmp_path, "lo", "00:00:00:00:00:00", None)
    card(tmp_path, "br0", "02:00:00:00:00:99", None)
    card(tmp_path, "eno1", "52:54:00:00:00:01", "devices/pci0/0000:01:00.0")
    card(tmp_path, "eno2", "52:54:00:00:00:02", "devices/pci0/0000:01:00.1")
    card(tmp_path, "usb0", "0a:94:ef:00:00:01", "devices/pci0/usb1/1-1/1-1:1.0")
    dmi = tmp_path / "class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "product_serial").write_text("SN-1\n")
    (dmi / "product_uuid").write_text("\n")
    assert identity("52:54:00:00:00:02", str(tmp_path)) == {
        "macs": ["52:54:00:00:00:02", "52:54:00:00:00:01"],
        "serial": "SN-1",
        "uuid": None,
    }
    assert identity(None, str(tmp_path / "nothing")) == {"macs": [], "serial": None, "uuid": None}


def test_secret_of_one_boot(tmp_path: Path) -> None:
    """The same for every agent of one boot, 256 bits, for root alone."""
    path = tmp_path / "run/secret"
    first = boot_secret(str(path))
    assert len(bytes.fromhex(first)) == 32 and boot_secret(str(path)) == first
    assert path.stat().st_mode & 0o777 == 0o600
    assert boot_secret(str(tmp_path / "other/secret")) != first
