"""The command line of the daemon: ``provisiond serve | check-config | db upgrade | db downgrade | rotate-key``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from provisiond.config import Settings, document, load_settings
from provisiond.errors import ProvisiondError
from provisiond.inventory import migrate
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store

DEFAULT_CONFIG = Path("/etc/provisiond/provisiond.toml")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The provisioning daemon.")
db = typer.Typer(no_args_is_help=True, help="The database's schema.")
app.add_typer(db, name="db")

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help=f"TOML file; default {DEFAULT_CONFIG} where it exists.")
]


def main() -> None:
    """Entry point. An error that was raised on purpose is one sentence and exit code 1."""
    try:
        app(standalone_mode=True)
    except ProvisiondError as error:
        sys.stderr.write(f"provisiond: {error}\n")
        sys.exit(1)


@app.command()
def serve(config: Config = None) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT."""
    from provisiond.daemon import run  # only this command pays for the import of everything

    run(_settings(config))


@app.command("check-config")
def check_config(
    config: Config = None,
    document_keys: Annotated[
        bool, typer.Option("--document", help="Print every key with its default as Markdown.")
    ] = False,
) -> None:
    """Read the settings and say what is wrong with them, or that all is well."""
    if document_keys:
        typer.echo(document(), nl=False)
        return
    settings = _settings(config)
    if settings.server.tls_cert and not settings.server.tls_key:
        raise typer.BadParameter("server.tls_cert needs server.tls_key beside it")
    typer.echo(f"the settings are well; state in {settings.state.dir}, database {_kind(settings)}")


@db.command("upgrade")
def upgrade(
    config: Config = None, revision: Annotated[str, typer.Argument(help="Revision to go up to.")] = "head"
) -> None:
    """Bring the schema up to ``revision``; the daemon does this by itself at start."""
    url = _settings(config).database_url()
    migrate.upgrade(url, revision)
    typer.echo(f"the schema is at {migrate.current(url)}")


@db.command("downgrade")
def downgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go down to, or 'base'.")], config: Config = None
) -> None:
    """Take the schema back to ``revision``, for an older daemon. Stop the daemon first."""
    url = _settings(config).database_url()
    migrate.downgrade(url, revision)
    typer.echo(f"the schema is at {migrate.current(url) or 'base'}")


@app.command("rotate-key")
def rotate_key(config: Config = None) -> None:
    """Encrypt every stored secret anew under a fresh key. Stop the daemon first."""
    settings = _settings(config)

    async def work() -> int:
        store = Store(settings.database_url())
        await store.open()
        try:
            return await SecretBox.open(settings.state.key_file).rotate(store)
        finally:
            await store.close()

    typer.echo(f"{asyncio.run(work())} secrets encrypted under a new key in {settings.state.key_file}")


def _settings(config: Path | None) -> Settings:
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    return load_settings(config)


def _kind(settings: Settings) -> str:
    return "PostgreSQL" if settings.database_url().startswith("postgresql") else "SQLite"
