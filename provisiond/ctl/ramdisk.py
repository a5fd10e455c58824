"""provisionctl ramdisk: what machines boot that are discovered, inspected, imaged, erased or rescued."""

from __future__ import annotations

from typing import Annotated

import typer

from provisiond.ctl.common import given, session
from provisiond.ctl.output import Format, show_list, show_one
from provisiond.ctl.software import Wait, follow_import

app = typer.Typer(help="The ramdisk that machines boot.", no_args_is_help=True)


@app.command("build")
def build(
    context: typer.Context,
    arch: Annotated[str, typer.Option("--arch", help="x86_64 or aarch64.")] = "x86_64",
    firmware: Annotated[
        bool,
        typer.Option(
            "--firmware", help="Firmware of network cards and disk controllers (non-free-firmware)."
        ),
    ] = False,
    extra: Annotated[
        list[str] | None, typer.Option("--with", help="Another Debian package, such as fio. Several.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(help="Debian's kernel package, when not the usual one.")
    ] = None,
    wait: Wait = True,
) -> None:
    """Build it from Debian packages on the daemon's machine, and put it in place; takes some minutes."""
    body = given(architecture=arch, firmware=firmware or None, packages=extra or None, kernel=kernel)
    follow_import(context, "/ramdisk", body, wait)


@app.command("show")
def show(context: typer.Context) -> None:
    """What is in place: kernel, agent, sizes, digests, since when."""
    here = session(context)
    items = here.client.get("/ramdisk")["items"]
    if here.format is not Format.TABLE:
        show_one({"items": items}, here.format)
        return
    rows = [
        {
            **item,
            "size": item["kernel"]["size"] + item["initrd"]["size"],
            "digest": item["digest"][:12],
            "packages": " ".join(item["packages"]),
        }
        for item in items
    ]
    columns = (
        "architecture",
        "kernel_version",
        "agent_version",
        "size",
        "firmware",
        "packages",
        "digest",
        "installed_at",
    )
    show_list(rows, columns, here.format, empty="there is no ramdisk yet: provisionctl ramdisk build")
