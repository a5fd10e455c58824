"""A kickstart as Anaconda takes it: its %pre run on a made-up machine, what that wrote included, all of it read by pykickstart."""

from __future__ import annotations

import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion

from provisiond.templating.validators.kickstart import syntax_of
from provisiond.templating.validators.verdict import Target

INCLUDE = "%include /tmp/provisiond-disks.ks"
DISKS = {
    # name: (GiB, rotational, serial)
    "nvme0n1": (2048, 0, "N1"), "nvme1n1": (2048, 0, "N2"), "vda": (2048, 1, "V1"), "vdb": (2048, 1, "V2"), "sda": (2048, 1, "A"),
    "sdb": (2048, 1, "B"), "sdc": (2048, 0, "C"), "sdd": (2048, 1, "S3RIAL"), "sde": (2048, 0, "WD-WX1"), "sdf": (4096, 1, "F"),
    "sdg": (4096, 1, "G"), "sdh": (4, 1, "SMALL"),
}  # fmt: skip
LINKS = {"wwn-0x5000c500a1b2c3d4": "sdb", "scsi-SATA_disk_1": "sdc"}


def made_up_machine(root: Path) -> Path:
    """Directories that look like /sys/block and /dev of a machine with DISKS."""
    for name, (size, rotational, serial) in DISKS.items():
        block = root / "sys/block" / name
        (block / "device").mkdir(parents=True)
        (block / "queue").mkdir()
        (block / "queue/rotational").write_text(f"{rotational}\n")
        (block / "device/serial").write_text(f"  {serial}\n")
        (block / "size").write_text(f"{size << 21}\n")
        (block / "removable").write_text("0\n")
        (block / "ro").write_text("0\n")
    (root / "dev/disk/by-id").mkdir(parents=True)
    for name in DISKS:
        (root / "dev" / name).touch()
    for link, name in LINKS.items():
        (root / "dev/disk/by-id" / link).symlink_to(f"../../{name}")
    return root


def pre_script(text: str) -> str:
    """The kickstart's first script."""
    found = re.search(r"^%pre .*\n((?:.*\n)*?)%end$", text, re.MULTILINE)
    assert found
    return found[1]


def run_pre(text: str, machine: Path, scratch: Path) -> subprocess.CompletedProcess[str]:
    """Run %pre by bash on the made-up machine; what it reports is on standard output, what it writes is in ``scratch``."""
    places = {
        "/dev/null": "/dev/null", "/dev/": f"{machine}/dev/", "/sys/block": f"{machine}/sys/block", "/tmp/": f"{scratch}/",
        "/etc/pki/ca-trust/source/anchors": str(scratch), '[ -b "': '[ -e "',
    }  # fmt: skip
    script = re.sub("|".join(map(re.escape, places)), lambda m: places[m[0]], pre_script(text))
    stubs = "curl() { printf '%s\\n' \"$@\"; }\nudevadm() { :; }\nlsblk() { echo disks; }\nupdate-ca-trust() { :; }\nsleep() { :; }\n"
    return subprocess.run(["bash", "-c", stubs + script], capture_output=True, text=True, timeout=60, check=False)  # fmt: skip


def whole(text: str, machine: Path, scratch: Path) -> str:
    """The kickstart with what its %pre wrote in the place of the %include."""
    if INCLUDE not in text:
        return text
    done = run_pre(text, machine, scratch)
    assert done.returncode == 0, done.stdout + done.stderr
    return text.replace(INCLUDE, (scratch / "provisiond-disks.ks").read_text())


def handler_of(text: str, family: str, version: str) -> Any:
    """pykickstart's handler for that system, holding all that the kickstart says."""
    handler = makeVersion(syntax_of(Target("kickstart", family, version)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KickstartParser(handler, followIncludes=False).readKickstartFromString(text)
    return handler


def keyfiles_of(text: str) -> dict[str, str]:
    """NetworkManager's keyfiles that %post writes, by name."""
    return dict(
        re.findall(
            r"^cat > /etc/NetworkManager/system-connections/(\S+)\.nmconnection <<'PROVISIOND-END'\n((?:.*\n)*?)PROVISIOND-END$",
            text,
            re.MULTILINE,
        )
    )
