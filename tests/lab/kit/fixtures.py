"""The lab as pytest fixtures: a conftest imports what it needs from here. Each test worker has a lab of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.lab.kit.libvirtd import Libvirtd, reap, root_for
from tests.lab.kit.netns import Netns


def need(*programs: str) -> None:
    """Skip, saying why, where the lab cannot be."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the lab makes network namespaces")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: 'make apt' installs what the lab uses")


@pytest.fixture(scope="session")
def netns() -> Iterator[Netns]:
    """A namespace with bridge br-lab, 10.77.0.1/24 and fd77::1/64."""
    need("ip")
    reap()
    with Netns() as ns:
        yield ns


@pytest.fixture(scope="session")
def libvirtd(netns: Netns) -> Iterator[Libvirtd]:
    """A libvirtd in ``netns`` with an empty pool ``default``."""
    need("libvirtd", "qemu-img", "qemu-system-x86_64", "unshare")
    with Libvirtd(netns, root_for(netns)) as hypervisor:
        yield hypervisor
