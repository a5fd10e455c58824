"""The daemon as a whole and its command line: real processes on loopback, with an external DHCP server."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import ClientSession
from sqlalchemy import select as sql_select

from provisiond.config import load_settings
from provisiond.daemon import Daemon, compose
from provisiond.errors import ConfigError, Conflict
from provisiond.inventory.store import HOSTS, Store
from provisiond.inventory.tables import Bmc, Host, utcnow
from tests.databases import Postgres
from tests.real_daemon import RealDaemon

PROVISIOND = (sys.executable, "-c", "from provisiond.commands import main; main()")

TOML = """
[server]
port = {port}
shutdown_seconds = 2
[state]
dir = "{state}"
[database]
url = "{database}"
[boot]
listen = "127.0.0.1"
http_port = 0
tftp_listen = ["127.0.0.1"]
tftp_port = 0
[dhcp]
driver = "external"
[engine]
power_poll_seconds = 0
"""


def written(folder: Path, *, port: int = 0, database: str = "", more: str = "") -> Path:
    path = folder / "provisiond.toml"
    path.write_text(TOML.format(port=port, state=folder / "state", database=database) + more)
    return path


def clean_environment(**more: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("PROVISIOND_")}, **more}


def run(*arguments: str | Path, **env: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of one command."""
    done = subprocess.run(
        [*PROVISIOND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=clean_environment(**env),
    )
    return done.returncode, done.stdout, done.stderr


def refused(*arguments: str | Path, **env: str) -> str:
    """The one sentence a command ends with that cannot be done; no traceback, exit code 1."""
    code, _out, err = run(*arguments, **env)
    said = [line for line in err.splitlines() if not line.startswith("{")]  # the log's own lines are JSON
    assert (code, len(said)) == (1, 1), err
    assert said[0].startswith("provisiond: ")
    return said[0]


@contextmanager
def serving(config: Path, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A daemon in a process of its own that is ready, and the URL of its API."""
    process = subprocess.Popen(
        [*PROVISIOND, "serve", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(**env),
    )
    try:
        yield process, _ready(process)
    finally:
        process.kill()
        process.communicate()


def _ready(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    lines, until = [], time.monotonic() + 90
    while time.monotonic() < until and select.select([process.stderr], [], [], 90)[0]:
        line = process.stderr.readline()
        lines.append(line)
        if not line:
            break
        if line.startswith("{") and json.loads(line)["event"] == "daemon.ready":
            return str(json.loads(line)["api"])
    raise AssertionError("the daemon is not ready:\n" + "".join(lines))


# --- composed in this process -------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Daemon]:
    """A whole daemon on free ports."""
    for name in [name for name in os.environ if name.startswith("PROVISIOND_")]:
        monkeypatch.delenv(name)
    async with compose(load_settings(written(tmp_path))) as composed:
        yield composed


async def test_a_whole_daemon_is_ready(daemon: Daemon) -> None:
    """Every check is well, the machines' door answers, and the figures name every part."""
    async with ClientSession() as session:
        async with session.get(f"{daemon.api_url}/readyz") as answer:
            assert (answer.status, await answer.json()) == (
                200,
                {"status": "ok", "checks": {"database": "ok", "dhcp": "ok", "engine": "ok"}},
            )
        async with session.get(f"{daemon.api_url}/metrics") as answer:
            figures = await answer.text()
        async with session.get(f"{daemon.boot_url}/boot/ipxe") as answer:
            assert answer.status == 200 and (await answer.text()).startswith("#!ipxe")
    for name in (
        "provisiond_engine_busy",
        "provisiond_tftp_transfers",
        "provisiond_hosts_due",
        "provisiond_hosts_overdue",
    ):
        assert f"\n{name} " in figures


async def test_what_the_first_start_makes_is_private(daemon: Daemon) -> None:
    """Admin token, encryption key and SSH key are the daemon's user's alone; the token lets an admin in."""
    state = daemon.settings.state
    for path in (state.admin_token_file, state.key_file, state.dir / "ssh" / "id_ed25519"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    token = state.admin_token_file.read_text().strip()
    async with (
        ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"{daemon.api_url}/api/v1/whoami") as answer,
    ):
        assert (await answer.json())["role"] == "admin"


async def test_a_second_daemon_on_the_same_file_is_refused(daemon: Daemon) -> None:
    """SQLite serves one daemon: the other one says so and changes nothing."""
    with pytest.raises(Conflict, match="SQLite serves one daemon"):
        async with compose(daemon.settings):
            pass
    assert daemon.settings.state.admin_token_file.exists()


async def test_a_restart_makes_no_second_token(tmp_path: Path, daemon: Daemon) -> None:
    """The token of the first start stays the one there is, and the SSH key stays the same."""
    files = (daemon.settings.state.admin_token_file, daemon.settings.state.dir / "ssh" / "id_ed25519")
    before = [path.read_text() for path in files]
    settings = load_settings(written(tmp_path), {"state": {"dir": tmp_path / "other"}})
    async with compose(settings):
        pass
    first = settings.state.admin_token_file.read_text()
    async with compose(settings):
        assert settings.state.admin_token_file.read_text() == first
    assert [path.read_text() for path in files] == before


async def test_a_port_in_use_is_told_and_everything_is_closed_again(tmp_path: Path) -> None:
    """The message names the setting, and the database file is free for the next try."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = load_settings(written(tmp_path, port=taken.getsockname()[1]))
        with pytest.raises(ConfigError, match=r"server\.listen: cannot listen on 127\.0\.0\.1 port"):
            async with compose(settings):
                pass
    async with compose(settings) as composed:
        assert composed.api_url.endswith(str(settings.server.port))


# --- as processes -----------------------------------------------------------------------------------------


def test_sigterm_ends_it(tmp_path: Path) -> None:
    """Within seconds, with exit code 0, and SIGINT does the same."""
    for number in (signal.SIGTERM, signal.SIGINT):
        with serving(written(tmp_path)) as (process, _url):
            process.send_signal(number)
            assert process.wait(60) == 0


def test_a_machine_that_is_gone_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """One that lost its power in the middle of a call leaves a connection that says nothing: it is waited for no longer than shutdown_seconds."""
    with (
        RealDaemon(tmp_path / "daemon") as daemon,
        socket.create_connection(("127.0.0.1", daemon.boot)) as machine,
    ):
        machine.sendall(b"POST /agent/claim HTTP/1.1\r\nHost: boot\r\nContent-Length: 100\r\n\r\n{")
        time.sleep(0.5)  # until the call is under way
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_sigterm_frees_the_hosts_it_works_on(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A step that hangs is broken off after shutdown_seconds, and its host is free for the next daemon at once."""
    database = f"sqlite:///{tmp_path / 'p.db'}"
    if kind == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        database = server.store_url(server.database(empty=True))
    config = written(tmp_path, database=database)
    assert run("db", "upgrade", "--config", config)[0] == 0
    asyncio.run(_slow_host(database))
    with serving(config) as (process, _url):
        until = time.monotonic() + 60
        while not asyncio.run(_leased(database)):
            assert time.monotonic() < until, "the host was never worked on"
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0  # the step would take a minute and more
    assert not asyncio.run(_leased(database))


async def _slow_host(database: str) -> None:
    store = Store(database)
    await store.open()
    async with store.write(HOSTS) as session:
        host = Host(name="slow", due_at=utcnow(), limit_key="fake:slow:")
        session.add(host)
        await session.flush()
        session.add(Bmc(host_id=host.id, driver="fake", address="slow", options={"latency": "120"}))
    await store.close()


async def _leased(database: str) -> bool:
    store = Store(database, lock=False)
    await store.open()
    try:
        async with store.read() as session:
            return (await session.execute(sql_select(Host.lease_owner))).scalar_one() is not None
    finally:
        await store.close()


def test_systemd_is_told(tmp_path: Path) -> None:
    """READY=1 when it serves and STOPPING=1 when it ends (sd_notify)."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(path))
        heard.settimeout(60)
        with serving(written(tmp_path), NOTIFY_SOCKET=str(path)) as (process, _url):
            assert heard.recv(100) == b"READY=1"
            process.terminate()
            assert heard.recv(100) == b"STOPPING=1"


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """One sentence, and neither serve nor a way of the schema gets at the file of a daemon that runs."""
    config = written(tmp_path)
    with serving(config):
        assert "SQLite serves one daemon" in refused("serve", "--config", config)
        assert "SQLite serves one daemon" in refused("db", "downgrade", "base", "--config", config)
        assert "SQLite serves one daemon" in refused("db", "upgrade", "--config", config)
        assert "SQLite serves one daemon" in refused("rotate-key", "--config", config)


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    """It names the setting, the address and what may be the reason."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused("serve", "--config", written(tmp_path, port=port))
    assert f"server.listen: cannot listen on 127.0.0.1 port {port}" in said


def test_a_tftp_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    """The same for the machines' door."""
    config = written(tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = refused("serve", "--config", config, PROVISIOND_BOOT__TFTP_PORT=str(port))
    assert "boot.tftp_listen: cannot listen on 127.0.0.1" in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[nosuch]\nx = 1\n", "nosuch: unknown key"),
        ("[handover]\ndriver = 'chef'\n", "there is no handover driver 'chef'"),
        ("[log]\nlevel = 5\n", "log.level: "),
        ("[log\n", "is not valid TOML"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path: Path, more: str, words: str) -> None:
    """check-config says before a restart what the start would say."""
    assert words in refused("check-config", "--config", written(tmp_path, more=more))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    """For every command that takes one."""
    for command in (["check-config"], ["serve"], ["db", "upgrade"], ["rotate-key"]):
        assert "cannot read" in refused(*command, "--config", tmp_path / "no.toml")


def test_right_settings_are_told(tmp_path: Path) -> None:
    """check-config makes nothing."""
    code, out, _err = run("check-config", "--config", written(tmp_path))
    assert (code, out) == (0, f"the settings are well; state in {tmp_path / 'state'}, database SQLite\n")
    assert not (tmp_path / "state").exists()


def test_a_certificate_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """And the daemon does not fall back to plain HTTP."""
    config = written(tmp_path)
    files = {
        "PROVISIOND_SERVER__TLS_CERT": str(tmp_path / "c.pem"),
        "PROVISIOND_SERVER__TLS_KEY": str(tmp_path / "k.pem"),
    }
    assert "server.tls_cert" in refused("serve", "--config", config, **files)
    assert "go together" in refused("serve", "--config", config, PROVISIOND_SERVER__TLS_CERT="/x.pem")


def test_a_database_that_is_away_is_one_sentence(tmp_path: Path) -> None:
    """With what the server's library says, and without a password."""
    config = written(tmp_path, database="postgresql://someone:hunter2@127.0.0.1:1/x")
    said = refused("serve", "--config", config)
    assert "the database cannot be used" in said and "hunter2" not in said


def test_up_and_down(tmp_path: Path) -> None:
    """The schema goes up, down to nothing and up again; what is made is not for others to read."""
    config = written(tmp_path)
    (tmp_path / "state").mkdir()
    code, out, _err = run("db", "upgrade", "--config", config)
    head = out.removeprefix("the schema is at ").strip()
    file = tmp_path / "state" / "provisiond.db"
    assert code == 0 and head and stat.S_IMODE(file.stat().st_mode) & 0o007 == 0
    assert run("db", "downgrade", "base", "--config", config)[:2] == (0, "the schema is at base\n")
    with sqlite3.connect(file) as connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
    assert tables <= {"alembic_version", "sqlite_sequence"}
    assert run("db", "upgrade", "--config", config)[:2] == (0, f"the schema is at {head}\n")
    assert "cannot be migrated" in refused("db", "downgrade", "no-such-revision", "--config", config)


def test_a_new_key(tmp_path: Path) -> None:
    """Every stored secret is readable by the new key alone; without tables there is nothing to do and that is said."""
    config = written(tmp_path)
    (tmp_path / "state").mkdir()
    assert "no tables yet" in refused("rotate-key", "--config", config)
    assert run("db", "upgrade", "--config", config)[0] == 0
    key = tmp_path / "state" / "secret.key"
    before = key.read_text() if key.exists() else ""
    code, out, _err = run("rotate-key", "--config", config)
    assert code == 0 and out.startswith("0 secrets encrypted under a new key")
    assert key.read_text() != before and stat.S_IMODE(key.stat().st_mode) == 0o600
