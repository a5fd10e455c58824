"""provisionctl user, token, parameters, template, lifecycle, whoami: who may do what, and what is common to all hosts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from provisiond.ctl.client import place
from provisiond.ctl.common import (
    Name,
    Params,
    ParamsFile,
    done,
    given,
    noun,
    read_parameters,
    session,
    usage,
)
from provisiond.ctl.output import Format, show_list, show_one, stderr

user = noun("user", "/users", ("name", "role", "created_at"), plural="users")
token = typer.Typer(help="API tokens.", no_args_is_help=True)
parameters = typer.Typer(
    help="Parameters common to all hosts (the weakest precedence).", no_args_is_help=True
)
template = typer.Typer(help="Templates of the current release.", no_args_is_help=True)

Role = Annotated[str, typer.Option(help="viewer, operator or admin.")]


@user.command("create")
def create_user(context: typer.Context, name: Name, role: Role = "viewer") -> None:
    """Make a user. Then: provisionctl token create --user NAME."""
    here = session(context)
    show_one(here.client.post("/users", {"name": name, "role": role}), here.format)


@user.command("update")
def update_user(context: typer.Context, name: Name, role: Role) -> None:
    """Change a user's role; it holds at once for all tokens of the user."""
    here = session(context)
    show_one(here.client.patch("/users" + place(name), {"role": role}), here.format)


@token.command("list")
def list_tokens(context: typer.Context) -> None:
    """List tokens, without their text, which nobody has but its owner."""
    here = session(context)
    show_list(
        here.client.every("/tokens"),
        ("id", "user", "name", "created_at", "expires_at", "used_at"),
        here.format,
        empty="there are no tokens",
    )


@token.command("create")
def create_token(
    context: typer.Context,
    user: Annotated[str | None, typer.Option(help="For whom; default: yourself.")] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[float | None, typer.Option(help="How long it is valid; default: for ever.")] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Write it to this new file (mode 0600) instead of printing it."),
    ] = None,
) -> None:
    """Make a token. Its text is shown this once."""
    here = session(context)
    if file is not None and file.exists():
        raise usage(f"{file} exists already")
    made = here.client.post("/tokens", given(user=user, name=name or None, days=days))
    if file is not None:
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(made.pop("token") + "\n")
        done(f"token {made['id']} of {made['user']} is in {file}")
    elif here.format is Format.TABLE:
        typer.echo(made["token"])
        stderr().print(f"token {made['id']} of {made['user']}; it is not shown again", markup=False)
    else:
        show_one(made, here.format)


@token.command("delete")
def delete_token(
    context: typer.Context, id: Annotated[str, typer.Argument(help="Its id, as token list shows it.")]
) -> None:
    """Take a token back, at once."""
    session(context).client.delete("/tokens" + place(id))
    done(f"deleted token {id}")


@parameters.command("show")
def show_parameters(context: typer.Context) -> None:
    """Show the global parameters."""
    here = session(context)
    show_one(
        here.client.get("/parameters")["parameters"],
        here.format if here.format is Format.JSON else Format.YAML,
    )


@parameters.command("update")
def update_parameters(context: typer.Context, param: Params = None, params_file: ParamsFile = None) -> None:
    """Replace the global parameters as a whole."""
    here = session(context)
    wanted = read_parameters(param or [], params_file)
    if wanted is None:
        raise usage("give --param NAME=VALUE or --params-file FILE")
    show_one(
        here.client.put("/parameters", {"parameters": wanted})["parameters"],
        here.format if here.format is Format.JSON else Format.YAML,
    )


@template.command("list")
def list_templates(context: typer.Context) -> None:
    """List the templates of the current release."""
    here = session(context)
    release = here.client.get("/templates")
    if here.format is not Format.TABLE:
        show_one(release, here.format)
        return
    show_list(release["templates"], ("id", "kind", "families", "versions", "about"), here.format)
    commit = f", git commit {release['git_commit'][:12]}" if release["git_commit"] else ""
    stderr().print(f"release {release['digest'][:12]}{commit}", markup=False)


@template.command("show")
def show_template(
    context: typer.Context, id: Annotated[str, typer.Argument(help="Such as ipxe/install.ipxe.j2.")]
) -> None:
    """Print the text of a template."""
    sys.stdout.write(session(context).client.get("/templates" + place(*id.split("/")))["text"])


@template.command("render")
def render(
    context: typer.Context,
    host: Annotated[str, typer.Argument(help="The host to render it for.")],
    kind: Annotated[
        str,
        typer.Argument(
            help="A kind such as ipxe-installer, preseed, kickstart, user-data, or a template's id."
        ),
    ],
    release: Annotated[
        str | None,
        typer.Option(help="Number or digest; default: of the host's build, or that a build would get."),
    ] = None,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Show secrets; for admins, and it is recorded.")
    ] = False,
    param: Params = None,
    params_file: ParamsFile = None,
) -> None:
    """Print what a host would be given, byte for byte, its secrets masked. --param tries other values."""
    here = session(context)
    body = given(
        host=host,
        kind=kind,
        release=release,
        secrets=secrets or None,
        parameters=read_parameters(param or [], params_file),
    )
    rendered = here.client.post("/templates/render", body)
    if here.format is Format.TABLE:
        sys.stdout.write(rendered["text"])
    else:
        show_one(rendered, here.format)


@template.command("explain")
def explain(
    context: typer.Context,
    host: Annotated[str, typer.Argument(help="The host.")],
    name: Annotated[
        str, typer.Argument(help="A parameter (dots reach into tables), or storage, or network.")
    ],
) -> None:
    """Say what value a parameter has for a host, and every place that sets it."""
    here = session(context)
    told = here.client.get(place("hosts", host, "parameters", name))
    if here.format is not Format.TABLE:
        show_one(told, here.format)
        return
    show_one({"value": told["value"], "from": told["origin"]}, here.format)
    show_list(told["places"], ("place", "value", "wins"), here.format, empty="no place sets it")
    show_list(told["declared"], ("template", "type", "default", "required", "choices", "about"), here.format,
              empty="no template that the host is served declares it")  # fmt: skip


def whoami(context: typer.Context) -> None:
    """Show whose token this is, and its role."""
    here = session(context)
    show_one(here.client.get("/whoami"), here.format)


def lifecycle(context: typer.Context) -> None:
    """Show the states of a host and what leads from one to the other."""
    here = session(context)
    life = here.client.get("/lifecycle")
    if here.format is not Format.TABLE:
        show_one(life, here.format)
        return
    show_list(life["transitions"], ("state", "verb", "to"), here.format)
