"""A user of the machine's controller (BMC) for the daemon, made from the inside by ipmitool.

IPMI 2.0, 22.26 to 22.31: a slot of the user table gets the name, the password, administrator's rights on the LAN channel, and is
enabled. A user that has the name already gets the new password. The password goes to ipmitool in a file that only root may
read (`ipmitool exec`), never among its arguments, and not into the log.
"""

import os
import re
import time
from collections.abc import Sequence
from typing import Any

from ramdisk_agent.facts import bmc
from ramdisk_agent.log import LOG
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed

TRIES, PAUSE = 3, 2.0  # controllers are busy now and then
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,16}")  # 16 bytes: IPMI 2.0, 22.28
# what ipmitool reads in a file: # begins a comment, quotes and blanks divide words
_PASSWORD = re.compile(r"[!$%&()*+,./0-9:;<=>?@A-Z\[\]^_`a-z{|}~-]{1,20}")


def set_up(
    username: str, password: str, ipmitool: Sequence[str] = bmc.IPMITOOL, directory: str = "/run/provisiond"
) -> dict[str, Any]:
    """Make the user, or give it its new password. Gives {"address", "mac", "username"}. Raises Failed.

    `password` has at most 16 bytes for any controller, 20 for those that speak IPMI 2.0.
    """
    LOG.hide(password)
    if not _NAME.fullmatch(username):
        raise Failed(
            f"{username!r} cannot be a user of a controller: 1 to 16 of letters, digits, '_', '.' and '-'"
        )
    if not _PASSWORD.fullmatch(password):
        raise Failed(
            "the password cannot be set: 1 to 20 of ASCII letters, digits and signs but for quotes, blanks, # and \\"
        )
    channel, seen = bmc.lan(ipmitool)
    if channel is None:
        raise Failed(
            "the controller of this machine has no LAN channel that IPMI can see: set its network up, or give the BMC by hand"
        )
    slot, name = free_slot(_tell(ipmitool, "-c", "user", "list", str(channel)), username)
    number, lan = str(slot), str(channel)
    if name != username:
        _tell(ipmitool, "user", "set", "name", number, username)
    _secretly(
        ipmitool, directory, f"user set password {number} {password} {16 if len(password) <= 16 else 20}"
    )
    _tell(ipmitool, "channel", "setaccess", lan, number, "callin=on", "ipmi=on", "link=on", "privilege=4")
    _tell(ipmitool, "user", "enable", number)
    run(
        [*ipmitool, "sol", "payload", "enable", lan, number], timeout=15, check=False
    )  # not every one has a console
    _, said = free_slot(_tell(ipmitool, "-c", "user", "list", lan), username)
    if said != username:
        raise Failed(
            f"the controller took user {username!r} in slot {slot}, but does not list it: update its firmware, or make the user by hand"
        )
    if not seen["address"]:
        raise Failed(
            f"user {username!r} is set up, but the controller has no address on channel {channel}: give it one, or DHCP"
        )
    return {"address": seen["address"], "mac": seen["mac"], "username": username}


def free_slot(listing: str, username: str) -> tuple[int, str]:
    """(slot, name that it has now) out of `ipmitool -c user list`: the user's own, or else the first nameless one after slot 1.

    Slot 1 is the anonymous user (IPMI 2.0, 6.9). Raises Failed when every slot is taken.
    """
    slots = [
        (int(line.split(",")[0]), line.split(",")[1].strip())
        for line in listing.splitlines()
        if re.match(r"[0-9]{1,3},", line)
    ]
    for slot, name in slots:
        if name == username:
            return slot, name
    for slot, name in slots:
        if slot > 1 and name in ("", "(Empty User)"):
            return slot, ""
    names = ", ".join(name for _, name in slots if name)
    raise Failed(
        f"the controller has no room for user {username!r}: all {len(slots)} slots are taken ({names}); delete one"
    )


def _tell(ipmitool: Sequence[str], *arguments: str) -> str:
    """Run a command, again when the controller did not take it at once. Raises Failed."""
    for turn in range(TRIES):
        if turn:
            time.sleep(PAUSE)
        try:
            return run([*ipmitool, *arguments], timeout=15)
        except Failed as error:
            failure = error
    raise Failed(f"the controller refused: {failure}")


def _secretly(ipmitool: Sequence[str], directory: str, command: str) -> None:
    """A command that nobody may see, by a file. Success is what ipmitool says, whatever it exits with."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = f"{directory}/ipmi-{os.getpid()}-{time.monotonic_ns()}"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(command + "\n")
        said = _tell(ipmitool, "exec", path)
    finally:
        if os.path.exists(path):
            os.unlink(path)
    if "successful" not in said:
        raise Failed(
            "the controller did not take the password; it may want a longer one or one with other signs: see the log"
        )
