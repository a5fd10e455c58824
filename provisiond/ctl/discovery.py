"""provisionctl discovery, provisionctl profile: machines that wait, the rules that take them in, and what machines are expected to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import (
    Name,
    NetworkFile,
    Params,
    ParamsFile,
    Profile,
    Session,
    StorageFile,
    done,
    given,
    noun,
    read_description,
    read_parameters,
    read_yaml,
    session,
    usage,
)
from provisiond.ctl.output import Format, show_list, show_one, stderr

app = typer.Typer(
    help="Machines that were found on the boot network, and rules about them.", no_args_is_help=True
)
rule = noun(
    "discovery rule",
    "/discovery-rules",
    ("name", "priority", "enabled", "expression", "group", "name_pattern", "approve", "build", "taken"),
    plural="discovery rules",
)
app.add_typer(rule, name="rule")
profile = noun("hardware profile", "/profiles", ("name", "about", "expected"), plural="hardware profiles")

_WAITING = ("name", "since", "vendor", "model", "serial", "cpu", "memory", "disks", "switch_port", "subnet", "rule")  # fmt: skip

Priority = Annotated[
    int | None, typer.Option(help="-1000 to 1000; the highest rule that holds counts. Default: 0.")
]
Group = Annotated[str | None, typer.Option("--group", "-g", help="Host group of the machines it takes.")]
Pattern = Annotated[
    str | None, typer.Option("--name-pattern", help="Such as 'node-{{ serial | lower }}' or 'r1-{{ pad(n) }}'.")
]  # fmt: skip
Approve = Annotated[bool | None, typer.Option("--approve/--wait", help="Take them in at once.")]
Build = Annotated[bool | None, typer.Option("--build/--no-build", help="Build them then.")]
BmcUser = Annotated[
    str | None, typer.Option("--bmc-user", help="Make this user, with a random password, on their controllers.")
]  # fmt: skip
Enabled = Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is asked at all.")]
About = Annotated[str | None, typer.Option(help="What it is for.")]
Expect = Annotated[
    list[str] | None,
    typer.Option(
        "--expect", help="PLACE=VALUE, such as memory.mib='>= 131072', read as YAML; again for more."
    ),
]
ExpectFile = Annotated[Path | None, typer.Option("--expect-file", help="YAML file of places and values.")]


@app.command("list")
def list_waiting(context: typer.Context) -> None:
    """The machines that wait for approval, with what they are made of and the rule that would take them."""
    here = session(context)
    waiting = here.client.every("/discovery")
    if here.format is Format.TABLE:
        waiting = [
            m | {"since": m["since"][:19].replace("T", " "), "memory": _gib(m["memory_mib"])} for m in waiting
        ]
    show_list(waiting, _WAITING, here.format, empty="no machine waits")


@app.command("apply")
def apply(context: typer.Context) -> None:
    """Ask the rules about every machine that waits, as after a new rule. See 'discovery rule test' before."""
    here = session(context)
    taken = here.client.post("/discovery/apply", {})["items"]
    show_list(taken, ("host", "rule", "name", "state"), here.format, empty="no rule takes a machine")


@rule.command("create")
def create_rule(
    context: typer.Context, name: Name,
    expression: Annotated[str, typer.Argument(help="Such as \"vendor == 'Dell Inc.' and memory.mib >= 65536\".")],
    priority: Priority = None, group: Group = None, name_pattern: Pattern = None, storage: StorageFile = None,
    network: NetworkFile = None, param: Params = None, params_file: ParamsFile = None, profile: Profile = None,
    approve: Approve = None, build: Build = None, bmc_user: BmcUser = None, enabled: Enabled = None, about: About = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Make none; show which machines that wait it would take.")] = False,
) -> None:  # fmt: skip
    """Make a rule. It is asked about machines that report from now on; 'discovery apply' asks it about those that wait."""
    here = session(context)
    if dry_run:
        _try(here, given(expression=expression, name_pattern=name_pattern))
        return
    body = given(
        name=name, expression=expression, priority=priority, group=group, name_pattern=name_pattern, about=about, enabled=enabled,
        storage=read_description(storage), network=read_description(network), parameters=read_parameters(param or [], params_file),
        profile=profile, approve=approve, build=build, bmc_username=bmc_user,
    )  # fmt: skip
    show_one(here.client.post("/discovery-rules", body, once=True), here.format)


@rule.command("update")
def update_rule(
    context: typer.Context, name: Name,
    expression: Annotated[str | None, typer.Option(help="Another expression.")] = None,
    priority: Priority = None, group: Group = None, name_pattern: Pattern = None, storage: StorageFile = None,
    network: NetworkFile = None, param: Params = None, params_file: ParamsFile = None, profile: Profile = None,
    approve: Approve = None, build: Build = None, bmc_user: BmcUser = None, enabled: Enabled = None, about: About = None,
) -> None:  # fmt: skip
    """Change what is given; an option set to "" empties it."""
    here = session(context)
    body = given(
        expression=expression, priority=priority, group=group, enabled=enabled,
        storage=read_description(storage), network=read_description(network), parameters=read_parameters(param or [], params_file),
        profile=profile, approve=approve, build=build,
    )  # fmt: skip
    texts = {"name_pattern": name_pattern, "bmc_username": bmc_user, "about": about}
    body |= {field: text for field, text in texts.items() if text is not None}
    if not body:
        raise usage("nothing to change: give at least one option")
    show_one(here.client.patch("/discovery-rules" + place(name), body), here.format)


@rule.command("test")
def test_rule(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="A rule; or give --expression.")] = None,
    expression: Annotated[str | None, typer.Option("--expression", "-e", help="Try this one.")] = None,
    name_pattern: Pattern = None,
    every: Annotated[bool, typer.Option("--all", help="All hosts that told their facts, not only those that wait.")] = False,
    why: Annotated[bool, typer.Option("--why", help="Show the machines it does not take too.")] = False,
) -> None:  # fmt: skip
    """Show which machines a rule would take, and the names they would get. Nothing changes."""
    here = session(context)
    if (name is None) == (expression is None):
        raise usage("give either the rule's name or --expression")
    _try(here, given(rule=name, expression=expression, name_pattern=name_pattern, everywhere=every), why)


def _try(here: Session, body: dict[str, Any], why: bool = False) -> None:
    """Which machines a rule would take; with ``why`` the others too."""
    found = here.client.post("/discovery/test", body)["items"]
    if here.format is not Format.TABLE:
        show_list(found, (), here.format)
        return
    taken = [machine for machine in found if machine["holds"]]
    columns = ("host", "state", "holds", "name", "winner", "why")
    show_list(found if why else taken, columns, here.format, empty="it takes none")
    stderr().print(f"{len(taken)} of {len(found)} machines")


@profile.command("create")
def create_profile(
    context: typer.Context, name: Name,
    from_host: Annotated[str | None, typer.Option("--from-host", help="Expect what this host is made of.")] = None,
    expect: Expect = None, expect_file: ExpectFile = None, about: About = None,
) -> None:  # fmt: skip
    """Make a hardware profile: what machines of one kind are made of. Give it to a group or host by --profile."""
    here = session(context)
    expected: dict[str, Any] = {}
    if from_host is not None:
        expected = here.client.get(place("hosts", from_host, "hardware", "expected"))["expected"]
    expected |= _expected(expect, expect_file)
    body = given(name=name, about=about) | {"expected": expected}
    show_one(here.client.post("/profiles", body, once=True), here.format)


@profile.command("update")
def update_profile(
    context: typer.Context, name: Name, expect: Expect = None, expect_file: ExpectFile = None, about: About = None,
    only: Annotated[bool, typer.Option("--only", help="Replace all that it expects, instead of laying this over it.")] = False,
) -> None:  # fmt: skip
    """Change what is expected; PLACE= (nothing behind it) takes a place away."""
    here = session(context)
    path = "/profiles" + place(name)
    body: dict[str, Any] = {} if about is None else {"about": about}
    if expect or expect_file or only:
        before = {} if only else here.client.get(path)["expected"]
        whole = before | _expected(expect, expect_file)
        body["expected"] = {key: value for key, value in whole.items() if value != ""}
    if not body:
        raise usage("nothing to change: give --expect, --expect-file or --about")
    show_one(here.client.patch(path, body), here.format)
    done(f"profile {name} counts from now on")


def _expected(pairs: list[str] | None, file: Path | None) -> dict[str, Any]:
    """PLACE=VALUE pairs over a file's. A place has dots in it, so these are no tables within tables."""
    found: dict[str, Any] = {}
    if file is not None:
        loaded = read_yaml(file)
        if not isinstance(loaded, dict):
            raise usage(f"{file}: a profile expects a table of places and values")
        found |= loaded
    for pair in pairs or ():
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise usage(f"--expect {pair!r}: write it as PLACE=VALUE")
        value = read_parameters([f"value={text}"])
        found[key.strip()] = (value or {}).get("value")
    return found


def _gib(mib: int | None) -> str:
    return "-" if mib is None else f"{mib / 1024:.0f} GiB"
