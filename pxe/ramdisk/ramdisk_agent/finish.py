"""How a machine goes on when its image is on the disk: straight into the image's kernel, or through its firmware."""

import os
import re
import time
from typing import NoReturn

from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Work


def prepare(work: Work, root: str, arguments: str) -> str:
    """Load the image's kernel where the plan wants that and it can be: kexec or reboot, what `go` is to be called with.

    `root` is where the image's root file system is mounted, `arguments` tell its kernel where that is
    (root=UUID=...).
    """
    if work.plan.get("finish") != "kexec":
        return "reboot"
    work.progress(98, "loading the image's kernel")
    serial = work.plan.get("serial")
    line = work.plan.get("cmdline") or f"ro{f' console={serial},115200' if serial else ''}"
    # what was found on the disk is surer than what the plan supposes, such as a label
    line = " ".join([arguments, *(word for word in line.split() if not word.startswith("root="))])
    mounted = _mount_boot(root)
    try:
        for kernel, initrd in _kernels(f"{root}/boot"):
            # kexec_load without checks, since an emulated processor takes seconds for them; kexec_file_load where locked down
            for way in (["-l", "-i"], ["-s", "-l"]):
                if _ends_well(["kexec", *way, kernel, f"--initrd={initrd}", f"--command-line={line}"]):
                    work.say(f"kexec: {kernel.removeprefix(root)} with {line}")
                    return "kexec"
    finally:
        if mounted:
            run(["umount", f"{root}/boot"], check=False)
    work.say("kexec is not possible here: restarting through the firmware")
    return "reboot"


def _ends_well(argv: list[str]) -> bool:
    try:
        run(argv, timeout=120)
    except Failed:
        return False
    return True


def _kernels(boot: str) -> list[tuple[str, str]]:
    """(kernel, initramfs) of an image's /boot, the newest version first; rescue kernels are none."""
    found = []
    try:
        names = os.listdir(boot)
    except OSError:
        return []
    for name in names:
        version = name.removeprefix("vmlinuz-")
        if version == name or "rescue" in name:
            continue
        for initrd in (f"initrd.img-{version}", f"initramfs-{version}.img", f"initrd-{version}"):
            if initrd in names:
                found.append((_ordered(version), f"{boot}/{name}", f"{boot}/{initrd}"))
                break
    return [(kernel, initrd) for _, kernel, initrd in sorted(found, reverse=True)]


def _ordered(version: str) -> list[tuple[int, str]]:
    """6.1.0-9 comes before 6.1.0-18."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", version)]


def _mount_boot(root: str) -> bool:
    """A /boot of its own, as the image's fstab has it; whether it was mounted."""
    try:
        with open(f"{root}/etc/fstab") as fstab:
            entries = [line.split() for line in fstab if not line.lstrip().startswith("#")]
    except OSError:
        return False
    for entry in entries:
        if len(entry) < 3 or entry[1].rstrip("/") != "/boot" or os.path.ismount(f"{root}/boot"):
            continue
        tag, _, value = entry[0].partition("=")
        device = run(
            ["blkid", "-l", "-o", "device", "-t", f"{tag}={value.strip(chr(34))}"], check=False
        ).strip()
        return bool(device) and _ends_well(["mount", "-o", "ro", "-t", entry[2], device, f"{root}/boot"])
    return False


def go(how: str) -> NoReturn:
    """Leave this system: kexec, reboot or poweroff. Cards are set down first, so that none writes into the next kernel's memory."""
    os.sync()
    if how == "kexec":
        for name in os.listdir("/sys/class/net"):
            if os.path.exists(f"/sys/class/net/{name}/device"):
                run(["ip", "link", "set", name, "down"], check=False)
        run(["kexec", "-e"], check=False)
    run(["poweroff" if how == "poweroff" else "reboot", "-f"], check=False)
    time.sleep(30)
    raise SystemExit(1)  # init restarts the machine when the agent ends
