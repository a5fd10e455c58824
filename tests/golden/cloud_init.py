"""Fetches Debian's cloud-init package, once for all runs, and unpacks it into a cache without installing it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path


def unpacked() -> Path | None:
    """The directory that holds usr/lib/python3/dist-packages/cloudinit, or None where apt cannot fetch it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "provisiond-tests" / "cloud-init"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = cache / "unpacked"
        if (target / "usr/lib/python3/dist-packages/cloudinit").is_dir():
            return target
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            try:
                subprocess.run(
                    ["apt-get", "download", "cloud-init"],
                    cwd=scratch,
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
                package = next(Path(scratch).glob("cloud-init_*.deb"))
                subprocess.run(
                    ["dpkg-deb", "-x", str(package), f"{scratch}/x"],
                    check=True,
                    capture_output=True,
                    timeout=60,
                )
            except (OSError, subprocess.SubprocessError, StopIteration):
                return None
            Path(scratch, "x").rename(target)
        return target
