"""Erasures that a disk does by itself: NVMe format and sanitize, ATA secure erase. What each disk can is asked from the disk.

NVM Express Base Specification 2.0, 5.14 (Format NVM), 5.24 (Sanitize), 5.17.2.1 (OACS, FNA, SANICAP); ACS-3, 4.18 and 7.45
(security feature set) as hdparm tells it.
"""

import json
import re
import time
from collections.abc import Callable, Iterator

from ramdisk_agent.disks import Disk
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed

PASSWORD = "provisiond"  # set for the time of a secure erase, which takes it away again; no secret
HOUR = 3600.0
_NVME = re.compile(r"(nvme\d+)n\d+")

Way = tuple[str, Callable[[], None]]


def controller(disk: Disk) -> str | None:
    """The NVMe controller that a disk is a namespace of."""
    found = _NVME.fullmatch(disk.name)
    return found[1] if found else None


def together(one: Disk, other: Disk) -> bool:
    """Whether both lie behind one NVMe controller, so that what is done to one may reach the other."""
    return controller(one) is not None and controller(one) == controller(other)


def ways(disk: Disk, *, alone: bool, why: list[str]) -> Iterator[Way]:
    """Name and function of each erasure the disk can do by itself, the best first. ``alone``: no other disk shares its controller.

    Why one that it might have is not taken goes into ``why``. A function raises Failed.
    """
    if (name := controller(disk)) is not None:
        yield from _nvme(disk, name, alone, why)
    elif disk.name.startswith("sd"):
        yield from _ata(disk, why)


# --- NVMe ------------------------------------------------------------------------------------------------


def _nvme(disk: Disk, name: str, alone: bool, why: list[str]) -> Iterator[Way]:
    try:
        can = json.loads(run(["nvme", "id-ctrl", f"/dev/{name}", "--output-format=json"]))
        oacs, fna, sanicap = (int(can.get(field) or 0) for field in ("oacs", "fna", "sanicap"))
    except (Failed, ValueError, AttributeError) as error:
        why.append(f"its controller does not say what it can: {error}")
        return
    if not oacs & 2:
        why.append("its controller cannot format")
    elif fna & 3 and not alone:  # it would erase every namespace
        why.append("formatting it would reach the other disks of its controller")
    else:
        yield "nvme-format", lambda: _format(disk, 1)
        if fna & 4:
            yield "nvme-crypto-erase", lambda: _format(disk, 2)
    if sanicap & 7 and alone:
        # block erase, else overwriting by the disk, else its keys; as the identify data has it: bits 1, 2, 0
        kind, number = next(
            (k, n) for bit, k, n in ((2, "block", 2), (4, "pattern", 3), (1, "crypto", 4)) if sanicap & bit
        )
        yield f"nvme-sanitize-{kind}", lambda: _sanitize(name, number)


def _format(disk: Disk, kind: int) -> None:
    # the driver waits as long as it is told; a format of a large disk may take hours
    argv = ["nvme", "format", disk.path, f"--ses={kind}", "--force", f"--timeout={int(12 * HOUR * 1000)}"]
    run(argv, timeout=12 * HOUR)


def _sanitize(name: str, action: int) -> None:
    overwrite = ["--owpass=1", "--ovrpat=0"] if action == 3 else []
    run(["nvme", "sanitize", f"/dev/{name}", f"--sanact={action}", *overwrite])
    until = time.monotonic() + 24 * HOUR
    while time.monotonic() < until:
        time.sleep(2)
        state = sanitize_state(run(["nvme", "sanitize-log", f"/dev/{name}", "--output-format=json"]))
        if state == 1:
            return
        if state == 3:
            raise Failed("the controller says that its sanitize failed")
    raise Failed("its sanitize did not end within 24 hours")


def sanitize_state(text: str) -> int:
    """The status (1 done, 2 under way, 3 failed) out of the sanitize log as nvme-cli writes it, of whichever version."""
    log = json.loads(text)
    while isinstance(log, dict) and "sstat" not in log and len(log) == 1:
        log = next(iter(log.values()))
    status = log.get("sstat") if isinstance(log, dict) else None
    if isinstance(status, dict):
        status = status.get("status", status.get("value", 0))
    if isinstance(status, str):
        digits = re.match(r"\(?(0x[0-9a-fA-F]+|\d+)", status.strip())
        status = int(digits[1], 0) if digits else 0
    return int(status or 0) & 7


# --- ATA -------------------------------------------------------------------------------------------------


def _ata(disk: Disk, why: list[str]) -> Iterator[Way]:
    try:
        security = read_security(run(["hdparm", "-I", disk.path]))
    except Failed:
        return  # no ATA disk, or one behind a controller that hides it
    if security is None:
        why.append("it has no ATA secure erase")
        return
    if security["frozen"]:
        why.append("its ATA secure erase is frozen by the machine's firmware")
        return
    if security["enabled"]:
        # an earlier try may have been cut off; with a password of somebody else nothing of this works
        yield "ata-secure-erase", lambda: _secure_erase(disk, security, enhanced=False, ours=True)
        return
    if security["enhanced"]:
        yield "ata-enhanced-erase", lambda: _secure_erase(disk, security, enhanced=True)
    yield "ata-secure-erase", lambda: _secure_erase(disk, security, enhanced=False)


def read_security(text: str) -> dict[str, int] | None:
    """The section Security of ``hdparm -I``: {enabled, locked, frozen, enhanced} as 0 or 1, and minutes of an erase; None: there is none."""
    section = re.search(r"^Security:\s*\n((?:[ \t]+.*\n?)+)", text, re.MULTILINE)
    if section is None:
        return None
    lines = [" ".join(line.split()) for line in section[1].splitlines()]
    if "supported" not in lines:
        return None
    minutes = [int(n) for n in re.findall(r"(\d+)\s*min for", section[1])]
    return {
        "enabled": int("enabled" in lines),
        "locked": int("locked" in lines),
        "frozen": int("frozen" in lines),
        "enhanced": int("supported: enhanced erase" in lines),
        "minutes": max(minutes, default=0),
    }


def _secure_erase(disk: Disk, security: dict[str, int], *, enhanced: bool, ours: bool = False) -> None:
    words = ["hdparm", "--user-master", "u"]
    if not ours:
        run([*words, "--security-set-pass", PASSWORD, disk.path])
    elif security["locked"]:
        run([*words, "--security-unlock", PASSWORD, disk.path])
    try:
        verb = "--security-erase-enhanced" if enhanced else "--security-erase"
        run([*words, verb, PASSWORD, disk.path], timeout=max(2 * HOUR, security["minutes"] * 60 * 3.0))
    except Failed:
        # a disk that goes on with a password locks itself at its next power-on
        run([*words, "--security-unlock", PASSWORD, disk.path], check=False)
        run([*words, "--security-disable", PASSWORD, disk.path], check=False)
        raise
    left = read_security(run(["hdparm", "-I", disk.path]))
    if left is not None and left["enabled"]:
        run([*words, "--security-disable", PASSWORD, disk.path])
