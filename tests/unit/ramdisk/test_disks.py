"""Which disks a machine has and which of them a selector means, on a made sysfs."""

from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import wipe
from ramdisk_agent.disks import MIB, Disk, assign, designators, find, list_disks, node
from ramdisk_agent.work import Failed

ANY = {"path": None, "id": None, "serial": None, "min_mib": None, "rotational": None, "first": True}


def match(**wanted: Any) -> dict[str, Any]:
    """A selector in templating/disks.match's shape."""
    return {**ANY, "first": not wanted, **wanted}


def put(sys: Path, name: str, mib: int, device: bool = True, **files: str | bytes) -> Path:
    """A disk in a made sysfs; `device_NAME` are files of its device."""
    folder = sys / "block" / name
    (folder / "queue").mkdir(parents=True)
    if device:
        (folder / "device").mkdir()
    defaults = {"size": str(mib * 2048), "ro": "0", "removable": "0", "queue/rotational": "0"}
    for key, value in {**defaults, **files}.items():
        path = folder / (key if not key.startswith("device_") else f"device/{key.removeprefix('device_')}")
        path.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
    return folder


def page83(*names: tuple[int, bytes]) -> bytes:
    """A VPD page 0x83 with these designators of the logical unit."""
    body = b"".join(bytes([1 if kind in (2, 3) else 2, kind, 0, len(value)]) + value for kind, value in names)
    return bytes([0, 0x83]) + len(body).to_bytes(2, "big") + body


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """NVMe, virtio, SATA and SAS disks among all that is no disk; the SAS disk is reached twice."""
    sys = tmp_path / "sys"
    put(sys, "nvme0n1", 1000, wwid="eui.0025385b", nsid="1", device_model="FAST SSD 1", device_serial="S5X ")
    put(sys, "nvme0c0n1", 1000)
    put(sys, "vda", 4000, serial="one")
    put(sys, "vdb", 0, serial="empty")
    ata = b"ATA     " + b"WDC WD40EFRX-68N32N0".ljust(40) + b"WD-WCC7K0".ljust(20)
    naa = bytes.fromhex("50014ee2b5d1a2c3")
    spinning = {"queue/rotational": "1", "device_vendor": "ATA", "device_model": "WDC WD40EFRX-68"}
    put(sys, "sda", 9000, **spinning, device_vpd_pg83=page83((1, ata), (3, naa)))
    sas = {"device_vendor": "SEAGATE", "device_model": "ST600MM", "device_vpd_pg80": b"\0\x80\0\x04W0AB"}
    for name in ("sdb", "sdaa"):
        put(sys, name, 6000, **sas, device_vpd_pg83=page83((3, bytes.fromhex("5000c500a1b2c3d4"))))
    put(sys, "sdc", 30, removable="1")
    put(sys, "sdd", 30, ro="1")
    for name in ("sr0", "fd0", "mmcblk0boot0"):
        put(sys, name, 100)
    for name in ("loop0", "ram0", "zram0", "dm-0", "md127"):
        put(sys, name, 100, device=False)
    return sys


def test_only_fixed_disks_each_once(machine: Path, tmp_path: Path) -> None:
    """Optical, removable, read-only, virtual and empty ones are left out, and a second path to a disk; sdb comes before sdaa."""
    disks = list_disks(machine, tmp_path)
    assert [d.name for d in disks] == ["nvme0n1", "vda", "sda", "sdb"]
    assert {d.name for d in list_disks(machine, tmp_path, everything=True)} >= {"sdc", "sdd"}


def test_names_as_udev_gives_them(machine: Path, tmp_path: Path) -> None:
    """by-id names and serials from sysfs alone: NVMe, virtio, ATA behind libata (whose model is cut short there), SAS."""
    nvme, virtio, sata, sas = list_disks(machine, tmp_path)
    assert set(nvme.by_id) == {"nvme-eui.0025385b", "nvme-FAST_SSD_1_S5X", "nvme-FAST_SSD_1_S5X_1"}
    assert (nvme.serial, nvme.model, nvme.wwn) == ("S5X", "FAST SSD 1", "eui.0025385b")
    assert virtio.by_id == ("virtio-one",)
    assert {"ata-WDC_WD40EFRX-68N32N0_WD-WCC7K0", "wwn-0x50014ee2b5d1a2c3"} <= set(sata.by_id)
    assert (sata.serial, sata.model, sata.rotational) == ("WD-WCC7K0", "WDC WD40EFRX-68N32N0", True)
    assert {"wwn-0x5000c500a1b2c3d4", "scsi-35000c500a1b2c3d4", "scsi-SSEAGATE_ST600MM_W0AB"} <= set(
        sas.by_id
    )


def test_designators_of_a_port_are_not_the_disks() -> None:
    """Names of the target port in page 0x83 are left out; a page cut short does no harm."""
    port = bytes([1, 0x93, 0, 8]) + bytes(8)
    page = page83((3, b"\x50" * 8))
    whole = page[:2] + (len(page) - 4 + len(port)).to_bytes(2, "big") + page[4:] + port
    assert designators(whole) == [(3, b"\x50" * 8)]
    assert designators(whole[:9]) == [(3, b"\x50")]
    assert designators(b"") == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (match(), "nvme0n1"),
        (match(path="/dev/sda"), "sda"),
        (match(path="/dev/disk/by-id/virtio-one"), "vda"),
        (match(id="wwn-0x5000c500a1b2c3d4"), "sdb"),
        (match(serial="one"), "vda"),
        (match(serial="SSEAGATE_ST600MM_W0AB"), "sdb"),
        (match(min_mib=5000), "sda"),
        (match(min_mib=5000, rotational=False), "sdb"),
    ],
)
def test_selectors(machine: Path, tmp_path: Path, wanted: dict[str, Any], found: str) -> None:
    """Each way to say which disk is meant."""
    assert find(wanted, list_disks(machine, tmp_path)).name == found


def test_the_first_is_large_enough_and_not_kept(machine: Path, tmp_path: Path) -> None:
    """`first` passes by disks that are too small, and those that are to be kept."""
    disks = list_disks(machine, tmp_path)
    assert find(match(), disks, need_bytes=2000 * MIB).name == "vda"
    assert find(match(), disks, [match(serial="one")], 2000 * MIB).name == "sda"


def test_what_is_wrong_is_told_with_every_disk(machine: Path, tmp_path: Path) -> None:
    """No such disk, one that is kept, one that is too small: the message names all disks with size and serial."""
    disks = list_disks(machine, tmp_path)
    there = r"/dev/nvme0n1 \(1000 MiB, serial S5X\), /dev/vda \(4000 MiB, serial one\)"
    with pytest.raises(
        Failed, match=rf"no disk is of serial two, which the image is to be written to; .*{there}"
    ):
        find(match(serial="two"), disks)
    with pytest.raises(Failed, match=rf"/dev/vda is /dev/vda, .* but is to be kept; .*{there}"):
        find(match(path="/dev/vda"), disks, [match(serial="one")])
    with pytest.raises(
        Failed, match=rf"the image needs 4001 MiB, which /dev/vda \(/dev/vda\) has not; .*{there}"
    ):
        find(match(path="/dev/vda"), disks, need_bytes=4000 * MIB + 1)
    with pytest.raises(Failed, match="this machine has no fixed disk"):
        find(match(), [])


def test_disks_of_a_description_are_different_ones(machine: Path, tmp_path: Path) -> None:
    """What is named is taken before what is searched for, `first` last, whatever their order; the answer keeps the description's."""
    disks = list_disks(machine, tmp_path)
    wanted = [
        {"name": "a", "match": match()},
        {"name": "b", "match": match(min_mib=500)},
        {"name": "c", "match": match(path="/dev/nvme0n1")},
    ]
    found = assign(wanted, disks)
    assert {name: disk.name for name, disk in found.items()} == {"a": "sda", "b": "vda", "c": "nvme0n1"}
    assert list(found) == ["a", "b", "c"]
    with pytest.raises(Failed, match=r"'b' of the storage description .*\(already a is /dev/vda\)"):
        assign([{"name": n, "match": match(serial="one")} for n in "ab"], disks)


def test_partitions_of_disks_whose_name_ends_in_a_digit() -> None:
    """A p stands between."""
    assert (node("/dev/sda", 2), node("/dev/nvme0n1", 2)) == ("/dev/sda2", "/dev/nvme0n1p2")


def test_what_stands_on_a_disk_is_stopped_from_the_top(tmp_path: Path) -> None:
    """Volumes before the encrypted array below them before the array, whichever partition leads to them."""
    for name in ("sda/sda1", "sda/sda2"):
        (tmp_path / "block" / name).mkdir(parents=True)
        (tmp_path / "block" / name / "partition").write_text(name[-1])
        (tmp_path / "block" / name / "start").write_text(name[-1])
    stands = {
        "sda1": ["md0"],
        "sda2": ["dm-2"],
        "md0": ["dm-0"],
        "dm-0": ["dm-1", "dm-2"],
        "dm-1": [],
        "dm-2": [],
    }
    for name, above in stands.items():
        (tmp_path / "class/block" / name / "holders").mkdir(parents=True)
        for holder in above:
            (tmp_path / "class/block" / name / "holders" / holder).mkdir()
    assert wipe.partitions("sda", tmp_path) == ["sda1", "sda2"]
    order = wipe.holders("sda", tmp_path)
    assert sorted(order) == ["dm-0", "dm-1", "dm-2", "md0"]
    assert order.index("dm-1") < order.index("dm-0") > order.index("dm-2")
    assert order[-1] == "md0"


def test_a_disk_in_words() -> None:
    """Path, size, serial."""
    assert str(Disk("sda", "/dev/sda", 5 * MIB)) == "/dev/sda (5 MiB, serial unknown)"
