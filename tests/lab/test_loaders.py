"""Every way in: real firmware and real loaders at the whole daemon's doors, until the ramdisk asks for its plan.

That request is the proof that DHCP, network boot program, its configuration and the kernel's arguments agree. Where it goes on
from there is the same for all (test_lifecycle.py).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.kit.doors import Doors
from tests.lab.kit.lab import Lab
from tests.lab.kit.machines import BareMetal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
PLAN = "/agent/plan"
PATIENCE = 300.0  # seconds from power-on to the plan; a quiet machine needs 20 to 50


@pytest.fixture
def boots(lab: Lab, request: pytest.FixtureRequest) -> Iterator[tuple[BareMetal, Doors]]:
    """A blank machine that is being built by a daemon whose machines get the loader the test names; off at the end."""
    loader, firmware, *parameters = request.param
    lab.restart("boot", loader=loader)
    machine = lab.bare_metal(f"{loader}-{firmware}", firmware=firmware)
    lab.create_metal(machine, "--build", "--handover", "none", *parameters)
    try:
        yield machine, Doors(lab, machine.name)
    finally:
        lab.daemon.ctl("host", "cancel", machine.name, check=False)
        machine.power(False)


def _asked_for_its_plan(lab: Lab, machine: BareMetal, doors: Doors) -> list[str]:
    """The paths it was given until then."""
    plan = doors.until(PLAN, PATIENCE)
    doors.tell()
    kinds = [event["kind"] for event in lab.history(machine.name)]
    assert kinds.count("boot.asked") == 1, lab.story(machine.name)
    return [f"{leg.by} {leg.path}" for leg in doors.legs() if leg.seconds <= plan.seconds]


@pytest.mark.parametrize("boots", [("pxelinux", "bios")], indirect=True)
def test_pxelinux(lab: Lab, boots: tuple[BareMetal, Doors]) -> None:
    """BIOS: PXELINUX, its module, its configuration by MAC, kernel and initrd, all by TFTP from the daemon."""
    machine, doors = boots
    paths = _asked_for_its_plan(lab, machine, doors)
    config = f"tftp pxelinux.cfg/01-{machine.mac.replace(':', '-')}"
    assert [path for path in paths if path == config] == [config], paths
    assert {"tftp pxelinux.0", "tftp ldlinux.c32", "tftp boot/TOKEN/kernel", "tftp boot/TOKEN/initrd"} <= set(
        paths
    )
    assert not [path for path in paths if "ipxe" in path], paths


@pytest.mark.parametrize("boots", [("ipxe", "uefi-http")], indirect=True)
def test_uefi_http_boot(lab: Lab, boots: tuple[BareMetal, Doors]) -> None:
    """UEFI without PXE: DHCP answers architecture 16 with a URL, the firmware loads iPXE from there. No TFTP at all."""
    machine, doors = boots
    paths = _asked_for_its_plan(lab, machine, doors)
    assert paths[0].startswith("http /boot/loader/ipxe.efi"), paths
    assert "http /boot/TOKEN/kernel" in paths
    assert not [path for path in paths if path.startswith("tftp")], paths


@pytest.mark.lab_full
@pytest.mark.parametrize("boots", [("grub", "uefi-secure", "--param", "kernel_arguments=[]")], indirect=True)
def test_secure_boot(lab: Lab, boots: tuple[BareMetal, Doors]) -> None:
    """UEFI with Secure Boot: shim, Debian's signed GRUB and its configuration by TFTP; then a kernel that was signed too."""
    machine, doors = boots
    paths = _asked_for_its_plan(lab, machine, doors)
    names = [path.removeprefix("tftp ").removeprefix("/") for path in paths if path.startswith("tftp")]
    order = [names.index(name) for name in ("shimx64.efi", "grubx64.efi")]
    assert order == sorted(order), names
    assert [name for name in names if name.startswith("grub/grub.cfg")], names
    assert "boot/TOKEN/kernel" in names and "boot/TOKEN/initrd" in names
    assert "secureboot: Secure boot enabled" in machine.said(), machine.said()[-3000:]
