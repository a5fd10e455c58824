"""The drivers of disks and controllers load in the background while the network comes up: waiting for them.

Whoever looks at disks before that sees half of them: facts would forget some, and an erasure would leave some as they are.
"""

import os
import time
from collections.abc import Callable

# the ramdisk's init unpacks the first, and makes the second when every driver was asked for
SETTLING, SETTLED = "/tools.squashfs", "/run/settled"
SECONDS = 60.0
STEADY = 0.5  # seconds in which no disk appears, after the drivers are loaded: controllers look for their disks meanwhile
_BLOCK = "/sys/block"


def settle(beat: Callable[[], None] = lambda: None, seconds: float = SECONDS) -> None:
    """Wait until all drivers are loaded and no more disks appear, `seconds` at most. Returns at once outside of the ramdisk."""
    if not os.path.exists(SETTLING):
        return
    until = time.monotonic() + seconds
    waited = False
    while not os.path.exists(SETTLED) and time.monotonic() < until:
        beat()
        waited = True
        time.sleep(0.2)
    if not waited:
        return  # they were loaded some time ago
    seen: list[str] = []
    while (now := sorted(os.listdir(_BLOCK))) != seen and time.monotonic() < until:
        seen = now
        beat()
        time.sleep(STEADY)
