"""The host fixtures templates are tested on, by the names their headers use. Fixed in every byte, so that golden files stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost, ResolvedInterface
from provisiond.inventory.tables import Deployment, Domain, Host, Image, Medium, OperatingSystem, Subnet
from provisiond.templating.context import BootFiles, BuildUrls, build_context, machine_context

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFixedKeyOfTheDaemonForGoldenFiles provisiond"
URLS = BuildUrls.of("http://10.0.0.1:8421", "t0k3n-t0k3n-t0k3n")
BOOT = BootFiles(
    why="building: starts its installer",
    kernel="http://10.0.0.1:8421/boot/media/kernel",
    initrd="http://10.0.0.1:8421/boot/media/initrd",
    url=URLS.base,
)
HOSTILE = 'it\'s "quoted" #{{ 7*7 }} $(touch /tmp/pwned) `id` %end é ${net0/mac}; reboot'

V4 = Subnet(id="s4", name="rack1", cidr="10.0.0.0/24", gateway="10.0.0.254", dns=["10.0.0.53", "9.9.9.9"])
STORAGE = Subnet(id="s5", name="storage", cidr="10.9.0.0/22", gateway="10.9.0.1", dns=[])
V6 = Subnet(id="s6", name="rack6", cidr="2001:db8::/64", gateway="2001:db8::1", dns=["2001:db8::53"])
DEBIAN = OperatingSystem(id="o1", name="debian-12", family="debian", version="12")
ALMA = OperatingSystem(id="o2", name="almalinux-9", family="redhat", version="9.4")
DEBIAN_MEDIUM = Medium(
    id="m1", name="debian-12", operating_system_id="o1", source="x", mirror="http://deb.debian.org/debian"
)
ALMA_MEDIUM = Medium(
    id="m2",
    name="almalinux-9",
    operating_system_id="o2",
    source="x",
    mirror="https://repo.almalinux.org/almalinux/9/BaseOS/x86_64/os/",
)
IMAGE = Image(
    id="i1",
    name="debian-12",
    path="debian-12.raw",
    format="raw",
    sha256="0" * 64,
    size=1 << 30,
    operating_system_id="o1",
    user="debian",
)


def make_host(
    *,
    system: OperatingSystem = DEBIAN,
    medium: Medium | None = None,
    image: Image | None = None,
    firmware: str = "bios",
    interfaces: tuple[ResolvedInterface, ...] | None = None,
    name: str = "web01",
    **parameters: Any,
) -> ResolvedHost:
    """A resolved host without a database."""
    if interfaces is None:
        interfaces = (ResolvedInterface("n1", "eth0", "52:54:00:aa:bb:01", "10.0.0.21", True, V4),)
    return ResolvedHost(
        row=Host(
            id="11111111-2222-3333-4444-555555555555",
            name=name,
            firmware=firmware,
            method="image" if image else "installer",
        ),
        interfaces=interfaces,
        bmc=None,
        hypervisor=None,
        flavor=None,
        image=image,
        medium=medium,
        operating_system=system,
        domain=Domain(id="d1", name="example.org"),
        groups=("all", "web"),
        merged=merge([(f"host {name}", parameters)]),
        handover=None,
        deployment=Deployment(id="99999999-8888-7777-6666-555555555555", host_id="x", number=3),
    )


TWO_NICS = (
    ResolvedInterface("n1", "eth0", "52:54:00:aa:bb:01", "10.0.0.21", True, V4),
    ResolvedInterface("n2", "eth1", "52:54:00:aa:bb:02", "10.9.0.21", False, STORAGE),
    ResolvedInterface("n3", "eth2", "52:54:00:aa:bb:03", None, False, None),
)
SIX = (ResolvedInterface("n1", "eth0", "52:54:00:aa:bb:01", "2001:db8::21", True, V6),)
FULL: dict[str, Any] = {
    "timezone": "Europe/Berlin",
    "language": "de_DE.UTF-8",
    "ntp_servers": ["ntp1.example.org", "ntp2.example.org"],
    "packages": ["vim", "htop"],
    "disk_layout": "lvm",
    "root_password_hash": "$6$salt$hashhashhash/hash.hash",
    "admin_user": "deploy",
    "ssh_authorized_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOperator alice@example.org"],
    "kernel_arguments": ["mitigations=off", "audit=1"],
    "http_proxy": "http://proxy.example.org:3128",
}
NASTY: dict[str, Any] = {
    "ssh_authorized_keys": [f"ssh-ed25519 AAAA {HOSTILE}", "command=\"/bin/echo 'hi'\" ssh-rsa BBBB o'hara"],
    "root_password_hash": '$6$it\'s$ "x" #y',
    "timezone": "Europe/Berlin' --ntpservers=evil",
    "language": "C #comment",
    "network": "dhcp",
}

FIXTURES: dict[str, Callable[[], ResolvedHost]] = {
    "debian-bios-dhcp": lambda: make_host(medium=DEBIAN_MEDIUM, network="dhcp"),
    "debian-uefi-static": lambda: make_host(
        medium=DEBIAN_MEDIUM, firmware="uefi", interfaces=TWO_NICS, disk="/dev/vda", **{**FULL, "packages": ["vim", "-nano"]}
    ),
    "debian-hostile": lambda: make_host(medium=DEBIAN_MEDIUM, **NASTY),
    "redhat-bios-dhcp": lambda: make_host(system=ALMA, medium=ALMA_MEDIUM, network="dhcp"),
    "redhat-uefi-static": lambda: make_host(
        system=ALMA, medium=ALMA_MEDIUM, firmware="uefi", interfaces=TWO_NICS, disk="/dev/disk/by-id/wwn-0x5000",
        repositories={"appstream": "https://repo.almalinux.org/almalinux/9/AppStream/x86_64/os/"},
        **{**FULL, "packages": ["vim", "-nano", "@development"]},
    ),
    "redhat-hostile": lambda: make_host(system=ALMA, medium=ALMA_MEDIUM, interfaces=SIX, **{**NASTY, "network": "static"}),
    "image-bios-dhcp": lambda: make_host(image=IMAGE, network="dhcp"),
    "image-uefi-static": lambda: make_host(image=IMAGE, firmware="uefi", interfaces=TWO_NICS, first_boot_script="#!/bin/sh\necho hi\n", **FULL),
    "image-hostile": lambda: make_host(image=IMAGE, interfaces=SIX, **{**NASTY, "network": "static"}),
}  # fmt: skip


def context_of(fixture: str) -> dict[str, Any]:
    """The context a template is rendered with for a fixture; ``any-machine`` is one that is no host."""
    if fixture == "any-machine":
        boot = BootFiles(
            mac="52:54:00:aa:bb:99", why="unknown machine: the ramdisk reports it and waits for approval",
            kernel="http://10.0.0.1:8421/boot/ramdisk/vmlinuz", initrd="http://10.0.0.1:8421/boot/ramdisk/initrd.img",
            url="http://10.0.0.1:8421/boot/discovery",
        )  # fmt: skip
        return machine_context("http://10.0.0.1:8421/boot", boot)
    return build_context(FIXTURES[fixture](), URLS, authorized_keys=[KEY], boot=BOOT)
