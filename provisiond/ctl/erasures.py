"""provisionctl host erasures, certificate and tests; certificate verify."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import FAILED, Name, done, read_yaml, session, usage
from provisiond.ctl.output import Format, show_list, show_one, stderr

app = typer.Typer(help="Certificates of erasure.", no_args_is_help=True)


class Paper(StrEnum):
    TEXT = "text"
    JSON = "json"


def tests(
    context: typer.Context,
    name: Name,
    limit: Annotated[int, typer.Option("--limit", "-n", help="How many of the newest.")] = 100,
) -> None:
    """Results of the hardware tests of a host, newest first."""
    here = session(context)
    found = here.client.get(place("hosts", name, "tests"), limit=limit)["items"]
    if here.format is not Format.TABLE:
        show_list(found, (), here.format)
        return
    rows = [
        {**one, "at": one["at"][:19].replace("T", " "), "seconds": f"{one['seconds']:.1f}", "said": _last(one["output"])}
        for one in found
    ]  # fmt: skip
    columns = ("at", "name", "verdict", "seconds", "actor", "said")
    show_list(rows, columns, here.format, empty=f"host {name} was not tested yet")


def erasures(context: typer.Context, name: Name) -> None:
    """Records of the disks of a host that were erased, also of a host that is gone."""
    here = session(context)
    found = here.client.every("/erasures", host=name)
    if here.format is not Format.TABLE:
        show_list(found, (), here.format)
        return
    rows = [
        {**one, "ended": one["ended_at"][:19].replace("T", " "), "disk": one["disk_name"], "serial": one["disk_serial"],
         "size": f"{one['disk_size'] / 1e9:.1f} GB", "verified": "yes" if one["verified"] else "no"}
        for one in found
    ]  # fmt: skip
    columns = ("ended", "disk", "serial", "size", "method", "category", "verified", "actor", "message")
    show_list(rows, columns, here.format, empty=f"no disk of {name} was erased")


def certificate(
    context: typer.Context,
    name: Name,
    form: Annotated[Paper, typer.Option("--format", help="text for people, json to be verified.")] = Paper.TEXT,
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this file.")] = None,
) -> None:  # fmt: skip
    """The certificate of a host's erased disks, signed by the daemon; also of a host that is gone."""
    here = session(context)
    found = here.client.get(place("hosts", name, "certificate"))
    as_json = form is Paper.JSON or here.format is Format.JSON
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n" if as_json else certificate_text(found)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise usage(f"cannot write {out}: {error.strerror}") from None
    done(f"wrote {out}")


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A certificate as JSON; - is standard input.")],
) -> None:
    """Check that this daemon issued a certificate and nobody changed it since."""
    here = session(context)
    given: Any = read_yaml(file)
    if not isinstance(given, dict):
        raise usage(
            f"{file} is no certificate as 'provisionctl host certificate NAME --format json' writes it"
        )
    verdict = here.client.post("/erasures/verify", {"certificate": given})
    if here.format is not Format.TABLE:
        show_one(verdict, here.format)
    elif verdict["valid"]:
        done(f"{file} is genuine: {len(given['erasures'])} erasures of host {given['host']['name']}")
    else:
        stderr().print(f"[bold red]error:[/] {file}: {verdict['why']}")
    if not verdict["valid"]:
        raise typer.Exit(FAILED)


def certificate_text(given: dict[str, Any]) -> str:
    """A certificate for people and paper."""
    host = given["host"]
    lines = [
        "Certificate of erasure",
        "======================",
        f"Host        {host['name']}" + (f", serial number {host['serial']}" if host["serial"] else ""),
        f"Issued      {given['issued_at']} by {given['issuer']}",
        f"Standard    {given['standard']}",
        "",
    ]
    for number, one in enumerate(given["erasures"], 1):
        disk = one["disk"]
        lines += [
            f"{number}. {disk['name']}  {disk['model']}  serial {disk['serial'] or 'unknown'}"
            + (f"  wwn {disk['wwn']}" if disk["wwn"] else ""),
            f"   size      {disk['size']} bytes ({disk['size'] / 1e9:.1f} GB)",
            f"   method    {one['method']}: {one['category']}",
            f"   verified  {'yes' if one['verified'] else 'NO: this disk was not erased by it'}",
            f"   time      {one['started_at']} to {one['ended_at']}",
            f"   asked by  {one['actor']}",
            *([f"   remark    {one['message']}"] if one["message"] else []),
            "",
        ]
    return "\n".join([*lines, f"Digest      {given['digest']}", f"Signature   {given['signature']}", ""])


def _last(output: str) -> str:
    return output.strip().rpartition("\n")[2][:80]
