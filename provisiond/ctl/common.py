"""What every command needs: the global options, the client, exit codes, and the commands that all nouns share.

Exit codes: 0 done, 1 the daemon or the job failed, 2 wrong usage, 3 cannot reach the daemon, 4 denied.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape

from provisiond.ctl import yaml12
from provisiond.ctl.client import ApiProblem, Client, Unreachable, place
from provisiond.ctl.config import SettingsError, load_target
from provisiond.ctl.output import Format, show_list, show_one, stderr

OK, FAILED, USAGE, UNREACHABLE, DENIED = 0, 1, 2, 3, 4


@dataclass
class Session:
    """The options given before the command, and the client once it is needed."""

    url: str | None = None
    format: Format = Format.TABLE
    _client: Client | None = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(load_target(self.url))
        return self._client


def session(context: typer.Context) -> Session:
    """The session of this invocation."""
    return context.ensure_object(Session)


def explain(error: Exception, where: dict[str, str] | None = None) -> int:
    """Print an error as sentences, with every wrong field, and return the exit code. ``where`` names fields for people."""
    console = stderr()
    console.print(f"[bold red]error:[/] {escape(str(error))}")
    if isinstance(error, ApiProblem):
        for field, message in error.fields:
            console.print(f"  [bold]{escape(_named(field, where or {}))}[/]: {escape(message)}")
        if error.status == 401:
            console.print("  set PROVISIOND_TOKEN or PROVISIOND_TOKEN_FILE to a token that is valid")
        return DENIED if error.denied else FAILED
    if isinstance(error, SettingsError):
        return DENIED if "no token" in str(error) else USAGE
    return UNREACHABLE if isinstance(error, Unreachable) else FAILED


def usage(message: str) -> typer.Exit:
    """Say what is wrong with the command line; raise what is returned."""
    stderr().print(f"[bold red]error:[/] {escape(message)}")
    return typer.Exit(USAGE)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given. An option set to "" empties the field (null)."""
    return {
        name: (None if value == "" else value)
        for name, value in fields.items()
        if value is not None and value != []
    }


def read_parameters(pairs: Sequence[str], file: Path | None = None) -> dict[str, Any] | None:
    """``KEY=VALUE`` pairs over a YAML or JSON file. Values are read as YAML; a dotted key reaches into tables."""
    if not pairs and file is None:
        return None
    result: dict[str, Any] = {}
    if file is not None:
        loaded = read_yaml(file)
        if not isinstance(loaded, dict):
            raise usage(f"{file}: parameters are a table of names and values")
        result = loaded
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise usage(f"--param {pair!r}: write it as NAME=VALUE")
        try:
            value = yaml12.load(text) if text else ""
        except yaml.YAMLError:
            value = text
        table = result
        *path, last = key.split(".")
        for part in path:
            inner = table.setdefault(part, {})
            if not isinstance(inner, dict):
                raise usage(f"--param {pair!r}: {part} is no table")
            table = inner
        table[last] = value
    return result


def read_description(file: str | None) -> Any:
    """A storage or network description out of a YAML or JSON file; "" stays, to empty the setting."""
    return read_yaml(Path(file)) if file else file


def read_yaml(file: Path) -> Any:
    """The content of a YAML (or JSON) file; "-" is standard input."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        return yaml12.load(text)
    except OSError as error:
        raise usage(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise usage(f"{file} is not valid YAML: {error}") from None


Name = Annotated[str, typer.Argument(help="Its name.")]
StorageFile = Annotated[
    str | None, typer.Option("--storage", help="YAML file that says how disks are divided.", metavar="FILE")
]
NetworkFile = Annotated[
    str | None,
    typer.Option("--network", help="YAML file with bonds, VLANs, bridges and routes.", metavar="FILE"),
]
Profile = Annotated[
    str | None, typer.Option("--profile", help="Hardware profile that machines are compared with.")
]
Params = Annotated[
    list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, read as YAML; again for more.")
]
ParamsFile = Annotated[
    Path | None, typer.Option("--params-file", help="Parameters from a YAML or JSON file.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def noun(name: str, path: str, columns: Sequence[str], *, plural: str, delete: bool = True) -> typer.Typer:
    """A group of commands with list, show and delete in it. ``path`` is the API's, ``columns`` what the list shows."""
    app = typer.Typer(help=f"{plural[0].upper()}{plural[1:]}.", no_args_is_help=True)

    @app.command("list", help=f"List {plural}.")
    def _list(context: typer.Context) -> None:
        here = session(context)
        show_list(here.client.every(path), columns, here.format, empty=f"there are no {plural} yet")

    @app.command("show", help=f"Show everything known of one {name}.")
    def _show(context: typer.Context, name: Name) -> None:
        here = session(context)
        show_one(here.client.get(path + place(name)), here.format)

    if delete:

        @app.command("delete", help=f"Delete one {name}; refused while something uses it.")
        def _delete(context: typer.Context, name: Name) -> None:
            session(context).client.delete(path + place(name))
            done(f"deleted {name}")

    return app


def done(message: str) -> None:
    """Say that something is done (to stderr, so that stdout holds answers only)."""
    stderr().print(f"[green]✓[/] {escape(message)}" if sys.stderr.isatty() else escape(message))


def confirm(question: str, yes: bool) -> None:
    """Ask before something that cannot be undone; without a terminal --yes is needed."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise usage(f"{question} Say --yes to do it without being asked")
    if not typer.confirm(question):
        raise typer.Exit(FAILED)


def _named(field: str, where: dict[str, str]) -> str:
    for prefix, label in where.items():
        if field == prefix or field.startswith(prefix + "."):
            return f"{label}{field.removeprefix(prefix).removeprefix('.')}".rstrip(": ")
    return field
