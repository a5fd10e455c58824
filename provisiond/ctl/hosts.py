"""provisionctl host: the machines themselves, from create to retire."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from provisiond.ctl import erasures, looks, rack, verbs
from provisiond.ctl.client import ApiProblem, place
from provisiond.ctl.common import (
    FAILED,
    USAGE,
    Name,
    NetworkFile,
    Params,
    ParamsFile,
    Profile,
    StorageFile,
    Yes,
    confirm,
    done,
    explain,
    given,
    read_description,
    read_parameters,
    session,
    usage,
)
from provisiond.ctl.output import Format, show_list, show_one, stderr
from provisiond.ctl.verbs import Wait
from provisiond.ctl.watch import wait_for

app = typer.Typer(help="Hosts: create, build, look at, take out of service.", no_args_is_help=True)

COLUMNS = ("name", "state", "step", "state_since", "power", "group", "on", "mac", "ip", "progress", "failure")

Group = Annotated[
    str | None, typer.Option("--group", "-g", help="Host group whose settings and parameters it inherits.")
]
Mac = Annotated[str | None, typer.Option(help="MAC address of the network card it boots from.")]
Bmc = Annotated[
    str | None,
    typer.Option(
        help="Management controller: ipmi://USER@ADDRESS, redfish://USER@ADDRESS/SYSTEM, libvirt+URI#UUID. No password here."
    ),
]
PasswordFile = Annotated[
    Path | None, typer.Option("--bmc-password-file", help="File that holds the BMC's password.")
]
On = Annotated[str | None, typer.Option("--on", help="Hypervisor to make it on, as a virtual machine.")]
Flavor = Annotated[str | None, typer.Option(help="Size of the virtual machine.")]
Image = Annotated[str | None, typer.Option(help="Disk image to write.")]
Medium = Annotated[str | None, typer.Option("--media", "--medium", help="Installation medium.")]
System = Annotated[str | None, typer.Option("--os", help="Operating system.")]
Subnet = Annotated[str | None, typer.Option(help="Subnet an address is taken from.")]
Ip = Annotated[str | None, typer.Option(help="Address; without it one is taken from the subnet's pools.")]
Domain = Annotated[str | None, typer.Option(help="DNS domain.")]
Firmware = Annotated[str | None, typer.Option(help="bios or uefi.")]
Method = Annotated[
    str | None, typer.Option(help="How it is built: image or installer. Default: by what it has.")
]
Handover = Annotated[
    str | None, typer.Option(help="Configuration management it is handed to: ansible, script, none.")
]
Serial = Annotated[str | None, typer.Option(help="Its maker's serial number, by which it is known too.")]
Comment = Annotated[str | None, typer.Option(help="A line for people.")]


@app.command()
def create(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Its name, without the domain.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Create all hosts of a YAML file, or none. - is standard input."),
    ] = None,
    group: Group = None,
    mac: Mac = None,
    bmc: Bmc = None,
    bmc_password_file: PasswordFile = None,
    on: On = None,
    flavor: Flavor = None,
    image: Image = None,
    medium: Medium = None,
    operating_system: System = None,
    subnet: Subnet = None,
    ip: Ip = None,
    domain: Domain = None,
    firmware: Firmware = None,
    method: Method = None,
    handover: Handover = None,
    comment: Comment = None,
    param: Params = None,
    params_file: ParamsFile = None,
    storage: StorageFile = None,
    network: NetworkFile = None,
    profile: Profile = None,
    serial: Serial = None,
    build: Annotated[bool, typer.Option("--build", help="Build it as soon as it is ready.")] = False,
    wait: Wait = False,
) -> None:
    """Make a host known: a physical machine (--mac, --bmc) or a virtual one (--on, --flavor).

    The BMC's password is asked for, or comes from PROVISIOND_BMC_PASSWORD or --bmc-password-file.
    """
    here = session(context)
    own = given(
        group=group, mac=mac, on=on, flavor=flavor, image=image, medium=medium, operating_system=operating_system, subnet=subnet,
        ip=ip, domain=domain, firmware=firmware, method=method, handover=handover, comment=comment,
        parameters=read_parameters(param or [], params_file), storage=read_description(storage), network=read_description(network),
        profile=profile, serial=serial,
    )  # fmt: skip
    if file is not None:
        if name or own or bmc:
            raise usage("give either one host by its options, or -f FILE with all of them")
        entries = rack.read(file)
        for entry in entries:
            if build:
                entry.body.setdefault("build", True)
        try:
            made = here.client.post("/hosts", {"hosts": [entry.body for entry in entries]}, once=True)[
                "hosts"
            ]
        except ApiProblem as problem:
            where = {f"hosts.{number}": f"{entry.label}: " for number, entry in enumerate(entries)}
            raise typer.Exit(explain(problem, where)) from None
    elif name is None:
        raise usage("give the host's name, or -f FILE")
    else:
        body = {"name": name, **own}
        if bmc is not None:
            body["bmc"] = _controller(bmc, bmc_password_file)
        if build:
            body["build"] = True
        made = [here.client.post("/hosts", body, once=True)]
    if not wait:
        _show_made(made, here.format, single=file is None)
        return
    names = [host["name"] for host in made]
    done(f"created {', '.join(names)}")
    after = 0 if len(names) == 1 else None
    failed = wait_for(
        here.client, names, "active" if any(host.get("wanted") for host in made) else "ready", after=after
    )
    raise typer.Exit(FAILED if failed else 0)


@app.command("list")
def list_(
    context: typer.Context,
    pattern: Annotated[str | None, typer.Argument(help="Names to show, such as 'web*'.")] = None,
    state: Annotated[str | None, typer.Option(help="Only hosts in this state.")] = None,
    group: Group = None,
) -> None:
    """List hosts."""
    here = session(context)
    show_list(
        here.client.every("/hosts", name=pattern, state=state, group=group),
        COLUMNS,
        here.format,
        empty="there are no such hosts",
    )


@app.command()
def show(context: typer.Context, name: Name) -> None:
    """Show everything known of one host."""
    here = session(context)
    show_one(here.client.get(place("hosts", name)), here.format)


@app.command()
def update(
    context: typer.Context,
    name: Name,
    group: Group = None,
    mac: Mac = None,
    bmc: Bmc = None,
    bmc_password_file: PasswordFile = None,
    on: On = None,
    flavor: Flavor = None,
    image: Image = None,
    medium: Medium = None,
    operating_system: System = None,
    subnet: Subnet = None,
    ip: Ip = None,
    domain: Domain = None,
    firmware: Firmware = None,
    method: Method = None,
    handover: Handover = None,
    comment: Annotated[str | None, typer.Option(help="A line for people.")] = None,
    param: Params = None,
    params_file: ParamsFile = None,
    storage: StorageFile = None,
    network: NetworkFile = None,
    profile: Profile = None,
    serial: Serial = None,
    rename: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    priority: Annotated[int | None, typer.Option(help="-100 to 100; higher goes first.")] = None,
) -> None:
    """Change what is given; an option set to "" empties that setting. Parameters are replaced as a whole."""
    here = session(context)
    body = given(
        group=group, mac=mac, on=on, flavor=flavor, image=image, medium=medium, operating_system=operating_system, subnet=subnet,
        ip=ip, domain=domain, firmware=firmware, method=method, handover=handover, name=rename, priority=priority,
        parameters=read_parameters(param or [], params_file), storage=read_description(storage), network=read_description(network),
        profile=profile, serial=serial,
    )  # fmt: skip
    if comment is not None:
        body["comment"] = comment
    if bmc is not None:
        body["bmc"] = _controller(bmc, bmc_password_file) if bmc else None
    if not body:
        raise usage("nothing to change: give at least one option")
    show_one(here.client.patch(place("hosts", name), body), here.format)


@app.command()
def delete(context: typer.Context, name: Name, yes: Yes = False) -> None:
    """Forget a host that is not in service. Its history stays. Retire it first if anything was built for it."""
    confirm(f"Forget host {name}?", yes)
    session(context).client.delete(place("hosts", name))
    done(f"deleted {name}")


verbs.register(app)


@app.command()
def lock(context: typer.Context, name: Name) -> None:
    """Guard a host against build, rebuild, release, retire and power."""
    session(context).client.post(place("hosts", name, "actions", "lock"), {})
    done(f"locked {name}")


@app.command()
def unlock(context: typer.Context, name: Name) -> None:
    """Take the guard away."""
    session(context).client.post(place("hosts", name, "actions", "unlock"), {})
    done(f"unlocked {name}")


@app.command()
def maintenance(
    context: typer.Context,
    name: Name,
    reason: Annotated[str, typer.Option("--reason", "-r", help="Why nobody may touch it now.")] = "",
    off: Annotated[bool, typer.Option("--off", help="It is over.")] = False,
) -> None:
    """Make the engine leave a host alone, or go on."""
    if off == bool(reason):
        raise usage("give --reason WHY, or --off")
    session(context).client.post(place("hosts", name, "actions", "maintenance"), {"reason": reason})
    done(f"maintenance of {name} is over" if off else f"{name} is in maintenance")


@app.command()
def power(
    context: typer.Context,
    name: Name,
    action: Annotated[str, typer.Argument(help="on, off, cycle, reset, or status.")] = "status",
) -> None:
    """Switch a host's power, or say what it was when last seen."""
    here = session(context)
    if action == "status":
        host = here.client.get(place("hosts", name))
        if here.format is not Format.TABLE:
            show_one(
                {key: host[key] for key in ("name", "power", "power_seen_at", "power_wanted")}, here.format
            )
        else:
            typer.echo(host["power"] or "unknown")
        return
    host = here.client.post(place("hosts", name, "power"), {"action": action})
    show_one(host, here.format) if here.format is not Format.TABLE else done(
        f"power {action} asked for {name}"
    )


for _look in (looks.console, looks.history, looks.events, looks.parameters, looks.deployments, looks.facts):
    app.command()(_look)
app.command("agent-log")(looks.agent_log)
for _record in (erasures.tests, erasures.erasures, erasures.certificate):
    app.command()(_record)


def _controller(url: str, password_file: Path | None) -> dict[str, Any]:
    """The BMC as the API takes it, with its password from anywhere but the command line."""
    fields = rack.bmc_fields(url)
    if fields.pop("password", None) is not None:
        raise usage("no password in --bmc: others can read the command line. Leave it out and it is asked for, "
                    "or use PROVISIOND_BMC_PASSWORD or --bmc-password-file")  # fmt: skip
    if password_file is not None:
        try:
            password = password_file.read_text().rstrip("\n")
        except OSError as error:
            raise usage(f"cannot read {password_file}: {error.strerror}") from None
    elif "PROVISIOND_BMC_PASSWORD" in os.environ:
        password = os.environ["PROVISIOND_BMC_PASSWORD"]
    elif not fields.get("username"):
        return fields
    elif sys.stdin.isatty():
        password = typer.prompt(
            f"Password of {fields['username']} at {fields['address']}", hide_input=True, err=True
        )
    else:
        stderr().print(
            "error: the BMC's password is needed: set PROVISIOND_BMC_PASSWORD or give --bmc-password-file"
        )
        raise typer.Exit(USAGE)
    return {**fields, "password": password}


def _show_made(made: list[dict[str, Any]], form: Format, *, single: bool) -> None:
    if form is not Format.TABLE:
        show_one(made[0], form) if single else show_list(made, (), form)
        return
    for host in made:
        address = next((card["ip"] for card in host["interfaces"] if card["primary"] and card["ip"]), None)
        later = "; it will be built as soon as it is ready" if host.get("wanted") else ""
        done(f"created {host['name']}" + (f" with address {address}" if address else "") + later)
    if single and not made[0].get("wanted"):
        stderr().print(f"  next: provisionctl host build {made[0]['name']} --wait")
