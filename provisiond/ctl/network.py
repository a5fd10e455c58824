"""provisionctl group, subnet and domain: what hosts inherit, and where they live."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import (
    Name,
    NetworkFile,
    Params,
    ParamsFile,
    Profile,
    StorageFile,
    given,
    noun,
    read_description,
    read_parameters,
    session,
    usage,
)
from provisiond.ctl.output import show_one

group = noun(
    "group",
    "/groups",
    (
        "name",
        "parent",
        "operating_system",
        "image",
        "medium",
        "subnet",
        "domain",
        "hypervisor",
        "flavor",
        "handover",
    ),
    plural="host groups",
)
subnet = noun(
    "subnet",
    "/subnets",
    ("name", "cidr", "gateway", "dns", "pools", "dynamic", "vlan", "unknown", "domain"),
    plural="subnets",
)
domain = noun("domain", "/domains", ("name", "parameters"), plural="domains")

Parent = Annotated[str | None, typer.Option(help="The group above it.")]
System = Annotated[str | None, typer.Option("--os", help="Operating system of its hosts.")]
Medium = Annotated[str | None, typer.Option("--media", "--medium", help="Installation medium of its hosts.")]
Image = Annotated[str | None, typer.Option(help="Disk image of its hosts.")]
Subnet = Annotated[str | None, typer.Option(help="Subnet its hosts get addresses from.")]
Domain = Annotated[str | None, typer.Option(help="DNS domain of its hosts.")]
On = Annotated[str | None, typer.Option("--on", help="Hypervisor its hosts are made on.")]
Flavor = Annotated[str | None, typer.Option(help="Size of its virtual machines.")]
Handover = Annotated[str | None, typer.Option(help="Configuration management: ansible, script, none.")]

Gateway = Annotated[str | None, typer.Option(help="Default router.")]
Dns = Annotated[list[str] | None, typer.Option(help="DNS server; again for more.")]
Pool = Annotated[
    list[str] | None,
    typer.Option("--pool", help="FIRST-LAST that hosts' addresses are taken from; again for more."),
]
Dynamic = Annotated[
    list[str] | None, typer.Option("--dynamic", help="FIRST-LAST that DHCP gives to unknown machines.")
]
Vlan = Annotated[int | None, typer.Option(help="VLAN id.")]
Unknown = Annotated[str | None, typer.Option(help="What an unknown machine gets: ignore, discover or menu.")]


@group.command("create")
def create_group(
    context: typer.Context, name: Name, parent: Parent = None, operating_system: System = None, medium: Medium = None,
    image: Image = None, subnet: Subnet = None, domain: Domain = None, on: On = None, flavor: Flavor = None,
    handover: Handover = None, param: Params = None, params_file: ParamsFile = None,
    storage: StorageFile = None, network: NetworkFile = None, profile: Profile = None,
) -> None:  # fmt: skip
    """Make a group of hosts; what it leaves open is inherited from its parent."""
    body = given(name=name, parent=parent, operating_system=operating_system, medium=medium, image=image, subnet=subnet, domain=domain,
                 hypervisor=on, flavor=flavor, handover=handover, parameters=read_parameters(param or [], params_file),
                 storage=read_description(storage), network=read_description(network), profile=profile)  # fmt: skip
    _create(context, "/groups", body)


@group.command("update")
def update_group(
    context: typer.Context, name: Name, parent: Parent = None, operating_system: System = None, medium: Medium = None,
    image: Image = None, subnet: Subnet = None, domain: Domain = None, on: On = None, flavor: Flavor = None,
    handover: Handover = None, param: Params = None, params_file: ParamsFile = None,
    storage: StorageFile = None, network: NetworkFile = None, profile: Profile = None,
) -> None:  # fmt: skip
    """Change what is given; an option set to "" empties it. Parameters are replaced as a whole."""
    body = given(parent=parent, operating_system=operating_system, medium=medium, image=image, subnet=subnet, domain=domain,
                 hypervisor=on, flavor=flavor, handover=handover, parameters=read_parameters(param or [], params_file),
                 storage=read_description(storage), network=read_description(network), profile=profile)  # fmt: skip
    _update(context, "/groups", name, body)


@subnet.command("create")
def create_subnet(
    context: typer.Context, name: Name, cidr: Annotated[str, typer.Argument(help="Such as 10.0.0.0/24.")], gateway: Gateway = None,
    dns: Dns = None, pool: Pool = None, dynamic: Dynamic = None, vlan: Vlan = None, unknown: Unknown = None, domain: Domain = None,
    param: Params = None, params_file: ParamsFile = None,
) -> None:  # fmt: skip
    """Make a subnet."""
    body = given(name=name, cidr=cidr, gateway=gateway, dns=dns, pools=pool, dynamic=dynamic, vlan=vlan, unknown=unknown, domain=domain,
                 parameters=read_parameters(param or [], params_file))  # fmt: skip
    _create(context, "/subnets", body)


@subnet.command("update")
def update_subnet(
    context: typer.Context, name: Name, gateway: Gateway = None, dns: Dns = None, pool: Pool = None, dynamic: Dynamic = None,
    vlan: Vlan = None, unknown: Unknown = None, domain: Domain = None, param: Params = None, params_file: ParamsFile = None,
) -> None:  # fmt: skip
    """Change what is given; lists (--dns, --pool, --dynamic) are replaced as a whole."""
    body = given(gateway=gateway, dns=dns, pools=pool, dynamic=dynamic, vlan=vlan, unknown=unknown, domain=domain,
                 parameters=read_parameters(param or [], params_file))  # fmt: skip
    _update(context, "/subnets", name, body)


@domain.command("create")
def create_domain(
    context: typer.Context, name: Name, param: Params = None, params_file: ParamsFile = None
) -> None:
    """Make a DNS domain known."""
    _create(context, "/domains", given(name=name, parameters=read_parameters(param or [], params_file)))


@domain.command("update")
def update_domain(
    context: typer.Context, name: Name, param: Params = None, params_file: ParamsFile = None
) -> None:
    """Replace a domain's parameters."""
    _update(context, "/domains", name, given(parameters=read_parameters(param or [], params_file)))


def _create(context: typer.Context, path: str, body: dict[str, Any]) -> None:
    here = session(context)
    show_one(here.client.post(path, body, once=True), here.format)


def _update(context: typer.Context, path: str, name: str, body: dict[str, Any]) -> None:
    if not body:
        raise usage("nothing to change: give at least one option")
    here = session(context)
    show_one(here.client.patch(path + place(name), body), here.format)
