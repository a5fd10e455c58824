"""What the build tells its caller."""

from __future__ import annotations

import sys


class BuildError(Exception):
    """The ramdisk cannot be made: says what is missing and what to do."""


def say(text: str) -> None:
    """A line of progress, on standard error; the daemon shows the newest."""
    print(f"ramdisk: {text}", file=sys.stderr, flush=True)
