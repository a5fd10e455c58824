"""From a storage description to partition tables, arrays, fstab and crypttab; and where an image's bytes go."""

from typing import Any

import pytest

from provisiond.inventory.storage import Storage
from provisiond.templating.disks import plan_storage
from ramdisk_agent import layout, tables
from ramdisk_agent.disks import MIB, Disk
from ramdisk_agent.work import Failed

ROOT = {"number": 3, "start": 34 * MIB, "size": 500 * MIB, "filesystem": "ext4", "label": "root"}


def plan(firmware: str = "bios", **storage: Any) -> dict[str, Any]:
    """The settled plan of a description."""
    return plan_storage(Storage.model_validate(storage), firmware)


MIRROR = {"layout": "lvm", "disk": "/dev/vda", "mirror": "/dev/vdb", "swap": "1GiB", "encrypt": True}


def uuids(wanted: dict[str, Any]) -> dict[str, str]:
    """A UUID for each block: its name in capitals."""
    return {block["name"]: block["name"].upper() for block in wanted["blocks"]}


def test_partition_table_of_a_bios_disk() -> None:
    """GRUB's partition comes first, sizes are in MiB, and the last takes the rest."""
    assert layout.sfdisk_script(plan(disk="/dev/vda", swap="2GiB")["disks"][0]) == (
        "label: gpt\n"
        "size=1MiB, type=21686148-6449-6E6F-744E-656564454649, name=bios-boot\n"
        "size=2048MiB, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name=swap\n"
        "type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name=root\n"
    )


def test_partition_table_of_a_mirrored_uefi_disk() -> None:
    """An EFI system partition on each disk, and members of arrays typed as such."""
    assert layout.sfdisk_script(plan("uefi", **MIRROR)["disks"][1]) == (
        "label: gpt\n"
        "size=512MiB, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp-disk-b\n"
        "size=1024MiB, type=A19D880F-05FC-4D3B-A006-743F0F84911E, name=boot-b\n"
        "type=A19D880F-05FC-4D3B-A006-743F0F84911E, name=pv-b\n"
    )


def test_arrays() -> None:
    """Members and spares, a write-intent bitmap where there is redundancy, metadata at the end where firmware reads it."""
    raid = {"name": "boot", "level": 1, "members": ["a", "b"], "spares": ["c"], "filesystem": "ext4"}
    assert layout.raid_arguments(raid, "/dev/md0", ["/dev/vda2", "/dev/vdb2", "/dev/vdc2"], "node1") == [
        "mdadm", "--create", "/dev/md0", "--run", "--metadata=1.2", "--level=1", "--homehost=node1", "--name=boot",
        "--raid-devices=2", "--spare-devices=1", "--bitmap=internal", "/dev/vda2", "/dev/vdb2", "/dev/vdc2",
    ]  # fmt: skip
    stripe = layout.raid_arguments({**raid, "level": 0, "spares": []}, "/dev/md1", [], "node1")
    assert not {"--bitmap=internal", "--spare-devices=0"} & set(stripe)
    assert "--metadata=1.0" in layout.raid_arguments({**raid, "filesystem": "vfat"}, "/dev/md0", [], "node1")


def test_every_byte_of_the_image_has_a_place() -> None:
    """The root partition at the start of its block, all else at its end, nothing twice."""
    size = 663 * MIB
    pieces = layout.place(ROOT, size, "/dev/md0", 1000 * MIB)
    assert [(p.at // MIB, p.size // MIB, p.there // MIB) for p in pieces] == [
        (0, 34, 837),
        (34, 500, 0),
        (534, 129, 871),
    ]
    wanted = plan(disk="/dev/vda")
    made = layout.Made(wanted, {}, {}, "bios", "node1", "", {"root": "/dev/md0"}, pieces=pieces)
    assert made.root == "/dev/md0"
    assert made.locate(30 * MIB, 8 * MIB) == [("/dev/md0", 867 * MIB, 4 * MIB), ("/dev/md0", 0, 4 * MIB)]
    assert sum(n for _, _, n in made.locate(0, size)) == size
    starts = list(range(0, size, MIB))
    assert len({made.locate(at, MIB)[0][1] for at in starts}) == len(starts)


def test_a_block_too_small_for_the_image_is_told() -> None:
    """In MiB, with what to do."""
    with pytest.raises(
        Failed, match="/ has 600 MiB in the storage description and the image 663: give / more"
    ):
        layout.place(ROOT, 663 * MIB, "/dev/md0", 600 * MIB)


def test_a_bare_file_system_is_an_image_too() -> None:
    """It has nothing beside the root file system."""
    bare = {**ROOT, "number": 0, "start": 0}
    assert len(layout.place(bare, 500 * MIB, "/dev/vda2", 600 * MIB)) == 1


def test_the_size_that_a_disk_must_have() -> None:
    """Its partitions; and the image where / takes the rest of it, or is a mirror that does."""
    mirror = plan(disk="/dev/vda", mirror="/dev/vdb", swap="1GiB")
    assert layout.wanted_bytes(mirror["disks"][1], mirror, 663 * MIB) == (1 + 1024 + 1 + 663 + 2) * MIB
    sized = plan(disk="/dev/vda", swap="1GiB", root="20GiB")
    assert layout.wanted_bytes(sized["disks"][0], sized, 663 * MIB) == (1 + 1024 + 20 * 1024 + 2) * MIB


def test_what_cannot_be_is_refused_before_anything_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file system for /, no passphrase, an image whose root is not known, a disk too small."""
    disk = Disk("vda", "/dev/vda", 3000 * MIB)
    monkeypatch.setattr(layout, "list_disks", lambda: [disk])
    monkeypatch.setattr(layout.wipe, "wipe", lambda disks: pytest.fail("wiped"))

    class Work:
        """What make needs of a work."""

        def __init__(self, **changes: Any) -> None:
            image = {"encoding": "raw", "size_mib": 663, "root": {"number": 3}, "partitions": [ROOT]}
            self.plan = {
                "layout": plan(disk="/dev/vda"),
                "image": image,
                "keep": [],
                "firmware": "bios",
                **changes,
            }

        def say(self, text: str) -> None:
            """Nobody listens."""

    def refused(**changes: Any) -> str:
        with pytest.raises(Failed) as said:
            layout.make(Work(**changes))  # type: ignore[arg-type]
        return str(said.value)

    assert "is ext4, the storage description wants xfs" in refused(layout=plan(filesystem="xfs"))
    assert "no parameter luks_passphrase" in refused(layout=plan(encrypt=True))
    assert "not known which partition" in refused(
        image={"encoding": "raw", "size_mib": 663, "root": None, "partitions": [ROOT]}
    )
    assert "needs 21507 MiB, which /dev/vda (/dev/vda) has not" in refused(
        layout=plan(disk="/dev/vda", swap=None, root="20GiB")
    )
    assert "is to be kept" in refused(keep=[layout_match("/dev/vda")])


def layout_match(path: str) -> dict[str, Any]:
    """A selector by path."""
    return {"path": path, "id": None, "serial": None, "min_mib": None, "rotational": None, "first": False}


def test_names_of_volumes() -> None:
    """Hyphens are doubled."""
    assert layout.volume_device("my-group", "var-log") == "/dev/mapper/my--group-var--log"


def test_fstab() -> None:
    """By UUID, each mount after what it is in, swap last; of the image's own remain lines that are about no disk."""
    wanted = plan(
        "uefi",
        disks=[
            {
                "name": "a",
                "match": "/dev/vda",
                "partitions": [
                    {
                        "name": "log",
                        "size": "1GiB",
                        "filesystem": "xfs",
                        "mount": "/var/log",
                        "options": "nodev,noatime",
                    },
                    {"name": "var", "size": "1GiB", "filesystem": "ext4", "mount": "/var"},
                    {"name": "swap", "size": "1GiB", "filesystem": "swap"},
                    {"name": "root", "size": "rest", "filesystem": "ext4", "mount": "/"},
                ],
            }
        ],
    )
    old = "# made by somebody\nLABEL=root / ext4 defaults 0 1\n/dev/sdb1 /data ext4 defaults 0 0\ntmpfs /tmp tmpfs size=1g 0 0\n"
    assert tables.fstab(wanted, uuids(wanted), old) == (
        "UUID=ROOT / ext4 errors=remount-ro 0 1\n"
        "UUID=ESP /boot/efi vfat umask=0077,nofail 0 2\n"
        "UUID=VAR /var ext4 defaults 0 2\n"
        "UUID=LOG /var/log xfs nodev,noatime 0 0\n"
        "UUID=SWAP none swap sw 0 0\n"
        "tmpfs /tmp tmpfs size=1g 0 0\n"
    )


def test_crypttab_of_an_encrypted_group() -> None:
    """The one physical volume is opened early, with the passphrase."""
    wanted = plan(**MIRROR)
    assert tables.supports(wanted, "root") == {"root", "pv", "pv-a", "pv-b"}
    assert tables.crypttab(wanted, uuids(wanted), {"pv": "pv_crypt"}, "# <target name>\n") == (
        "# <target name>\npv_crypt UUID=PV none luks,discard,initramfs,x-initrd.attach\n"
    )


def test_crypttab_asks_once() -> None:
    """Beside an encrypted / the others have a key file on it; beside a plain / they ask."""
    wanted = plan(encrypt=True, swap="1GiB")
    names = {"swap": "swap_crypt", "root": "root_crypt"}
    assert tables.crypttab(wanted, uuids(wanted), names) == (
        "swap_crypt UUID=SWAP /etc/cryptsetup-keys.d/swap_crypt.key luks,discard\n"
        "root_crypt UUID=ROOT none luks,discard,initramfs,x-initrd.attach\n"
    )
    parts = [
        {"name": "data", "size": "1GiB", "filesystem": "ext4", "mount": "/srv", "encrypt": True},
        {"name": "root", "size": "rest", "filesystem": "ext4", "mount": "/"},
    ]
    open_root = plan(disks=[{"name": "a", "match": "/dev/vda", "partitions": parts}])
    assert (
        tables.crypttab(open_root, uuids(open_root), {"data": "data_crypt"})
        == "data_crypt UUID=DATA none luks,discard\n"
    )


def test_mdadm_conf() -> None:
    """Each array by UUID under its name."""
    assert tables.mdadm_conf([{"name": "pv", "metadata": "1.2", "uuid": "a:b:c:d"}]) == (
        "HOMEHOST <system>\nMAILADDR root\nARRAY /dev/md/pv metadata=1.2 UUID=a:b:c:d\n"
    )


def test_kernel_arguments() -> None:
    """dracut is told all that / stands on and nothing else; Debian's initramfs needs root= alone."""
    wanted = plan(**MIRROR)
    given = {"pv": "1-2", "other": "3-4"}, {"pv": "a:b", "boot": "c:d"}
    assert tables.kernel_arguments(wanted, "/dev/mapper/system-root", *given, dracut=False) == [
        "root=/dev/mapper/system-root"
    ]
    assert tables.kernel_arguments(wanted, "UUID=X", *given, dracut=True) == [
        "root=UUID=X",
        "rd.md.uuid=a:b",
        "rd.luks.uuid=luks-1-2",
        "rd.lvm.lv=system/root",
    ]


def test_grub_defaults() -> None:
    """What the image said of its root is taken out, its other arguments stay."""
    old = 'GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX="console=ttyS0 root=LABEL=x rd.lvm.lv=a/b"\n'
    assert (
        tables.grub_defaults(old, ["root=UUID=1"])
        == 'GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX="console=ttyS0 root=UUID=1"\n'
    )
    assert tables.grub_defaults("", ["root=UUID=1"]).endswith('GRUB_CMDLINE_LINUX="root=UUID=1"\n')
