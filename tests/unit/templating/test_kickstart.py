"""Kickstarts of Red Hat's systems: what they refuse, which disks %pre takes and spares, and what %post leaves in the new system."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from provisiond.errors import RenderError
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.fixtures import Fixture, read_fixtures
from provisiond.templating.render import Renderer
from tests.libnm import read_keyfiles
from tests.unit.templating.kickstarts import handler_of, keyfiles_of, made_up_machine, run_pre, whole

RENDERER = Renderer(read_directory(shipped_directory()))
FIXTURES = read_fixtures([shipped_directory()])
SECRET = "it's $(a) secret"
BOOT = {"name": "boot", "size": "1GiB", "filesystem": "ext4", "mount": "/boot"}


def render(fixture: str = "redhat-bios-dhcp", **changes: Any) -> str:
    """The kickstart of a shipped fixture with these changes."""
    host = Fixture.model_validate({**FIXTURES[fixture].model_dump(exclude_unset=True), **changes})
    assert host.operating_system
    family, version = host.operating_system.family, host.operating_system.version
    kind = "esxi-kickstart" if family == "esxi" else "kickstart"
    return RENDERER.render(RENDERER.find(kind, family, version), host.context())


def disk(*partitions: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A storage description of one disk."""
    return {"disks": [{"name": "a", "match": "/dev/vda", "partitions": list(partitions)}], **more}


@pytest.mark.parametrize(
    ("fixture", "changes", "key", "said"),
    [
        ("redhat-bios-dhcp", {"storage": {"filesystem": "btrfs"}}, "storage.partitions.root.filesystem", "no btrfs"),
        ("redhat8-bios-dhcp", {"storage": {"filesystem": "btrfs"}}, "storage.partitions.root.filesystem", "no btrfs"),
        ("redhat-bios-dhcp", {"storage": {"encrypt": True}}, "storage.partitions.swap.encrypt", "luks_passphrase"),
        ("fedora-bios-dhcp", {"storage": {"layout": "lvm"}}, "storage.volumes.root.filesystem", "logical volume"),
        (
            "fedora-bios-dhcp",
            {"storage": disk(BOOT, {"name": "root", "size": "rest", "filesystem": "btrfs", "mount": "/", "options": "noatime"})},
            "storage.partitions.root.options", "no mount options",
        ),
        (
            "redhat-bios-dhcp",
            {"storage": disk({"name": "pv", "size": "rest"}, volume_groups=[
                {"name": "vg", "members": ["pv"], "volumes": [{"name": "root", "size": "rest", "filesystem": "xfs", "mount": "/"}]}])},
            "storage.volumes.root.mount", "describe a /boot",
        ),
        (
            "redhat-bios-dhcp",
            {"storage": disk({**BOOT, "filesystem": "vfat"}, {"name": "root", "size": "rest", "filesystem": "xfs", "mount": "/"})},
            "storage.partitions.boot.filesystem", "ext4 or xfs",
        ),
        (
            "redhat-bios-dhcp",
            {"storage": disk(BOOT, {"name": "pv", "size": "rest"}, volume_groups=[
                {"name": "vg", "members": ["pv"], "volumes": [{"name": "root", "size": "4GiB", "filesystem": "xfs", "mount": "/"},
                                                             {"name": "spare", "size": "rest", "filesystem": "xfs"}]}])},
            "storage.volumes.spare.mount", "without mounting",
        ),
        ("redhat-bios-dhcp", {"parameters": {"root_password_hash": ""}}, "parameters.root_password_hash", "empty"),
        (
            "redhat-layered",
            {"network": {"bonds": [{"name": "bond0", "cards": ["eth0", "eth1"], "mode": "balance-alb"}],
                         "bridges": [{"name": "br0", "links": ["bond0"]}]}},
            "network.bonds.bond0.mode", "does not work in a bridge",
        ),
        (
            "redhat-layered",
            {"network": {"ipv6": "off", "cards": [{"card": "eth0", "addresses": ["dhcp"],
                                                   "routes": [{"to": "2001:db8:1::/48", "via": "2001:db8::1"}]}]}},
            "network.cards.eth0.routes", "no IPv6",
        ),
        (
            "redhat-layered",
            {"network": {"ipv6": "off", "cards": [{"card": "eth0", "addresses": ["dhcp"], "dns": ["2001:db8::53"]}]}},
            "network.cards.eth0.dns", "no IPv6",
        ),
        ("esxi-bios-dhcp", {"storage": {"layout": "lvm"}}, "storage", "divides its one disk itself"),
        ("esxi-bios-dhcp", {"storage": {"disk": "/dev/sda"}}, "storage.disk.path", "naa."),
        ("esxi-bios-dhcp", {"storage": {"keep": ["naa.1"]}}, "storage.keep", "name the disk"),
        ("esxi-bios-dhcp", {"network": {"bonds": [{"name": "bond0", "cards": ["vmnic0"]}]}}, "network.bonds.bond0", "handover"),
        ("esxi-bios-dhcp", {"network": {"cards": [{"card": "vmnic0", "addresses": ["dhcp6"]}]}}, "network.cards.vmnic0.addresses", "IPv4"),
        ("esxi-bios-dhcp", {"parameters": {}}, "parameters.root_password_hash", "root_password_hash"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_an_error(fixture: str, changes: dict[str, Any], key: str, said: str) -> None:
    """The error names the host, the template and the key, and says why."""
    with pytest.raises(RenderError) as caught:
        render(fixture, **changes)
    assert caught.value.key == key
    assert said in str(caught.value) and "web01" in str(caught.value) and ".j2" in str(caught.value)


def test_kept_disks_are_spared(tmp_path: Path) -> None:
    """A search passes over a disk that is to be kept; naming such a disk ends the build with a report, and writes nothing."""
    machine, scratch = made_up_machine(tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    fast = {"disk": {"min": "1TiB", "rotational": False}}
    first = handler_of(whole(render(storage=fast), machine, scratch), "redhat", "9")
    other = handler_of(
        whole(render(storage={**fast, "keep": ["/dev/nvme0n1"]}), machine, scratch), "redhat", "9"
    )
    assert (first.ignoredisk.onlyuse, other.ignoredisk.onlyuse) == (["nvme0n1"], ["nvme1n1"])
    (scratch / "provisiond-disks.ks").unlink()
    for storage, said in (
        ({"disk": "/dev/sdb", "keep": ["wwn-0x5000c500a1b2c3d4"]}, "sdb, which is to be kept"),
        ({"disk": "/dev/sdz"}, "no disk for 'disk-a'"),
        ({"disk": {"serial": "NONE"}}, "no disk for 'disk-a'"),
    ):
        done = run_pre(render(storage=storage), machine, scratch)
        assert done.returncode == 1 and said in done.stdout, done.stdout
        assert re.search(r"^message=.*" + re.escape(said), done.stdout, re.MULTILINE)
        assert not (scratch / "provisiond-disks.ks").exists()


def test_the_passphrase_reaches_no_log(tmp_path: Path) -> None:
    """It is read back by Anaconda as it was given, from a file that only root may read, and is cut out of a log that is reported."""
    machine, scratch = made_up_machine(tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    text = render(storage={"encrypt": True}, parameters={"luks_passphrase": SECRET})
    handler = handler_of(whole(text, machine, scratch), "redhat", "9")
    assert [p.passphrase for p in handler.partition.partitions if p.encrypted] == [SECRET, SECRET]
    assert (scratch / "provisiond-disks.ks").stat().st_mode & 0o777 == 0o600
    functions = text[text.index("provisiond_post() {") : text.index('provisiond_progress 5 "')]
    end = f"\nopening with {SECRET}, {SECRET}\nno good\n"
    (scratch / "log").write_text(
        "x" * 9000 + SECRET + "y" * (12_000 - 6 - len(end)) + end
    )  # cut in the secret
    script = (
        functions.replace("/tmp/", f"{scratch}/")
        + f"\ncurl() {{ :; }}\nprovisiond_failed oops {scratch}/log\n"
    )
    subprocess.run(["bash", "-c", script], check=True, timeout=60)
    tail = (scratch / "provisiond-tail").read_text()
    assert tail.endswith("\nopening with ********, ********\nno good\n") and "secret" not in tail


def run_post(text: str, root: Path, broken: str = "") -> tuple[int, list[str]]:
    """Run %post by bash with the new system's directories below ``root``; the addresses that were posted to, with their fields."""
    found = re.search(r"^%post .*\n((?:.*\n)*?)%end$", text, re.MULTILINE)
    assert found
    for name in (
        "etc/NetworkManager",
        "etc/pki/ca-trust/source/anchors",
        "etc/dnf",
        "etc/systemd/system",
        "usr/local/sbin",
        "root",
        "tmp",
        "mnt",
        "boot/efi/EFI",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)  # fmt: skip
    (root / "root/provisiond-post.log").write_text("the log\n")
    script = re.sub(r"(?<![\w.:/$}])/(etc|root|tmp|mnt|usr/local|boot/efi)\b", f"{root}/\\1", found[1])
    stubs = f"curl() {{ printf '%s ' \"$@\" >> {root}/posted; echo >> {root}/posted; }}\n"
    for name in ("systemctl", "mount", "umount", "update-ca-trust"):
        stubs += f'{name}() {{ echo {name} "$@" >> {root}/done; }}\n'
    stubs += f"{broken}() {{ return 3; }}\n" if broken else ""
    done = subprocess.run(
        ["bash", "-c", stubs + script], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, (root / "posted").read_text().splitlines()


def test_post_sets_the_system_up(tmp_path: Path) -> None:
    """Keyfiles, proxy, certificates, sudo rights and the first boot's unit are there when the build is told to be done, last of all."""
    text = render(
        "redhat-layered", parameters={**FIXTURES["redhat-uefi-static"].parameters, "luks_passphrase": SECRET}
    )
    old = tmp_path / "etc/NetworkManager/system-connections/ens3.nmconnection"
    old.parent.mkdir(parents=True)
    old.write_text("the installer's own")
    code, posted = run_post(text, tmp_path)
    assert code == 0
    assert "/progress" in posted[0] and "percent=95" in posted[-2] and posted[-1].rstrip().endswith("/built")
    connections = {p.name: p for p in old.parent.iterdir()}
    assert (
        set(connections) == {f"{name}.nmconnection" for name in keyfiles_of(text)}
        and old.name not in connections
    )
    assert {p.stat().st_mode & 0o777 for p in connections.values()} == {0o600}
    assert (tmp_path / "etc/dnf/dnf.conf").read_text() == "proxy=http://proxy.example.org:3128\n"
    assert (tmp_path / "etc/sudoers.d/90-provisiond").read_text() == "deploy ALL=(ALL) NOPASSWD: ALL\n"
    assert (
        (tmp_path / "etc/pki/ca-trust/source/anchors/provisiond-1.crt").read_text().startswith("-----BEGIN")
    )
    done = (tmp_path / "done").read_text().splitlines()
    assert done == [
        f"mount LABEL=ESP2 {tmp_path}/mnt",
        f"umount {tmp_path}/mnt",
        "update-ca-trust",
        "systemctl enable provisiond-first-boot.service",
    ]
    assert (tmp_path / "mnt/EFI").is_dir()


def test_post_that_fails(tmp_path: Path) -> None:
    """A failing command ends %post with a report, and the build is never told to be done."""
    code, posted = run_post(render("redhat-uefi-static"), tmp_path, broken="update-ca-trust")
    assert (
        code != 0
        and "the %post script failed at line" in posted[-1]
        and posted[-1].rstrip().endswith("/failed")
    )
    assert not any(line.rstrip().endswith("/built") for line in posted)


@pytest.mark.parametrize("fixture", ["redhat-layered", "redhat8-everything", "fedora-uefi-raid"])
def test_keyfiles_are_networkmanagers(fixture: str) -> None:
    """libnm takes every keyfile of a golden host without a word."""
    found = read_keyfiles(keyfiles_of(render(fixture)))
    assert found and all((k["error"], k["warnings"]) == ("", []) for k in found.values()), found
    for below in (k for name, k in found.items() if name == "lab40"):
        assert below["vlan"] == {"id": 40, "parent": None} and below["mac"].lower() == "52:54:00:aa:bb:03"


def test_libnm_refuses_what_is_wrong() -> None:
    """The reader is not one that takes anything: a VLAN's parent by MAC and a server of a family that is off are refused."""
    vlan = "[connection]\nid=a\ntype=vlan\ninterface-name=a\n\n[vlan]\nid=7\nparent=52:54:00:aa:bb:01\n"
    off = "[connection]\nid=a\ntype=ethernet\n\n[ethernet]\n\n[ipv4]\nmethod=auto\n\n[ipv6]\nmethod=disabled\ndns=2001:db8::53;\n"
    odd = "[connection]\nid=a\ntype=ethernet\n\n[ethernet]\nmac-address=zz\n"
    found = read_keyfiles({"vlan": vlan, "off": off, "odd": odd})
    assert (
        "vlan.parent" in found["vlan"]["error"]
        and "ipv6.dns" in found["off"]["error"]
        and found["odd"]["warnings"]
    )
