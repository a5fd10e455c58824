"""The command line of the daemon: ``provisiond serve | check-config | db upgrade | db downgrade | rotate-key``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from provisiond.config import Settings, document, load_settings, require_boot_url
from provisiond.drivers import load
from provisiond.errors import ConfigError, ProvisiondError
from provisiond.inventory import migrate
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.observe.notices import open_targets

DEFAULT_CONFIG = Path("/etc/provisiond/provisiond.toml")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback that shows variables shows secrets
    help="The provisioning daemon.",
)
db = typer.Typer(no_args_is_help=True, help="The database's schema.")
app.add_typer(db, name="db")

Config = Annotated[
    Path | None, typer.Option("--config", "-c", help=f"TOML file; default {DEFAULT_CONFIG} where it exists.")
]


def main() -> None:
    """Entry point. An error that was raised on purpose is one sentence and exit code 1."""
    os.umask(0o027)  # the database and consoles are nobody else's business
    try:
        app(standalone_mode=True)
    except ProvisiondError as error:
        sys.stderr.write(f"provisiond: {' '.join(str(error).split())}\n")  # libpq writes several lines
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
    require_boot_url(settings)
    load("dhcp", settings.dhcp.driver)
    open_targets(settings.notify)
    if settings.handover.driver != "none":
        load("handover", settings.handover.driver)
    typer.echo(f"the settings are well; state in {settings.state.dir}, database {_kind(settings)}")


@db.command("upgrade")
def upgrade(
    config: Config = None, revision: Annotated[str, typer.Argument(help="Revision to go up to.")] = "head"
) -> None:
    """Bring the schema up to ``revision``; the daemon does this by itself at start."""
    url = _settings(config).database_url()
    _alone(url, lambda: migrate.upgrade(url, revision))
    typer.echo(f"the schema is at {migrate.current(url)}")


@db.command("downgrade")
def downgrade(
    revision: Annotated[str, typer.Argument(help="Revision to go down to, or 'base'.")], config: Config = None
) -> None:
    """Take the schema back to ``revision``, for an older daemon. Stop the daemon first."""
    url = _settings(config).database_url()
    _alone(url, lambda: migrate.downgrade(url, revision))
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

    if migrate.current(settings.database_url()) is None:
        raise ConfigError(
            "the database has no tables yet, so there is nothing to encrypt; start the daemon once or run 'provisiond db upgrade'"
        )
    typer.echo(f"{asyncio.run(work())} secrets encrypted under a new key in {settings.state.key_file}")


def _alone(url: str, work: Callable[[], None]) -> None:
    """Do it with the SQLite file taken, so that no daemon runs on it. On PostgreSQL nothing but you sees to that."""

    async def locked() -> None:
        store = Store(url)
        try:
            await store.open()
        except OSError as error:
            raise ConfigError(f"cannot open the database: {error.strerror}: {error.filename}") from error
        try:
            await asyncio.to_thread(work)
        finally:
            await store.close()

    asyncio.run(locked())


def _settings(config: Path | None) -> Settings:
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    return load_settings(config)


def _kind(settings: Settings) -> str:
    return "PostgreSQL" if settings.database_url().startswith("postgresql") else "SQLite"
