"""Machines that start from what the ramdisk made for them: / on LVM, on LVM over RAID 1, on LVM over LUKS over RAID 1.

The image is built by the daemon's own job from Debian's packages, which come in by a door to the mirror (PROVISIOND_LAB_MIRROR,
else the one this machine has its packages from). What counts is a start by firmware and GRUB, with nobody's help.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.kit.lab import Lab
from tests.lab.kit.machines import BareMetal
from tests.lab.kit.mirror import Mirror

pytestmark = [pytest.mark.lab, pytest.mark.lab_full, pytest.mark.timeout(7200)]

IMAGE = "roots"
BUILT = 2400.0  # seconds for the image; a quiet machine needs 300
ACTIVE = (
    3600.0  # seconds from power-on to service; most of it goes into the initramfs, with every driver there is
)
STARTED = 600.0  # seconds for a start from disk; a quiet machine needs 60
PASSPHRASE = "correct horse battery"
ASKED = "Please unlock disk"


@pytest.fixture(scope="module")
def image(lab: Lab) -> str:
    """Debian 12 with LVM, mdadm and LUKS, built by the daemon's job."""
    with Mirror(lab.ns, os.environ.get("PROVISIOND_LAB_MIRROR") or _own_mirror()) as mirror:
        lab.daemon.ctl("image", "build", "debian-12", "--name", IMAGE, "--mirror", mirror.url, "--with", "lvm2",
                       "--with", "mdadm", "--with", "luks", "--no-wait")  # fmt: skip
        begun, seen = time.monotonic(), dict[str, int]()
        while True:
            [job] = [job for job in lab.daemon.api("GET", "/imports")["items"] if job["name"] == IMAGE]
            if job["what"] not in seen:
                seen[job["what"]] = job["done"]
                print(f"  image {time.monotonic() - begun:6.1f} s  {job['what']}", flush=True)
            if job["state"] != "running":
                break
            assert time.monotonic() - begun < BUILT, job
            time.sleep(0.5)
    assert job["state"] == "done", f"{job['message']}\nthe mirror lacks {mirror.missing}"
    assert {"configuration", "disk", "file system"} <= seen.keys(), seen
    assert lab.daemon.api("GET", f"/images/{IMAGE}")["size"] > 1 << 30
    return IMAGE


@pytest.fixture
def metal(lab: Lab, image: str, request: pytest.FixtureRequest) -> Iterator[BareMetal]:
    """A blank machine as the test asks for it; it is switched off when the test is over."""
    options: dict[str, Any] = request.param
    machine = lab.bare_metal(**options)
    yield machine
    lab.daemon.ctl("host", "cancel", machine.name, check=False)
    machine.power(False)


@pytest.mark.parametrize("metal", [{"name": "mirrored", "firmware": "uefi", "disks": 2}], indirect=True)
def test_lvm_on_raid_1_starts_with_one_disk(lab: Lab, metal: BareMetal) -> None:
    """UEFI: / on LVM on a mirror, first started by kexec; then by firmware and GRUB from the second disk, when the first is gone."""
    first, second = ({"serial": metal.disk_serial(number)} for number in (0, 1))
    _create(lab, metal, {"layout": "lvm", "disk": first, "mirror": second, "swap": "256MiB"})
    address = _in_service(lab, metal)
    _has_lvm(lab, address)
    assert _members(lab, address) == {"boot": 2, "pv": 2}
    assert lab.ssh(address, "findmnt -no FSTYPE,OPTIONS /boot/efi").startswith("vfat")

    _switched_on_again(lab, metal, address, without=0)
    _has_lvm(lab, address)
    assert _members(lab, address) == {"boot": 1, "pv": 1}
    assert lab.ssh(address, "findmnt -no SOURCE /boot").strip().startswith("/dev/md")
    assert metal.disk_serial(1) in lab.ssh(address, "lsblk -dno SERIAL")


@pytest.mark.parametrize("metal", [{"name": "volumes"}], indirect=True)
def test_lvm(lab: Lab, metal: BareMetal) -> None:
    """BIOS: / on LVM, first started by kexec, then by firmware and GRUB."""
    _create(lab, metal, {"layout": "lvm", "swap": "256MiB", "disk": "/dev/vda"})
    address = _in_service(lab, metal)
    _has_lvm(lab, address)
    _switched_on_again(lab, metal, address)
    _has_lvm(lab, address)
    assert lab.ssh(address, "lsblk -no PKNAME,TYPE /dev/mapper/system-root").split() == ["vda3", "lvm"]


@pytest.mark.parametrize("metal", [{"name": "sealed", "disks": 2}], indirect=True)
def test_lvm_on_luks_on_raid_1(lab: Lab, metal: BareMetal) -> None:
    """BIOS: / on LVM on LUKS on a mirror. The machine asks for the passphrase on its console at each start."""
    first, second = ({"serial": metal.disk_serial(number)} for number in (0, 1))
    storage = {"layout": "lvm", "disk": first, "mirror": second, "swap": "256MiB", "encrypt": True}
    _create(lab, metal, storage, f"luks_passphrase={PASSPHRASE}")
    address = _in_service(lab, metal, unlock=True)
    _has_lvm(lab, address)
    _switched_on_again(lab, metal, address, unlock=True)
    _has_lvm(lab, address)
    assert _members(lab, address) == {"boot": 2, "pv": 2}
    said = lab.ssh(address, "lsblk -nso TYPE /dev/mapper/system-root; cryptsetup status pv_crypt")
    assert said.split()[:3] == ["lvm", "crypt", "raid1"] and "LUKS2" in said, said
    assert PASSPHRASE not in lab.daemon.log() + metal.said()


# --- making them, and waiting for them -----------------------------------------------------------------------------


def _create(lab: Lab, metal: BareMetal, storage: dict[str, Any], *parameters: str) -> None:
    file = lab.root / f"{metal.name}.yaml"
    file.write_text(json.dumps(storage))
    words = [word for parameter in parameters for word in ("--param", parameter)]
    lab.create_metal(metal, "--build", "--method", "image", "--image", IMAGE, "--storage", str(file),
                     "--handover", "none", *words)  # fmt: skip


def _in_service(lab: Lab, metal: BareMetal, *, unlock: bool = False) -> str:
    """Wait until the machine is active, answering where its passphrase is asked for; its address."""
    begun, at, answered = time.monotonic(), "", 0
    while True:
        host = lab.daemon.host(metal.name)
        now = f"{host['state']}/{host['step']} {(host['deployment'] or {}).get('progress_text', '')}"
        if (what := now.partition(" (")[0]) != at:
            at = what
            print(f"  {metal.name} {time.monotonic() - begun:6.1f} s  {at}", flush=True)
        if host["state"] == "active":
            break
        failed = host["failure"] and not host["retry_at"]
        if failed or time.monotonic() - begun > ACTIVE:
            raise AssertionError(f"{metal.name}: {host['failure'] or at}\n{lab.story(metal.name)}")
        if unlock and metal.said().count(ASKED) > answered:
            answered += 1
            metal.type(f"{PASSPHRASE}\n")
        time.sleep(0.5)
    if unlock:
        assert answered, metal.said()[-3000:]
    address: str = host["interfaces"][0]["ip"]
    return address


def _switched_on_again(
    lab: Lab, metal: BareMetal, address: str, *, unlock: bool = False, without: int | None = None
) -> None:
    """Off and on, `without` one of its disks, until the machine answers. By its button: QEMU keeps the boot order it was started with."""
    lab.ssh(address, "sync")
    metal.power(False)
    if without is not None:
        metal.pull_disk(without)
    begun, asked = time.monotonic(), metal.said().count(ASKED)
    metal.power(True)
    while True:
        try:
            _boot_id(lab, address)
            break
        except RuntimeError:
            assert time.monotonic() - begun < STARTED, f"{metal.name} did not start\n{lab.story(metal.name)}"
        if unlock and metal.said().count(ASKED) > asked:
            asked += 1
            metal.type(f"{PASSPHRASE}\n")
        time.sleep(1)
    print(f"  {metal.name} started from its disk in {time.monotonic() - begun:.1f} s", flush=True)


# --- what has to be so inside ---------------------------------------------------------------------------------------


def _boot_id(lab: Lab, address: str) -> str:
    return lab.ssh(address, "cat /proc/sys/kernel/random/boot_id")


def _has_lvm(lab: Lab, address: str) -> None:
    """/ is the volume, as large as what the group has for it, swap is on, and nothing that has to run failed to start."""
    assert lab.ssh(address, "findmnt -no SOURCE /").strip() == "/dev/mapper/system-root"
    assert lab.ssh(address, "lvs --noheadings -o vg_name,lv_name | sort").split() == [
        "system",
        "root",
        "system",
        "swap",
    ]
    assert lab.ssh(address, "vgs --noheadings -o vg_free_count system").strip() == "0"
    sizes = lab.ssh(address, "lsblk -bdno SIZE /dev/mapper/system-root; df --output=size -B1 / | tail -1")
    volume, held = map(int, sizes.split())
    assert held > volume * 0.9, sizes
    assert lab.ssh(address, "swapon --noheadings --show=NAME").strip()
    failed = lab.ssh(address, "systemctl --failed --plain --no-legend | cut -d' ' -f1").split()
    assert not failed, failed


def _members(lab: Lab, address: str) -> dict[str, int]:
    """The arrays by name, and how many of their disks take part."""
    found = {}
    for line in lab.ssh(address, "mdadm --detail --scan").splitlines():
        device = line.split()[1]
        said = lab.ssh(address, f"mdadm --detail {device}")
        values = {
            key.strip(): value.strip()
            for key, _, value in (row.partition(" : ") for row in said.splitlines())
        }
        assert values["Raid Level"] == "raid1", said
        found[device.rpartition("/")[2]] = int(values["Working Devices"])
    return found


def _own_mirror() -> str:
    """Where this machine has Debian 12's packages from."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm",
             "Component: main"]  # fmt: skip
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    return said[0] if said else "http://deb.debian.org/debian"
