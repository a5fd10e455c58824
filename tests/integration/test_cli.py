"""provisionctl as an operator uses it, against a whole daemon on a real socket; only drivers and machines are fakes."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from provisiond.config import load_settings
from provisiond.daemon import Daemon, compose
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Image, OperatingSystem
from provisiond.lifecycle import agent_logs, signals

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample host"


@dataclass
class Ended:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


class Lab:
    """A daemon, the machines behind it, and provisionctl. ``verdict`` is what machines report: built, or a failure."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.verdict = "built"
        self.daemon: Daemon
        self._tasks: set[asyncio.Task[None]] = set()

    async def boundary(self, when: str, host: ResolvedHost, step: str, outcome: object) -> None:
        if when == "stored" and step == "boot" and host.row.deployment_id:
            task = asyncio.create_task(self._answer(host.row.deployment_id))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, deployment_id: str) -> None:
        store = self.daemon.world.store
        await asyncio.sleep(0.1)
        if self.verdict != "built":
            await signals.failed(store, deployment_id, self.verdict, "the log's tail")
            return
        await signals.progress(store, deployment_id, 50, "writing the disk")
        await signals.built(store, deployment_id)
        await signals.phone_home(store, deployment_id, [KEY])

    async def ctl(self, *arguments: str, stdin: str = "", **env: str) -> Ended:
        """Run provisionctl. A variable given as "" is unset."""
        variables = {
            **os.environ,
            "PROVISIOND_URL": self.daemon.api_url,
            "PROVISIOND_TOKEN_FILE": str(self.directory / "admin.token"),
            "PROVISIONCTL_CONFIG": str(self.directory / "no.toml"),
            "COLUMNS": "200",
            **env,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from provisiond.ctl.app import main; main()", *arguments),
            env={name: value for name, value in variables.items() if value},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        return Ended(process.returncode or 0, out.decode(), err.decode())


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Lab]:
    """A daemon with a subnet and an image in it."""
    settings = load_settings(
        overrides={
            "state": {"dir": directory},
            "server": {"port": 0, "shutdown_seconds": 3, "socket": directory / "api.sock"},
            "boot": {"listen": "127.0.0.1", "http_port": 0, "tftp_listen": []},
            "dhcp": {"driver": "fake"},
            "handover": {"driver": "fake"},
            "erase": {"default": "none"},  # the fake switches no machine that could run the ramdisk
            "engine": {"backoff_seconds": 0.05, "backoff_max_seconds": 0.1, "max_attempts": 2},
        }
    )
    lab = Lab(directory)
    async with compose(settings, boundary=lab.boundary) as daemon:
        lab.daemon = daemon
        async with daemon.world.store.write() as session:
            system = OperatingSystem(name="debian-12", family="debian", version="12")
            session.add(system)
            await session.flush()
            facts = {"path": "x.raw", "format": "raw", "sha256": "0" * 64, "size": 1 << 20}
            session.add(Image(name="img", operating_system_id=system.id, **facts))
        made = await lab.ctl(
            "subnet", "create", "lab", "10.1.0.0/24", "--pool", "10.1.0.10-10.1.0.99", "--gateway", "10.1.0.1"
        )
        assert made.code == 0, made.err
        yield lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A running daemon."""
    async with running(tmp_path) as lab:
        yield lab


METAL = ("--subnet", "lab", "--image", "img", "--bmc", "fake://admin@web01")


async def test_from_create_to_service_and_back(lab: Lab) -> None:
    """One command takes a machine into service with its steps shown; others take it out again, to nothing."""
    mac = ("--mac", "52:54:00:00:00:01")
    created = await lab.ctl(
        "host", "create", "web01", *mac, *METAL, "--build", "--wait", PROVISIOND_BMC_PASSWORD="s3cret"
    )
    assert created.code == 0, created.err
    for shown in (
        "enrolled -> inspecting",
        "ready -> building",
        "configuring -> active",
        "writing the disk",
        "web01 is active",
    ):
        assert shown in created.err
    assert "s3cret" not in created.err + created.out
    host = json.loads((await lab.ctl("-o", "json", "host", "show", "web01")).out)
    assert (host["state"], host["interfaces"][0]["ip"], host["bmc"]["has_password"]) == (
        "active",
        "10.1.0.10",
        True,
    )
    history = await lab.ctl("host", "history", "web01")
    assert "host.created" in history.out and "state.changed" in history.out
    for verb, state in (("rebuild", "active"), ("release", "ready"), ("retire", "retired")):
        ended = await lab.ctl("host", verb, "web01", "--wait", "--yes")
        assert ended.code == 0 and f"web01 is {state}" in ended.err, ended.err
    assert (await lab.ctl("host", "delete", "web01", "--yes")).code == 0
    assert json.loads((await lab.ctl("-o", "json", "host", "list")).out) == []


async def test_a_failed_build_ends_non_zero_with_its_cause(lab: Lab) -> None:
    """--wait tells why the build failed and what to do; a retry can still bring it home."""
    lab.verdict = "no disk was found"
    created = await lab.ctl(
        "host",
        "create",
        "web01",
        "--mac",
        "52:54:00:00:00:01",
        *METAL,
        "--build",
        "--wait",
        PROVISIOND_BMC_PASSWORD="x",
    )
    assert created.code == 1
    assert "no disk was found" in created.err and "provisionctl host retry web01" in created.err
    lab.verdict = "built"
    retried = await lab.ctl("host", "retry", "web01", "--wait")
    assert retried.code == 0 and "web01 is active" in retried.err, retried.err


async def test_a_build_asked_for_too_early_is_not_lost(lab: Lab) -> None:
    """build before the host is ready is remembered, and followed."""
    body = ("--mac", "52:54:00:00:00:02", *METAL)
    assert (await lab.ctl("host", "create", "web02", *body, "--build", PROVISIOND_BMC_PASSWORD="x")).code == 0
    for _ in range(100):
        host = json.loads((await lab.ctl("-o", "json", "host", "show", "web02")).out)
        if host["state"] == "active":
            break
        await asyncio.sleep(0.1)
    assert host["state"] == "active"


RACK = """\
defaults: {subnet: lab, image: img}
hosts:
  - name: a1
    mac: 52:54:00:00:01:01
    bmc: {driver: fake, address: a1, username: admin, password_env: RACK_PASSWORD}
  - {name: a2, mac: "52:54:00:00:01:02"}
  - {name: NAME, mac: "MAC"}
"""


async def test_a_rack_is_created_whole_or_not_at_all(lab: Lab) -> None:
    """Errors stand beside the file's lines, and nothing is created; put right, all are."""
    wrong = await lab.ctl(
        "host",
        "create",
        "-f",
        "-",
        stdin=RACK.replace("NAME", "a_3").replace("MAC", "zz"),
        RACK_PASSWORD="pw",
    )
    assert wrong.code == 1
    assert "-:7 (a_3): name:" in wrong.err and "-:7 (a_3): mac:" in wrong.err
    twice = await lab.ctl(
        "host",
        "create",
        "-f",
        "-",
        stdin=RACK.replace("NAME", "a3").replace("MAC", "52:54:00:00:01:02"),
        RACK_PASSWORD="pw",
    )
    assert twice.code == 1 and "(a3): mac:" in twice.err
    assert (await lab.ctl("-o", "json", "host", "list")).out.strip() == "[]"
    unset = await lab.ctl("host", "create", "-f", "-", stdin=RACK)
    assert unset.code == 2 and "RACK_PASSWORD" in unset.err
    right = await lab.ctl(
        "host",
        "create",
        "-f",
        "-",
        stdin=RACK.replace("NAME", "a3").replace("MAC", "52:54:00:00:01:03"),
        RACK_PASSWORD="pw",
    )
    assert right.code == 0, right.err
    assert [h["name"] for h in json.loads((await lab.ctl("-o", "json", "host", "list")).out)] == [
        "a1",
        "a2",
        "a3",
    ]


async def test_passwords_never_stand_on_the_command_line(lab: Lab, tmp_path: Path) -> None:
    """A password in --bmc is refused; it is taken from a file or the environment, and missing it is an error that says so."""
    mac = ("--mac", "52:54:00:00:00:03")
    refused = await lab.ctl("host", "create", "web03", *mac, "--bmc", "fake://admin:hunter2@x")
    assert refused.code == 2 and "hunter2" not in refused.err
    missing = await lab.ctl("host", "create", "web03", *mac, "--bmc", "fake://admin@x")
    assert missing.code == 2 and "--bmc-password-file" in missing.err
    (tmp_path / "pw").write_text("hunter2\n")
    made = await lab.ctl(
        "host",
        "create",
        "web03",
        *mac,
        "--bmc",
        "fake://admin@x",
        "--bmc-password-file",
        str(tmp_path / "pw"),
    )
    assert made.code == 0, made.err


WRONG: list[tuple[tuple[str, ...], dict[str, str], int, str]] = [
    (("host", "list"), {"PROVISIOND_TOKEN": "wrong"}, 4, "token"),
    (("host", "list"), {"PROVISIOND_URL": "http://127.0.0.1:9"}, 3, "cannot reach"),
    (("host", "list"), {"PROVISIOND_URL": "unix:///nowhere.sock"}, 3, "cannot reach"),
    (("host", "show", "nobody"), {}, 1, "there is no host 'nobody'"),
    (("host", "history", "nobody"), {}, 1, "there is no host 'nobody'"),
    (("host", "lst"), {}, 2, "No such command"),
    (("host", "power", "nobody", "sideways"), {}, 1, "action"),
    (("host", "update", "nobody"), {}, 2, "nothing to change"),
    (("host", "retire", "nobody"), {}, 2, "--yes"),
    (("host", "list"), {"PROVISIOND_TOKEN_FILE": "/nowhere"}, 2, "/nowhere"),
]


async def test_exit_codes(lab: Lab) -> None:
    """Each kind of error has its exit code, and says on stderr what is wrong."""
    for arguments, env, code, said in WRONG:
        ended = await lab.ctl(*arguments, **env)
        assert (ended.code, ended.out) == (code, ""), arguments
        assert said in ended.err, arguments


async def test_by_the_unix_socket(lab: Lab) -> None:
    """On the daemon's machine a unix socket is a way in too; it asks for the token all the same, and is not for everybody."""
    path = lab.directory / "api.sock"
    assert (await lab.ctl("whoami", PROVISIOND_URL=f"unix://{path}")).code == 0
    assert (await lab.ctl("whoami", PROVISIOND_URL=f"unix://{path}", PROVISIOND_TOKEN="no")).code == 4
    assert path.stat().st_mode & 0o777 == 0o660


async def test_what_surrounds_hosts(lab: Lab) -> None:
    """Groups, domains, systems, hypervisors, flavors, users, tokens, parameters, templates: made, shown, changed, removed."""
    steps = [
        ("domain create lab.example", "domain update lab.example -p dns=yes", "domain list"),
        ("os create deb-13 --family debian --version 13", "os list"),
        (
            "hypervisor create hv1 fake:///hv1 --driver fake --network default",
            "hypervisor update hv1 --pool fast",
        ),
        (
            "flavor create small --vcpus 2 --memory 2048 --disk 20",
            "flavor update small --disk 30",
            "flavor show small",
        ),
        (
            "group create web --on hv1 --flavor small --domain lab.example",
            "group create front --parent web",
            "group list",
        ),
        ("group update front --parent", "group delete front", "group show web"),
        ("parameters update -p ntp.server=10.0.0.1 -p list=[1,2]", "parameters show"),
        ("user create bob --role operator", "user update bob --role viewer", "user list"),
        ("template list", "lifecycle", "whoami", "media list", "media imports", "image list", "subnet list"),
    ]
    shown = {}
    for commands in steps:
        for command in commands:
            arguments = command.split()
            if command.endswith("--parent"):
                arguments.append("")
            ended = await lab.ctl("-o", "yaml", *arguments)
            assert ended.code == 0, f"{command}: {ended.err}"
            shown[command] = yaml.safe_load(ended.out)
    assert shown["flavor show small"]["disk_gib"] == 30
    assert shown["group update front --parent"]["parent"] is None
    assert shown["parameters show"] == {"ntp": {"server": "10.0.0.1"}, "list": [1, 2]}
    used = await lab.ctl("flavor", "delete", "small")
    assert used.code == 1 and "group web" in used.err
    token = await lab.ctl("token", "create", "--user", "bob", "--file", str(lab.directory / "bob.token"))
    assert token.code == 0 and "pvd_" not in token.out + token.err
    assert (lab.directory / "bob.token").stat().st_mode & 0o777 == 0o600
    denied = await lab.ctl("user", "list", PROVISIOND_TOKEN_FILE=str(lab.directory / "bob.token"))
    assert denied.code == 4 and "needs the role admin" in denied.err


async def test_a_virtual_machine_by_two_words(lab: Lab) -> None:
    """--on and --flavor are enough for a virtual machine: it is given MAC and address."""
    assert (
        await lab.ctl(
            "hypervisor", "create", "hv1", "fake:///hv1", "--driver", "fake", "--network", "default"
        )
    ).code == 0
    assert (await lab.ctl("flavor", "create", "small")).code == 0
    made = await lab.ctl(
        "host", "create", "vm1", "--on", "hv1", "--flavor", "small", "--subnet", "lab", "--wait"
    )
    assert made.code == 0 and "vm1 is ready" in made.err, made.err
    host = json.loads((await lab.ctl("-o", "json", "host", "show", "vm1")).out)
    assert (host["on"], host["interfaces"][0]["mac"][:9]) == ("hv1", "52:54:00:")


async def test_console_and_rendered_files(lab: Lab) -> None:
    """The console log is passed on as it is; a rendered file shows no secret."""
    made = await lab.ctl(
        "host",
        "create",
        "web01",
        "--mac",
        "52:54:00:00:00:01",
        "--image",
        "img",
        "-p",
        "root_password=$6$abc$def",
    )
    assert made.code == 0, made.err
    host_id = json.loads((await lab.ctl("-o", "json", "host", "show", "web01")).out)["id"]
    (lab.directory / "console" / f"{host_id}.log").write_bytes(b"Booting...\r\nlogin: ")
    assert "login: " in (await lab.ctl("host", "console", "web01")).out
    assert (await lab.ctl("host", "agent-log", "web01")).code != 0
    agent_logs.keep(lab.directory / "agent-logs", host_id, "11111111-2222", "wrote it\n")
    assert (await lab.ctl("host", "agent-log", "web01")).out == "wrote it\n"
    rendered = await lab.ctl("template", "render", "web01", "user-data")
    assert rendered.code == 0 and rendered.out.startswith("#cloud-config"), rendered.err
    assert "$6$abc$def" not in rendered.out
