"""When an image is put into a layout of its own, and when it is written to a disk as a whole."""

from typing import Any

import pytest

from provisiond.inventory.storage import Storage
from provisiond.templating.disks import needs_layout, plan_storage

ROOT = {"name": "root", "size": "rest", "filesystem": "ext4", "mount": "/"}
SWAP = {"name": "swap", "size": "1GiB", "filesystem": "swap"}


def second(match: Any, *parts: dict[str, Any]) -> dict[str, Any]:
    """A system disk, and another with these partitions."""
    return {
        "disks": [
            {"name": "a", "match": "/dev/vda", "partitions": [SWAP, ROOT]},
            {"name": "b", "match": match, "partitions": list(parts)},
        ]
    }


DATA = {"name": "data", "size": "rest", "filesystem": "xfs", "mount": "/srv"}


@pytest.mark.parametrize(
    ("description", "wanted"),
    [
        (None, False),
        ({"disk": {"serial": "S3"}, "swap": "4GiB", "keep": ["nvme-x"]}, False),
        (second("/dev/vdb", DATA), False),
        ({"root": "20GiB"}, True),
        ({"layout": "lvm"}, True),
        ({"mirror": "/dev/vdb"}, True),
        ({"encrypt": True}, True),
        (second({"rotational": True}, DATA), True),
        (second("/dev/vdb", {**DATA, "size": "10GiB"}), True),
        (second("/dev/vdb", {**DATA, "size": "10GiB"}, {**DATA, "name": "more", "mount": "/opt"}), True),
    ],
)
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_when_an_image_needs_a_layout(
    description: dict[str, Any] | None, wanted: bool, firmware: str
) -> None:
    """RAID, LVM, LUKS, a size for /, partitions beside it, disks that cloud-init cannot find; not swap or a disk of one file system."""
    storage = Storage.model_validate(description) if description is not None else None
    assert needs_layout(plan_storage(storage, firmware)) is wanted
