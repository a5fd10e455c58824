"""A shadow run's throw-away machine, made and booted for real. In the long lab: it takes as long as a virtual machine takes to go into service."""

from __future__ import annotations

import libvirt
import pytest

from tests.lab.kit.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.lab_full, pytest.mark.timeout(900)]


def test_a_throw_away_machine_boots_with_the_release(lab: Lab) -> None:
    """One machine like a host that stands by is made on libvirt, boots its image, phones home, and leaves nothing behind."""
    lab.daemon.ctl("host", "create", "sample", "--group", "web", "--on", "hv1")
    lab.wait("sample", "ready")
    said = lab.daemon.ctl("release", "shadow", "current", "--group", "web", "--boot", "1", timeout=600)
    assert "booted shadow-1-1, made like sample: active" in said
    [run] = lab.daemon.api("GET", "/shadow-runs")["items"]
    [boot] = lab.daemon.api("GET", f"/shadow-runs/{run['number']}")["boots"]
    print(f"  {boot['host']} was in service after {boot['seconds']:.0f} s", flush=True)
    names = {host["name"] for host in lab.daemon.api("GET", "/hosts")["items"]}
    assert "sample" in names
    assert not {name for name in names if name.startswith("shadow-")}
    connection = libvirt.open(lab.libvirtd.uri)
    try:
        assert not [d.name() for d in connection.listAllDomains() if d.name().startswith("shadow-")]
    finally:
        connection.close()
    assert not [path.name for path in lab.libvirtd.pool.iterdir()]
    lab.daemon.ctl("host", "retire", "sample", "--yes")
