"""The long lab (make lab-full): Debian's own installer on a blank machine, by the preseed that was rendered for it.

Without a mirror the installer gets as far as its early command, whose report proves kernel, arguments, network and preseed.
With PROVISIOND_LAB_MIRROR (URL of a whole Debian mirror, udebs too) it installs, boots what it installed, and goes into service.
The other parts of the long lab are in test_loaders.py.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

import pytest

from tests.lab.kit.doors import Doors
from tests.lab.kit.lab import Lab
from tests.lab.kit.mirror import Mirror

pytestmark = [pytest.mark.lab, pytest.mark.lab_full, pytest.mark.timeout(7200)]

NETBOOT = Path("/usr/lib/debian-installer/images/12/amd64/text")
WHOLE_MIRROR = os.environ.get("PROVISIOND_LAB_MIRROR", "")
NO_MIRROR = "http://10.77.0.1:3142/debian"  # nobody listens there
EARLY = 600.0  # seconds from power-on to the early command; a quiet machine needs 90 to 200
INSTALLED = 5400.0
WATCHED = (
    12.0  # the early command's watcher looks into the installer's log every 5 s, on a machine that is slow
)


@pytest.mark.skipif(
    not NETBOOT.is_dir(), reason=f"{NETBOOT} is missing: install debian-installer-12-netboot-amd64"
)
def test_debian_installer(lab: Lab) -> None:
    """PXE, the installer's kernel, its preseed, its early command's report; with a mirror at hand on until it is in service."""
    with Mirror(lab.ns, WHOLE_MIRROR) if WHOLE_MIRROR else contextlib.nullcontext() as mirror:
        url = mirror.url if mirror else NO_MIRROR
        said = lab.daemon.ctl("media", "add", "debian-12", "--from", str(NETBOOT), "--mirror", url)
        assert "debian-12 is in place" in said
        machine = lab.bare_metal("metal-di")
        # a single archive is all there is; the small kernel spares an emulated machine minutes
        own = ("security_mirror=null", "debian_updates=false", "kernel_package=linux-image-cloud-amd64")
        parameters = [word for parameter in own for word in ("--param", parameter)]
        lab.create_metal(machine, "--build", "--method", "installer", "--media", "debian-12", *parameters)
        doors = Doors(lab, machine.name)
        try:
            doors.until("/boot/TOKEN/progress", EARLY)
            doors.tell()
            _reached_the_early_command(lab, doors, machine.name)
            if mirror:
                host = lab.wait(machine.name, "active", INSTALLED)
                address = host["interfaces"][0]["ip"]
                assert lab.ssh(address, "hostname").strip() == machine.name
        except AssertionError as error:
            if mirror and mirror.missing:
                raise AssertionError(
                    f"the mirror is not whole, it lacks {mirror.missing}:\n{error}"
                ) from error
            raise
        finally:
            lab.daemon.ctl("host", "cancel", machine.name, check=False)
            machine.power(False)
    if not mirror:
        print("  not installed to its end: PROVISIOND_LAB_MIRROR names no mirror", flush=True)


def _reached_the_early_command(lab: Lab, doors: Doors, name: str) -> None:
    paths = [leg.path for leg in doors.legs()]
    ends = ("kernel", "initrd", "unattended", "progress")
    order = [paths.index(f"/boot/TOKEN/{end}") for end in ends]
    assert order == sorted(order), paths
    events = lab.history(name)
    assert [event["kind"] for event in events].count("boot.asked") == 1
    [report] = [event for event in events if event["kind"] == "callback.progress"][:1]
    assert "the installer has its preseed" in f"{report['message']} {report['data']}", report
    time.sleep(WATCHED)
    failure = lab.daemon.host(name)["failure"]
    assert not failure or re.match(r"the installer stopped: [A-Za-z -]+ failed;", failure), failure
    print(f"  {name}: {failure or 'its installer goes on'}", flush=True)
