"""The shipped host fixtures by name (templates/fixtures/), and hosts made by hand for tests that vary their parameters."""

from __future__ import annotations

from typing import Any

from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost, ResolvedInterface
from provisiond.inventory.tables import Deployment, Domain, Host, Image, Medium, OperatingSystem, Subnet
from provisiond.templating.catalogue import shipped_directory
from provisiond.templating.context import BootFiles, BuildUrls
from provisiond.templating.fixtures import read_fixtures

URLS = BuildUrls.of("http://10.0.0.1:8421", "t0k3n-t0k3n-t0k3n")
BOOT = BootFiles(
    why="building: starts its installer",
    kernel="http://10.0.0.1:8421/boot/media/kernel",
    initrd="http://10.0.0.1:8421/boot/media/initrd",
    url="http://10.0.0.1:8421",
    ticket="t1ck3t-t1ck3t-t1ck3t",
)

FIXTURES = read_fixtures([shipped_directory()])
V4 = Subnet(id="s4", name="rack1", cidr="10.0.0.0/24", gateway="10.0.0.254", dns=["10.0.0.53", "9.9.9.9"])
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


def context_of(fixture: str) -> dict[str, Any]:
    """The context a template is rendered with for a shipped fixture."""
    return FIXTURES[fixture].context()
