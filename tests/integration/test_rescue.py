"""The rescue script, run as root in namespaces of its own: real links, addresses and routes of a real kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import build_context
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.render import Renderer

MACS = ("52:54:00:aa:bb:01", "52:54:00:aa:bb:02")
PROGRAMS = ("ip", "cat", "grep", "mkdir", "chmod", "sed", "sleep", "sh", "hostname")
# a tap device stands for a card; /root, /etc and /usr/local/bin are copies that go away with the namespace
START = """
set -e
mount -t sysfs sysfs /sys
for place in /root /usr/local/bin; do mount -t tmpfs tmpfs $place; done
cp -a /etc/resolv.conf "$1/resolv.conf"
mount --bind "$1/resolv.conf" /etc/resolv.conf
ip link set lo up
n=0
for mac in $2; do ip tuntap add tap$n mode tap; ip link set tap$n address $mac; n=$((n + 1)); done
ip addr add 192.0.2.77/24 dev tap0
PATH=$1/bin sh "$1/rescue.sh" > "$1/said" 2>&1
ip -json addr > "$1/addr"
ip -json route > "$1/route4"
ip -6 -json route > "$1/route6"
cp /etc/resolv.conf "$1/resolv.after"
cp /root/.ssh/authorized_keys "$1/keys"
stat -c %a /root/.ssh/authorized_keys > "$1/mode"
hostname > "$1/hostname"
sh -n /usr/local/bin/provisiond-chroot
"""


def namespaces() -> str:
    """Why the test cannot run here, or nothing."""
    if os.geteuid() != 0:
        return "not root"
    if missing := [p for p in (*PROGRAMS, "unshare") if not shutil.which(p)]:
        return f"{', '.join(missing)} not installed"
    tried = subprocess.run(
        ["unshare", "-nm", "sh", "-c", "ip tuntap add t0 mode tap && ip link add b0 type bridge"], capture_output=True, text=True, check=False
    )  # fmt: skip
    return (
        f"no tap devices or bridges in a network namespace here: {tried.stderr.strip()}"
        if tried.returncode
        else ""
    )


def test_rescue(tmp_path: Path) -> None:
    """A bridge with two addresses, a static card whose first address goes away, routes, name servers, the keys, and no stray process."""
    if why := namespaces():
        pytest.skip(why)
    fixture = read_fixtures([shipped_directory()])["suse15-links"]
    host = replace(
        fixture.host(),
        network={
            "search": ["lab.example.org"],
            "cards": [
                {"card": "eth0", "routes": [{"to": "10.128.0.0/9", "via": "10.0.0.1", "metric": 50}]},
                {"card": "52:54:00:aa:bb:03", "addresses": ["none"]},
            ],
            "bridges": [
                {"name": "br0", "links": ["eth1"], "mtu": 1400, "addresses": ["10.9.0.5/16", "2001:db8::5/64"], "gateway": "2001:db8::1"}
            ],
        },
    )  # fmt: skip
    keys = ["ssh-ed25519 AAAA it's $(me)", "ssh-rsa BBBB b"]
    context = build_context(host, fixture.urls(), authorized_keys=keys)
    renderer = Renderer(read_directory(shipped_directory()))
    (tmp_path / "rescue.sh").write_text(renderer.render("rescue/rescue.sh.j2", context))
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        (tmp_path / "bin" / program).symlink_to(str(shutil.which(program)))
    done = subprocess.run(
        ["unshare", "-nmupf", "--kill-child", "--mount-proc", "sh", "-c", START, "sh", str(tmp_path), " ".join(MACS)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = (tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""
    assert done.returncode == 0, done.stderr + said
    assert "rescue is ready" in said and "there is no network card" not in said, said

    def read(name: str) -> Any:
        return json.loads((tmp_path / name).read_text())

    links = {link["ifname"]: link for link in read("addr")}
    addresses = {
        name: [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"]
        for name, link in links.items()
    }
    assert addresses["tap0"] == ["10.0.0.21/24"] and addresses["tap1"] == []
    assert addresses["br0"] == ["10.9.0.5/16", "2001:db8::5/64"]
    assert links["br0"]["mtu"] == 1400 and links["tap1"]["master"] == "br0"
    routes = {r["dst"]: r for r in read("route4")}
    assert routes["default"]["gateway"] == "10.0.0.254" and routes["default"]["dev"] == "tap0"
    assert routes["10.128.0.0/9"]["gateway"] == "10.0.0.1" and routes["10.128.0.0/9"]["metric"] == 50
    assert [r["gateway"] for r in read("route6") if r["dst"] == "default"] == ["2001:db8::1"]
    assert (tmp_path / "resolv.after").read_text() == (
        "nameserver 10.0.0.53\nnameserver 9.9.9.9\nsearch lab.example.org\n"
    )
    assert (tmp_path / "keys").read_text().splitlines() == keys
    assert (tmp_path / "mode").read_text() == "600\n" and (tmp_path / "hostname").read_text() == "web01\n"
