"""How the machine was started (BIOS or UEFI, Secure Boot), its TPM, and whether it is a virtual one."""

import os
import re
from typing import Any

from ramdisk_agent.facts.text import names, read

# UEFI 2.10, 3.3: global variables; efivarfs puts four bytes of attributes before the value
_SECURE_BOOT = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# what hypervisors put into the tables of firmware: (vendor, model, name)
_VIRTUAL = (
    ("vmware", "", "vmware"),
    ("innotek", "", "virtualbox"),
    ("oracle corporation", "virtualbox", "virtualbox"),
    ("microsoft corporation", "virtual machine", "hyperv"),
    ("xen", "", "xen"),
    ("amazon ec2", "", "kvm"),
    ("google", "google compute engine", "kvm"),
    ("red hat", "kvm", "kvm"),
    ("red hat", "openstack", "kvm"),
    ("red hat", "rhev", "kvm"),
    ("openstack", "", "kvm"),
    ("ovirt", "", "kvm"),
    ("nutanix", "ahv", "kvm"),
    ("digitalocean", "", "kvm"),
    ("hetzner", "vserver", "kvm"),
    ("parallels", "", "parallels"),
    ("bochs", "", "bochs"),
    ("bhyve", "", "bhyve"),
    ("apple inc.", "apple virtualization", "apple"),
)


def mode(root: str = "/sys/firmware/efi") -> str:
    """uefi or bios."""
    return "uefi" if os.path.isdir(root) else "bios"


def secure_boot(root: str = "/sys/firmware/efi") -> bool | None:
    """Whether Secure Boot is on; None where there is no such thing or it cannot be read."""
    try:
        with open(f"{root}/efivars/{_SECURE_BOOT}", "rb") as file:
            value = file.read(5)
    except OSError:
        return None
    return value[4] == 1 if len(value) == 5 else None


def gather_secure_boot() -> bool | None:
    """`secure_boot` of this machine; mounts efivarfs where nobody did."""
    if mode() == "uefi" and not names("/sys/firmware/efi/efivars"):
        from ramdisk_agent.run import run

        run(["mount", "-t", "efivarfs", "efivarfs", "/sys/firmware/efi/efivars"], check=False)
    return secure_boot()


def tpm(root: str = "/sys/class/tpm") -> str | None:
    """2.0, 1.2, or None where there is none."""
    if not os.path.isdir(f"{root}/tpm0"):
        return None
    major = read(f"{root}/tpm0/tpm_version_major")
    return {"2": "2.0", "1": "1.2"}.get(major) or (
        "1.2" if "TCG version: 1.2" in read(f"{root}/tpm0/caps") else "2.0"
    )


def virtual(vendor: str | None, model: str | None, root: str = "/") -> str | None:
    """kvm, qemu (emulated without KVM), vmware, hyperv, xen, virtualbox, ...; None for a real machine."""
    vendor, model = (vendor or "").lower(), (model or "").lower()
    for prefix, beginning, name in _VIRTUAL:
        if vendor.startswith(prefix) and model.startswith(beginning):
            return name
    clocks = read(f"{root}/sys/devices/system/clocksource/clocksource0/available_clocksource")
    if "kvm-clock" in clocks:
        return "kvm"
    if vendor.startswith("qemu") or "kvm virtual machine" in model or "qemu" in model:
        return "qemu"
    if read(f"{root}/sys/hypervisor/type") == "xen":
        return "xen"
    # hypervisors set this bit for their guests (CPUID leaf 1, ECX bit 31)
    return "unknown" if " hypervisor" in read(f"{root}/proc/cpuinfo")[:20_000] else None


def own_serial(machine: dict[str, Any], virtual: str | None) -> str | None:
    """The serial number, but None for the one that oVirt and RHEV give all guests of one host: a UUID which is not the guest's."""
    serial = machine.get("serial")
    if (
        virtual
        and isinstance(serial, str)
        and _UUID.fullmatch(serial.lower())
        and serial.lower() != machine.get("uuid")
    ):
        return None
    return serial


def gather(machine: dict[str, Any]) -> dict[str, Any]:
    """{"firmware": mode and secure_boot, "tpm", "virtual"}; `machine` is dmi.gather()'s."""
    return {
        "firmware": {"mode": mode(), "secure_boot": gather_secure_boot()},
        "tpm": tpm(),
        "virtual": virtual(machine.get("vendor"), machine.get("model")),
    }
