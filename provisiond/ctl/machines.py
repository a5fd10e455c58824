"""provisionctl hypervisor and flavor: where virtual machines are made, and how large."""

from __future__ import annotations

from typing import Annotated

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import Name, given, noun, session, usage
from provisiond.ctl.output import show_one

hypervisor = noun(
    "hypervisor", "/hypervisors", ("name", "driver", "uri", "pool", "bridge", "network"), plural="hypervisors"
)
flavor = noun("flavor", "/flavors", ("name", "vcpus", "memory_mib", "disk_gib"), plural="flavors")

Driver = Annotated[
    str | None,
    typer.Option(
        help="Compute driver: libvirt, or fake for machines that are only noted down. Default: by the URI."
    ),
]
Pool = Annotated[str | None, typer.Option(help="Storage pool for disks.")]
Bridge = Annotated[str | None, typer.Option(help="Bridge its network cards go on.")]
Network = Annotated[str | None, typer.Option(help="libvirt network its network cards go on.")]
Vcpus = Annotated[int | None, typer.Option(help="Virtual CPUs.")]
Memory = Annotated[int | None, typer.Option("--memory", help="Memory in MiB.")]
Disk = Annotated[int | None, typer.Option("--disk", help="Disk in GiB.")]


@hypervisor.command("create")
def create_hypervisor(
    context: typer.Context, name: Name, uri: Annotated[str, typer.Argument(help="Such as qemu:///system.")], driver: Driver = None,
    pool: Pool = None, bridge: Bridge = None, network: Network = None,
) -> None:  # fmt: skip
    """Make a hypervisor known."""
    here = session(context)
    body = given(name=name, uri=uri, driver=driver, pool=pool, bridge=bridge, network=network)
    show_one(here.client.post("/hypervisors", body, once=True), here.format)


@hypervisor.command("update")
def update_hypervisor(
    context: typer.Context, name: Name, uri: Annotated[str | None, typer.Option(help="Such as qemu:///system.")] = None,
    pool: Pool = None, bridge: Bridge = None, network: Network = None,
) -> None:  # fmt: skip
    """Change what is given."""
    here = session(context)
    body = given(uri=uri, pool=pool, bridge=bridge, network=network)
    if not body:
        raise usage("nothing to change: give at least one option")
    show_one(here.client.patch("/hypervisors" + place(name), body), here.format)


@flavor.command("create")
def create_flavor(
    context: typer.Context, name: Name, vcpus: Vcpus = None, memory: Memory = None, disk: Disk = None
) -> None:
    """Make a size of virtual machines."""
    here = session(context)
    show_one(
        here.client.post(
            "/flavors", given(name=name, vcpus=vcpus, memory_mib=memory, disk_gib=disk), once=True
        ),
        here.format,
    )


@flavor.command("update")
def update_flavor(
    context: typer.Context, name: Name, vcpus: Vcpus = None, memory: Memory = None, disk: Disk = None
) -> None:
    """Change a size; machines that exist keep theirs until they are rebuilt."""
    here = session(context)
    body = given(vcpus=vcpus, memory_mib=memory, disk_gib=disk)
    if not body:
        raise usage("nothing to change: give at least one option")
    show_one(here.client.patch("/flavors" + place(name), body), here.format)
