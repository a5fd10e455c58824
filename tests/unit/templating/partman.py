"""A preseed's partitioning, read back: partman's recipe, or the script run on a made-up machine whose tools only note how they
were called. By dash: busybox' shell would take its own dd, mount and wget instead of ours."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = (
    "logger", "wget", "anna-install", "depmod", "modprobe", "vgchange", "mdadm", "dd", "parted", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs",
    "mkfs.vfat", "mkswap", "pvcreate", "vgcreate", "lvcreate", "mount", "swapon", "apt-install", "debconf-set", "udevadm",
)  # fmt: skip
STUBS = {
    "blockdev": "echo 204800",
    "blkid": 'for last; do :; done; echo "uuid:$last"',
    "cryptsetup": 'case $1 in luksUUID) echo "luks:$2" ;; *) cat > "$CALLS.passphrase" ;; esac',
    "sleep": 'kill "$PPID"',
}


@dataclass
class Divided:
    """What the script did: ``calls`` in their order, ``fstab`` and ``crypttab`` as lines of fields, ``said`` to the daemon."""

    status: int
    calls: list[list[str]] = field(default_factory=list)
    fstab: list[list[str]] = field(default_factory=list)
    crypttab: list[list[str]] = field(default_factory=list)
    passphrase: str = ""
    said: str = ""

    def of(self, name: str) -> list[list[str]]:
        """The arguments of each call of one tool."""
        return [call[1:] for call in self.calls if call[0] == name]


def values(preseed: str) -> dict[str, str]:
    """Question -> value, with continued lines joined."""
    found = {}
    for line in re.sub(r"\\\n", "", preseed).splitlines():
        if line.strip() and not line.startswith("#"):
            _, question, _, *value = line.split(" ", 3)
            found[question] = value[0] if value else ""
    return found


def script_of(preseed: str) -> str:
    """The script that partman/early_command writes and runs."""
    words = shlex.split(values(preseed)["partman/early_command"])
    start, end = words.index("in") + 1, words.index(";")
    return "\n".join(words[start:end]) + "\n"


def recipe_of(preseed: str) -> list[dict[str, str]]:
    """The entries of the recipe: min, priority, max, fs, and what stands in braces by its name."""
    entries = []
    for entry in values(preseed)["partman-auto/expert_recipe"].partition("::")[2].split(" . "):
        if words := entry.strip().rstrip(".").split(None, 4):
            named = dict(re.findall(r"(\S+)\{ (.*?) ?\}", words[4]))
            entries.append(dict(zip(("min", "priority", "max", "fs"), words, strict=False)) | named)
    return entries


def divide(script: str, machine: Path, scratch: Path) -> Divided:
    """Run it. ``machine`` is kickstarts.made_up_machine; ``scratch`` an empty directory."""
    busybox, dash = shutil.which("busybox"), shutil.which("dash")
    assert busybox and dash
    parsed = subprocess.run([busybox, "sh", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, "")
    tools = scratch / "bin"
    tools.mkdir()
    (tools / "sh").symlink_to(dash)
    for name in ("cat", "sed", "tr", "tail", "mkdir", "readlink", "chmod", "rm", "grep"):
        (tools / name).symlink_to(busybox)
    note = (
        '#!/bin/sh\n{ printf %s "${0##*/}"; for word; do printf "\\t%s" "$word"; done; echo; } >> "$CALLS"\n'
    )
    for name in (*TOOLS, *STUBS):
        (tools / name).write_text(note + STUBS.get(name, "") + "\n")
        (tools / name).chmod(0o755)
    partman = scratch / "partman"
    for name in ("init.d", "display.d", "check.d", "commit.d", "finish.d"):
        (partman / name).mkdir(parents=True)
        (partman / name / "50own").write_text("#!/bin/sh\n")
        (partman / name / "50own").chmod(0o755)
    places = {
        "/dev/null": "/dev/null", "/dev/zero": "/dev/zero", "/dev/mapper/": "/dev/mapper/", "/dev/md/": "/dev/md/",
        "/dev/": f"{machine}/dev/", "/sys/block": f"{machine}/sys/block", "/tmp/": f"{scratch}/", "/target": f"{scratch}/target",
        "/lib/partman": str(partman), '[ -b "': '[ -e "',
    }  # fmt: skip
    moved = re.sub("|".join(map(re.escape, places)), lambda m: places[m[0]], script)
    calls = scratch / "calls"
    done = subprocess.run(
        [tools / "sh", "-c", moved], env={"PATH": str(tools), "CALLS": str(calls)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == "" or done.returncode, done.stderr
    told = [
        line.replace(f"{machine}", "").replace(f"{scratch}", "").split("\t")
        for line in calls.read_text().splitlines()
    ]
    target = scratch / "target/etc"

    def lines(name: str) -> list[list[str]]:
        text = (target / name).read_text() if (target / name).is_file() else ""
        return [
            line.replace(f"{machine}", "").split()
            for line in text.splitlines()
            if line and not line.startswith("#")
        ]

    secret = scratch / "calls.passphrase"
    return Divided(
        done.returncode, told, lines("fstab"), lines("crypttab"), secret.read_text() if secret.is_file() else "",
        " ".join(word for call in told if call[0] == "wget" for word in call),
    )  # fmt: skip
