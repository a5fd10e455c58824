"""Fixtures of the lab's tests: one lab for each module, torn down to the last process."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.kit.fixtures import need
from tests.lab.kit.lab import Lab
from tests.lab.kit.netns import reap


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab with a provisiond that knows network, image and hypervisor. Its log is kept when a test failed."""
    need("ip", "libvirtd", "qemu-system-x86_64", "dnsmasq", "ipmi_sim", "mmdebstrap")
    reap()
    # below /tmp whatever TMPDIR says: a socket's path ends after 107 bytes
    place = Lab(Path(tempfile.mkdtemp(prefix=f"pvlab-{os.getpid()}-", dir="/tmp")))
    failed = request.session.testsfailed
    try:
        yield place.up(lambda text: print(f"  lab: {text}", flush=True))
    finally:
        if request.session.testsfailed > failed and place.daemon.log_file.exists():
            kept = shutil.copy(place.daemon.log_file, Path(tempfile.gettempdir()) / "provisiond-lab.log")
            print(f"  lab: the daemon's log is kept as {kept}", flush=True)
        place.down()
