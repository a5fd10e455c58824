"""provisionctl os, media, image: what is put on hosts. Imports run in the daemon; --wait shows how far they are."""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from provisiond.ctl.client import ApiProblem, place
from provisiond.ctl.common import Name, Params, ParamsFile, done, given, noun, read_parameters, session, usage
from provisiond.ctl.output import Format, show_list, show_one, stderr

system = noun(
    "os", "/operating-systems", ("name", "family", "version", "parameters"), plural="operating systems"
)
media = noun(
    "media",
    "/media",
    ("name", "operating_system", "architecture", "ready", "source", "verified_by"),
    plural="installation media",
)
image = noun(
    "image",
    "/images",
    ("name", "operating_system", "architecture", "content", "size", "user", "verified_by", "sha256"),
    plural="disk images",
)

Wait = Annotated[
    bool, typer.Option("--wait/--no-wait", "-w", help="Stay and show the progress; end non-zero if it fails.")
]
Arch = Annotated[str | None, typer.Option("--arch", help="x86_64 or aarch64.")]
Sha256 = Annotated[str | None, typer.Option(help="SHA-256 the source must have.")]


@system.command("create")
def create_system(
    context: typer.Context,
    name: Name,
    family: Annotated[
        str, typer.Option(help="debian, ubuntu, redhat, fedora, suse, coreos, flatcar, talos, esxi or other.")
    ],
    version: Annotated[str, typer.Option(help="As its vendor writes it.")],
    param: Params = None,
    params_file: ParamsFile = None,
) -> None:
    """Make an operating system known."""
    here = session(context)
    body = given(
        name=name, family=family, version=version, parameters=read_parameters(param or [], params_file)
    )
    show_one(here.client.post("/operating-systems", body, once=True), here.format)


@system.command("update")
def update_system(
    context: typer.Context, name: Name, param: Params = None, params_file: ParamsFile = None
) -> None:
    """Replace the parameters of an operating system."""
    here = session(context)
    body = given(parameters=read_parameters(param or [], params_file))
    if not body:
        raise usage("nothing to change: give --param or --params-file")
    show_one(here.client.patch("/operating-systems" + place(name), body), here.format)


@media.command("add")
def add_medium(
    context: typer.Context,
    name: Name,
    operating_system: Annotated[
        str | None, typer.Option("--os", help="Operating system; default: the medium's name.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", help="Mirror URL, directory or ISO; default: the vendor's mirror.")
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="Mirror that installers use for packages.")] = None,
    architecture: Arch = None,
    sha256: Sha256 = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Take it although nothing vouches for it.")
    ] = False,
    wait: Wait = True,
) -> None:
    """Fetch kernel and initrd of an installer, check them, and put them in place; or take them afresh."""
    body = given(name=name, operating_system=operating_system or name, source=source, mirror=mirror, architecture=architecture, sha256=sha256,
                 unverified=unverified or None)  # fmt: skip
    follow_import(context, "/media", body, wait)


@image.command("add")
def add_image(
    context: typer.Context,
    name: Name,
    source: Annotated[str, typer.Argument(help="URL, or absolute path on the daemon's machine.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="qcow2, raw, raw.zst, raw.xz, raw.gz (disks); tar, tar.zst, tar.xz, tar.gz (a root file system). "
            "Default: as the source's name ends; never guessed.",
        ),
    ] = None,
    sha256: Sha256 = None,
    checksums: Annotated[
        str | None, typer.Option(help="URL of a list of checksums, such as SHA256SUMS.")
    ] = None,
    signature: Annotated[
        str | None,
        typer.Option(
            help="URL of a detached OpenPGP signature, of the checksums if given, else of the image."
        ),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            help="File here with the public keys that may have signed; a list without --signature is clear-signed."
        ),
    ] = None,
    operating_system: Annotated[str | None, typer.Option("--os", help="Operating system on it.")] = None,
    user: Annotated[str | None, typer.Option(help="Whom handover logs in as; default root.")] = None,
    architecture: Arch = None,
    wait: Wait = True,
) -> None:
    """Take an image: it is checked, converted, mapped and compressed, and then put in place."""
    body = given(
        name=name,
        source=source,
        format=format,
        sha256=sha256,
        checksums=checksums,
        signature=signature,
        key=_armored(key) if key else None,
        operating_system=operating_system,
        user=user,
        architecture=architecture,
    )
    follow_import(context, "/images", body, wait)


@image.command("build")
def build_image(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="What to build, such as debian-12.")],
    name: Annotated[str | None, typer.Option(help="The image's name; default: the recipe's.")] = None,
    features: Annotated[
        list[str] | None,
        typer.Option("--with", help="What else the recipe knows: lvm2, mdadm, luks, firmware. Several."),
    ] = None,
    package: Annotated[list[str] | None, typer.Option(help="Another package. Several.")] = None,
    mirror: Annotated[str | None, typer.Option(help="Where packages come from.")] = None,
    size: Annotated[int | None, typer.Option(help="MiB of the disk; it grows at the first start.")] = None,
    operating_system: Annotated[
        str | None, typer.Option("--os", help="Operating system on it; default: the recipe's name.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Whom handover logs in as; default root.")] = None,
    architecture: Arch = None,
    wait: Wait = True,
) -> None:
    """Build a disk image from packages on the daemon's machine, and put it in place."""
    body = given(
        name=name or recipe,
        recipe=recipe,
        features=features or None,
        packages=package or None,
        mirror=mirror,
        size_mib=size,
        operating_system=operating_system or recipe,
        user=user,
        architecture=architecture,
    )
    follow_import(context, "/image-builds", body, wait)


def _armored(key: Path) -> str:
    """A file of public keys as text, whether it is armoured or binary."""
    try:
        content = key.read_bytes()
    except OSError as error:
        raise usage(f"cannot read {key}: {error.strerror or error}") from error
    if (
        content[:1] < b"\x80"
    ):  # a binary key begins with a packet's tag, whose highest bit is set (RFC 9580 section 4.2)
        return content.decode(errors="replace")
    lines = base64.encodebytes(content).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{lines}-----END PGP PUBLIC KEY BLOCK-----\n"


@media.command("imports")
def imports(context: typer.Context) -> None:
    """Imports of media and images that run or ran lately."""
    here = session(context)
    show_list(here.client.get("/imports")["items"], ("kind", "name", "state", "what", "done", "total", "started_at", "message"), here.format,
              empty="nothing was imported since the daemon's start")  # fmt: skip


def follow_import(context: typer.Context, path: str, body: dict[str, Any], wait: bool) -> None:
    """Start a job by POST, and stay until it is done when ``wait`` says so."""
    here = session(context)
    job = here.client.post(path, body)
    if not wait:
        show_one(job, here.format) if here.format is not Format.TABLE else done(
            f"{job['kind']} {job['name']}: the import has begun; 'provisionctl media imports' shows how far it is"
        )
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr(), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(job["name"], total=None)
        said = ""
        while job["state"] == "running":
            progress.update(
                task, description=f"{job['name']}: {job['what']}", completed=job["done"], total=job["total"]
            )
            if job["what"] != said and not sys.stderr.isatty():
                said = job["what"]
                stderr().print(f"{job['name']}: {said}", markup=False)
            time.sleep(0.3)
            job = here.client.get("/imports" + place(job["id"]))
    if job["state"] == "failed":
        raise ApiProblem(500, f"{job['kind']} {job['name']}: {job['message']}", [])
    done(f"{job['kind']} {job['name']} is in place: {job['message']}")
    if here.format is not Format.TABLE:
        show_one(job, here.format)
