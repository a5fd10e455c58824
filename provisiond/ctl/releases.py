"""provisionctl release: import templates, look at releases, make one current, take that back, compare two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.syntax import Syntax

from provisiond.ctl.client import place
from provisiond.ctl.common import done, given, session, usage
from provisiond.ctl.output import Format, age, show_list, show_one, stderr, stdout

app = typer.Typer(
    help="Releases of templates: immutable sets, one of which is current.", no_args_is_help=True
)

LONG = 900.0  # seconds an import or many rebuilds may take
SHOWN = 5  # hosts named of those that a difference has in common; JSON names up to 100
Release = Annotated[
    str, typer.Argument(help="12 or #12, the beginning of its digest (6 digits or more), or 'current'.")
]
Group = Annotated[str | None, typer.Option(help="In this group and those below it; default: everywhere.")]
Reason = Annotated[str, typer.Option(help="Why, for the history.")]


@app.command("import")
def import_(
    context: typer.Context,
    directory: Annotated[
        Path | None, typer.Argument(help="Directory of templates, read here and sent to the daemon.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Source that the daemon reads instead.")] = None,
    ref: Annotated[str | None, typer.Option(help="Another branch, tag or commit of the source.")] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="What is new; default: the commit's message.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take it although validators found problems; that is recorded.")
    ] = False,
) -> None:
    """Make a release of a directory or a source. It is validated first, and becomes current only by 'release use'."""
    here = session(context)
    if (directory is None) == (source is None):
        raise usage("give either a directory or --source")
    if source is not None:
        if message is not None:
            raise usage("--message goes with a directory; a source's message is its commit's")
        body = given(source=source, ref=ref, force=force or None)
    else:
        assert directory is not None
        if ref is not None:
            raise usage("--ref goes with --source")
        body = {
            "files": _read(directory),
            **_commit(directory),
            **given(message=message, force=force or None),
        }
    if sys.stderr.isatty():
        with stderr().status("validating every template on its fixtures ..."):
            made = here.client.post("/releases", body, timeout=LONG)
    else:
        made = here.client.post("/releases", body, timeout=LONG)
    if here.format is not Format.TABLE:
        show_one(made, here.format)
        return
    lint = made["lint"]
    if not made["new"]:
        done(f"the same files are release #{made['number']} {made['digest'][:12]} already")
        return
    said = f"{lint.get('passed', 0)} passed, {lint.get('failed', 0)} failed, {lint.get('skipped', 0)} skipped"
    done(f"release #{made['number']} {made['digest'][:12]}: {len(made['files'])} files; {said}")
    for skip in lint.get("skips", []):
        stderr().print(f"  skipped: {skip}", markup=False)
    if lint.get("forced"):
        stderr().print("  taken in spite of its problems (--force)", markup=False)


@app.command("list")
def list_(context: typer.Context) -> None:
    """List releases, the newest first."""
    here = session(context)
    items = here.client.every("/releases")
    if here.format is Format.TABLE:
        items = [
            {
                **i,
                "age": age(i["created_at"]),
                "digest": i["digest"][:12],
                "commit": (i["git_commit"] or "")[:12],
                "message": i["message"].partition("\n")[0],
            }
            for i in items
        ]
    columns = (
        "number",
        "digest",
        "current",
        "commit",
        "age",
        "problems",
        "message",
    )
    show_list(items, columns, here.format, empty="there are no releases yet")


@app.command("show")
def show(context: typer.Context, release: Release = "current") -> None:
    """Show where a release came from, what the validators said, and its files."""
    here = session(context)
    found = here.client.get("/releases" + place(release))
    if here.format is Format.TABLE:
        found["files"] = "\n".join(f"{f['path']} ({f['kind']}, {f['size']} bytes)" for f in found["files"])
    show_one(found, here.format)


@app.command("files")
def files(
    context: typer.Context,
    release: Release = "current",
    path: Annotated[str | None, typer.Argument(help="Only this template, as it is.")] = None,
) -> None:
    """List the templates of a release, or print one of them."""
    here = session(context)
    if path is not None:
        sys.stdout.write(here.client.get("/releases" + place(release, "files") + "/" + path)["text"])
        return
    found = here.client.get("/releases" + place(release))["files"]
    show_list(found, ("path", "kind", "size", "about"), here.format)


@app.command("use")
def use(context: typer.Context, release: Release, group: Group = None, reason: Reason = "") -> None:
    """Make a release current. Builds that begin from now on get it; those under way keep what they have."""
    here = session(context)
    moved = here.client.post("/releases" + place(release, "use"), given(group=group, reason=reason or None))
    if here.format is not Format.TABLE:
        show_one(moved, here.format)
    elif moved["changed"]:
        done(f"release #{moved['now']} is current {_where(moved)}{_before(moved)}")
    else:
        done(f"release #{moved['now']} is current {_where(moved)} already")


@app.command("rollback")
def rollback(
    context: typer.Context,
    group: Group = None,
    to: Annotated[
        str | None, typer.Option(help="This release instead of the one before.", metavar="RELEASE")
    ] = None,
    reason: Reason = "",
    plan: Annotated[bool, typer.Option("--plan", help="Show what would happen, and change nothing.")] = False,
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild", help="Rebuild the hosts that were or are being built with what is taken back."
        ),
    ] = False,
) -> None:
    """Make the earlier release current again, at once. Hosts now building keep theirs unless --rebuild is said."""
    here = session(context)
    body = given(group=group, to=to, reason=reason or None, plan=plan or None, rebuild=rebuild or None)
    told = here.client.post("/releases/rollback", body, timeout=LONG)
    if here.format is not Format.TABLE:
        show_one(told, here.format)
        return
    now = f"release #{told['now']}" if told["now"] else "no release of its own, but what is current above it,"
    if plan:
        stdout().print(f"{now} would be current {_where(told)}{_before(told)}", markup=False)
        stdout().print(
            f"{told['changing']} hosts would get another release at their next build", markup=False
        )
        stdout().print(f"{told['building']} hosts are building and would keep their release", markup=False)
        _hosts(told["keep"], told["building"])
        stdout().print(f"{told['to_rebuild']} hosts would be rebuilt with --rebuild", markup=False)
        _hosts(told["rebuild"], told["to_rebuild"])
        return
    done(
        f"{now} is current {_where(told)}{_before(told)}"
        if told["changed"]
        else f"{now} is current {_where(told)} already"
    )
    if rebuild:
        done(f"{told['rebuilt']} of {told['to_rebuild']} hosts are asked to be rebuilt")
        for refused in told["not_asked"]:
            stderr().print(f"  {refused['host']}: {refused['why']}", markup=False)
    if rebuild and told["rebuilt"] < told["to_rebuild"]:
        raise typer.Exit(1)


@app.command("history")
def history(context: typer.Context, group: Group = None) -> None:
    """What was made current, when, by whom and why; the newest first."""
    here = session(context)
    items = here.client.every("/releases/moves", group=group)
    show_list(
        items,
        ("at", "now", "before", "back", "actor", "reason"),
        here.format,
        empty="nothing was made current there",
    )


@app.command("diff")
def diff(
    context: typer.Context,
    a: Release,
    b: Release,
    host: Annotated[str | None, typer.Option(help="Compare what this host would be served.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Compare what the hosts of this group would be served.")
    ] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="As -o, for this command.")] = None,
) -> None:
    """Compare two releases: their templates, or what they make of a host or a group's hosts (secrets masked)."""
    here = session(context)
    form = format_ or here.format
    found = here.client.get("/releases" + place(a, "diff", b), timeout=LONG, host=host, group=group)
    if form is not Format.TABLE:
        show_one(found, form)
        return
    for entry in found["templates"]:
        _print_diff(entry["text"])
    for entry in found["rendered"]:
        names = ", ".join(entry["hosts"][:SHOWN]) + (", ..." if entry["count"] > SHOWN else "")
        title = f"{entry['count']} host{'s' if entry['count'] != 1 else ''}, {entry['template']}: {names}"
        stdout().print(f"[bold]{escape(title)}[/]")
        _print_diff(entry["text"])
    if host is None and group is None:
        said = f"{len(found['templates'])} templates differ"
    else:
        said = f"{found['changed']} of {found['hosts']} hosts differ, {found['failing']} cannot be rendered with #{found['b']}"
    stderr().print(said, markup=False)


# --- inner -----------------------------------------------------------------------------------------------


def _read(directory: Path) -> dict[str, str]:
    """Templates and fixtures of a directory; links that lead out of it are refused."""
    root = directory.resolve()
    if not root.is_dir():
        raise usage(f"there is no directory {directory}")
    found = {}
    for path in sorted([*root.rglob("*.j2"), *(root / "fixtures").glob("*.yaml")]):
        if not path.resolve().is_relative_to(root):
            raise usage(f"{path} is a link that leads out of {directory}")
        try:
            found[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise usage(
                f"{path} is no UTF-8 text, from its byte {error.start} on; nothing was sent"
            ) from None
        except OSError as error:
            raise usage(f"cannot read {path}: {error.strerror}; nothing was sent") from None
    if not any(path.endswith(".j2") for path in found):
        raise usage(f"there is no template (*.j2) below {directory}")
    return found


def _commit(directory: Path) -> dict[str, str]:
    """Commit, author and message of a clean checkout; nothing where it is none."""

    def git(*arguments: str) -> str:
        try:
            run = subprocess.run(
                ["git", "-C", str(directory), *arguments],
                capture_output=True,
                text=True,
                timeout=30,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return "?"
        return run.stdout.strip()

    if git("status", "--porcelain", "--", ".") != "" or git("ls-files", "--error-unmatch", ".") == "?":
        return {}
    told = git("log", "-1", "--no-show-signature", "--format=%H%x00%an <%ae>%x00%B").split("\0")
    if len(told) != 3:
        return {}
    return {"git_commit": told[0], "author": told[1][:256], "message": told[2].strip()[:8192]}


def _where(moved: dict[str, Any]) -> str:
    return "everywhere" if moved["where"] == "everywhere" else f"in {moved['where']}"


def _before(moved: dict[str, Any]) -> str:
    return f" (before: #{moved['before']})" if moved["before"] else ""


def _hosts(hosts: list[dict[str, Any]], count: int) -> None:
    for host in hosts:
        stdout().print(
            f"  {host['host']}: {host['state']}, release #{host['release']}; next build #{host['then']}",
            markup=False,
        )
    if count > len(hosts):
        stdout().print(f"  and {count - len(hosts)} more", markup=False)


def _print_diff(text: str) -> None:
    if sys.stdout.isatty():
        stdout().print(Syntax(text, "diff", theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
