"""A fleet in the database for shadow runs: hosts of several families, made at once, with their groups; nobody builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, insert, select
from sqlmodel import col

from provisiond.inventory.release_tables import EVERYWHERE, Release
from provisiond.inventory.store import RELEASES, Store
from provisiond.inventory.tables import (
    Domain,
    Host,
    HostGroup,
    Image,
    Interface,
    Medium,
    OperatingSystem,
    Subnet,
    new_id,
    new_row,
    table,
)
from provisiond.templating.catalogue import Catalogue
from provisiond.templating.pointers import move_pointer

FAMILIES = {
    "redhat": (
        "fleet-almalinux-9",
        "redhat",
        "9.4",
        "https://mirror.example.org/almalinux/9/BaseOS/x86_64/os/",
    ),
    "debian": ("fleet-debian-12", "debian", "12", "https://deb.example.org/debian"),
    "image": ("fleet-debian-12-image", "debian", "12", ""),
}
"""Group -> operating system's name, family, version, mirror; ``image`` hosts are built from an image."""


def _file(kind: str, body: str, families: str = "", parameters: str = "{}") -> str:
    about = f"about: For tests.\nfamilies: [{families}]\nparameters: {parameters}"
    return "{#\nkind: " + kind + "\n" + about + "\n#}\n" + body


_PASSWORD = "{root_password_hash: {type: string, default: null, about: For tests.}, site: {type: string, default: hq, about: For tests.}}"
TEMPLATES = {
    "kickstart.ks.j2": _file(
        "kickstart",
        """lang en_US.UTF-8
keyboard us
timezone {{ parameters.timezone | default("UTC") | ks }}
url --url={{ medium.mirror | ks }}
{% include "password.ks.j2" %}
network --device={{ host.mac | ks }} --bootproto=dhcp --hostname={{ host.fqdn | ks }}
bootloader
autopart
%packages
@core
%end
%post
curl {{ urls.built | shell }}
%end
""",
        "redhat",
        _PASSWORD,
    ),
    "password.ks.j2": _file(
        "snippet",
        """{% if parameters.root_password_hash is none %}
rootpw --lock
{% else %}
rootpw --iscrypted {{ parameters.root_password_hash | ks }}
{% endif %}
""",
        "redhat",
        _PASSWORD,
    ),
    "preseed.cfg.j2": _file(
        "preseed",
        """d-i debian-installer/locale string en_US.UTF-8
d-i netcfg/get_hostname string {{ host.name | preseed }}
d-i passwd/root-login boolean true
d-i preseed/late_command string wget {{ urls.built | shell | preseed }}
""",
        "debian",
    ),
    "user-data.j2": _file(
        "user-data", "#cloud-config\nhostname: {{ host.name | yaml }}\nfqdn: {{ host.fqdn | yaml }}\n"
    ),
    "meta-data.j2": _file(
        "meta-data", "instance-id: {{ deployment.id | yaml }}\nlocal-hostname: {{ host.name | yaml }}\n"
    ),
    "vendor-data.j2": _file("vendor-data", "#cloud-config\n{}\n"),
    "network-config.j2": _file(
        "network-config",
        "version: 2\nethernets:\n  eth0:\n    match: {macaddress: {{ host.mac | yaml }}}\n    dhcp4: true\n",
    ),
    **{
        f"ipxe-{kind}.j2": _file(f"ipxe-{kind}", "#!ipxe\nkernel {{ boot.kernel | ipxe }}\nboot\n")
        for kind in ("installer", "ramdisk")
    },
    **{
        f"grub-{kind}.j2": _file(f"grub-{kind}", "linux {{ boot.kernel | grub }}\nboot\n")
        for kind in ("installer", "ramdisk")
    },
    **{
        f"pxelinux-{kind}.j2": _file(
            f"pxelinux-{kind}", "DEFAULT go\nLABEL go\nKERNEL {{ boot.kernel | pxelinux }}\n"
        )
        for kind in ("installer", "ramdisk")
    },
}
"""A small set of templates that is enough to build all of FAMILIES."""


async def populate(
    store: Store,
    count: int,
    *,
    families: Mapping[str, tuple[str, str, str, str]] = FAMILIES,
    every: Any = None,
) -> list[str]:
    """``count`` hosts, spread over the groups of ``families`` under the group ``all``; returns their ids.

    ``every`` (number -> dict) gives columns of each host, such as its parameters.
    """
    ids: list[str] = []
    async with store.write() as session:
        domain = Domain(name="example.org")
        top = HostGroup(name="all", parameters={"timezone": "Europe/Berlin"})
        subnet = Subnet(name="fleet", cidr="10.64.0.0/12", gateway="10.64.0.1", dns=["10.64.0.53"])
        session.add_all([domain, top, subnet])
        await session.flush()
        groups = {}
        for name, (system_name, family, version, mirror) in families.items():
            system = OperatingSystem(name=system_name, family=family, version=version)
            session.add(system)
            await session.flush()
            group = HostGroup(name=name, parent_id=top.id, operating_system_id=system.id, domain_id=domain.id)
            if mirror:
                medium = Medium(name=system_name, operating_system_id=system.id, source=mirror, mirror=mirror)
                session.add(medium)
                await session.flush()
                group.medium_id = medium.id
            else:
                image = Image(
                    name=system_name,
                    operating_system_id=system.id,
                    path="x.raw",
                    format="raw",
                    sha256="0" * 64,
                    size=1 << 20,
                )
                session.add(image)
                await session.flush()
                group.image_id = image.id
            session.add(group)
            await session.flush()
            groups[name] = group.id
        hosts, cards = [], []
        names = list(groups)
        for number in range(count):
            group = names[number % len(names)]
            host_id = new_id()
            ids.append(host_id)
            own = every(number) if every else {}
            method = "image" if group == "image" else "installer"
            hosts.append(
                new_row(
                    Host,
                    id=host_id,
                    name=f"node{number:05}",
                    group_id=groups[group],
                    method=method,
                    state="active",
                    **own,
                )
            )
            mac = f"52:54:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}:0a"
            ip = (
                f"10.{64 + (number >> 16)}.{(number >> 8) & 255}.{number & 255}"
                if number % 256 not in (0, 255)
                else None
            )
            cards.append(
                new_row(Interface, host_id=host_id, name="eth0", mac=mac, ip=ip, subnet_id=subnet.id)
            )
        await session.execute(insert(table(Host)), hosts)
        await session.execute(insert(table(Interface)), cards)
    return ids


async def add_release(store: Store, files: dict[str, str], *, current: bool = False) -> str:
    """A release of these files, ``current`` everywhere or nowhere; returns its id."""
    catalogue = Catalogue.of(files)
    async with store.write(RELEASES) as session:
        newest = (await session.execute(select(func.max(col(Release.number))))).scalar() or 0
        release = Release(number=newest + 1, digest=catalogue.digest, files=dict(catalogue.files))
        session.add(release)
        await session.flush()
        if current:
            await move_pointer(session, EVERYWHERE, release.id, actor="test")
        return release.id
