"""Files that stand for disks which are erased."""

from pathlib import Path

from ramdisk_agent.device import MIB
from ramdisk_agent.disks import Disk


def a_disk(folder: Path, name: str = "sda", mib: int = 12, odd: int = 4096) -> Disk:
    """A file full of text, no whole number of MiB long."""
    path = folder / name
    path.write_bytes(b"the quick brown fox. " * 49933 * mib)
    with path.open("r+b") as file:
        file.truncate(mib * MIB + odd)
    return Disk(name=name, path=str(path), size=mib * MIB + odd, serial=f"S-{name}")


def blank(disk: Disk) -> bool:
    return not any(Path(disk.path).read_bytes())
