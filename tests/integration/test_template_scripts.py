"""The scripts inside templates, run by the shells and programs the machines have, against an HTTP server that takes their callbacks.

Debian's installer has busybox for a shell and wget; an installed system and Anaconda have bash and curl; cloud-init's image has
sh and python3.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import pytest
import yaml
from pykickstart.parser import KickstartParser
from pykickstart.version import RHEL9, makeVersion

from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import BuildUrls, build_context
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.render import Limits, Renderer
from tests.golden.hosts import ALMA, ALMA_MEDIUM, DEBIAN_MEDIUM, IMAGE, make_host

RENDERER = Renderer(read_directory(shipped_directory()), Limits(seconds=60.0))
KEYS = ['ssh-ed25519 AAAA it\'s "q" $(id) `id` #x', "ssh-rsa BBBB two"]
ODD = 'a line & with = odd + signs % 100 "é" <end>\n'


class Machines(ThreadingHTTPServer):
    """Notes every POST as (last part of the path, fields)."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, str]]] = []
        self.refuse: set[str] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def urls(self) -> BuildUrls:
        return BuildUrls.of(f"http://127.0.0.1:{self.server_port}", "tok")

    def wait(self, name: str, seconds: float = 60) -> dict[str, str]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for heard, fields in list(self.heard):
                if heard == name:
                    return fields
            time.sleep(0.05)
        raise AssertionError(f"no {name}; heard {self.heard}")


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast(Machines, self.server)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode("utf-8", "replace")
        name = self.path.rpartition("/")[2]
        server.heard.append((name, {k: v[-1] for k, v in parse_qs(body, keep_blank_values=True).items()}))
        self.send_response(503 if name in server.refuse else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.fixture
def machines() -> Iterator[Machines]:
    """A running server."""
    server = Machines()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def installer(tmp_path: Path) -> Path:
    """A directory with busybox's programs, `in-target`, a log and a /target that busybox can be run in by chroot."""
    busybox = shutil.which("busybox")
    if not busybox or os.geteuid():
        pytest.skip("needs root and the package busybox-static")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in (
        "sh",
        "wget",
        "sed",
        "tail",
        "grep",
        "sleep",
        "mkdir",
        "chmod",
        "cat",
        "printf",
        "chroot",
        "head",
        "readlink",
        "echo",
        "true",
        "rm",
    ):
        (programs / name).symlink_to(busybox)
    in_target = programs / "in-target"
    # runs the script on the directory of the target instead of in a root file system of its own
    places = f"s#\\(/root/\\.ssh\\|/etc/\\|/usr/local/\\|/home/\\|/mnt/\\)#{tmp_path}/target\\1#g"
    in_target.write_text(
        f"#!/bin/sh\n/bin/sed -e '{places}' {tmp_path}/target$2 > {tmp_path}/moved && PATH={tmp_path}/fakes:/bin:/usr/bin $1 {tmp_path}/moved\n"
    )
    in_target.chmod(0o755)
    (tmp_path / "fakes").mkdir()
    for name in ("apt-get", "systemctl", "install", "update-ca-certificates"):
        (tmp_path / "fakes" / name).write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> {tmp_path}/in-target\n'
        )
        (tmp_path / "fakes" / name).chmod(0o755)
    for name in ("bin", "root", "etc/systemd/system", "usr/local/sbin"):
        (tmp_path / "target" / name).mkdir(parents=True)
    shutil.copy(busybox, tmp_path / "target/bin/base64")
    (tmp_path / "syslog").write_text("started\n")
    return tmp_path


def preseed_command(name: str, machines: Machines, installer: Path, **parameters: Any) -> list[str]:
    """The command of a rendered preseed as busybox is given it, its paths moved below ``installer``."""
    host = make_host(medium=DEBIAN_MEDIUM, **parameters)
    text = RENDERER.render("preseed/debian.cfg.j2", build_context(host, machines.urls))
    joined = re.sub(r"\\\n", "", text)
    command = re.search(rf"^d-i preseed/{name} string (.*)$", joined, re.MULTILINE)
    assert command
    moved = (
        command[1].replace("/target", f"{installer}/target").replace("/var/log/syslog", f"{installer}/syslog")
    )
    moved = moved.replace("/tmp/provisiond-tail", f"{installer}/tail")
    return [str(installer / "bin/sh"), "-c", moved]


def test_late_command(machines: Machines, installer: Path) -> None:
    """It puts keys, sudo rights and the first boot's unit into the target, then reports that the build is done, last of all."""
    command = preseed_command(
        "late_command", machines, installer, ssh_authorized_keys=KEYS, admin_user="deploy", packages=["-nano"]
    )
    done = subprocess.run(
        command,
        env={"PATH": f"{installer}/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    target = installer / "target"
    assert (target / "root/.ssh/authorized_keys").read_text().splitlines() == KEYS
    assert (target / "root/.ssh").stat().st_mode & 0o777 == 0o700
    assert (target / "etc/sudoers.d/90-provisiond").read_text() == "deploy ALL=(ALL) NOPASSWD: ALL\n"
    assert (target / "usr/local/sbin/provisiond-first-boot").read_text().startswith("#!/bin/sh\n")
    assert (
        f"ExecStart={target}/usr/local/sbin/provisiond-first-boot"
        in (target / "etc/systemd/system/provisiond-first-boot.service").read_text()
    )
    netplan = yaml.safe_load((target / "etc/netplan/60-provisiond.yaml").read_text())
    assert netplan["network"]["ethernets"]["eth0"]["addresses"] == ["10.0.0.21/24"]
    assert (target / "etc/netplan/60-provisiond.yaml").stat().st_mode & 0o777 == 0o600
    assert (target / "etc/resolv.conf").is_symlink() and not (target / "root/provisiond-finish").exists()
    asked = (installer / "in-target").read_text().splitlines()
    assert asked.index("apt-get -y install netplan.io systemd-resolved") > asked.index(
        "apt-get -y purge nano"
    )
    assert "systemctl enable provisiond-first-boot.service" in asked
    assert [name for name, _ in machines.heard] == ["progress", "built"]


def test_late_command_that_fails(machines: Machines, installer: Path) -> None:
    """When a part of it fails, the build is reported as failed with the end of the log, and never as done."""
    (installer / "bin/in-target").write_text("#!/bin/sh\nexit 9\n")
    (installer / "syslog").write_text(ODD * 3)
    command = preseed_command("late_command", machines, installer)
    done = subprocess.run(
        command, env={"PATH": str(installer / "bin")}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert [name for name, _ in machines.heard] == ["progress", "failed"]
    assert machines.heard[-1][1] == {"message": "the late command failed", "log": (ODD * 3).rstrip("\n")}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("main-menu[123]: WARNING **: Menu item 'partman-base' failed.", "Menu item partman-base failed"),
        ("anna[3612]: WARNING **: package retrieval failed", "package retrieval failed"),
    ],
)
def test_early_command_watches_the_installer(
    machines: Machines, installer: Path, line: str, said: str
) -> None:
    """It returns at once; when a step of the installer fails later, that is reported with the step's name and the log."""
    command = preseed_command("early_command", machines, installer)
    assert "while sleep 5;" in command[-1]
    command[-1] = command[-1].replace("while sleep 5;", "while sleep 1;")
    # as the real installer does: its log holds the very words the watcher looks for
    (installer / "syslog").write_text(
        f"preseed: running preseed command preseed/early_command: {command[-1]}\n"
    )
    process = subprocess.Popen(
        command,
        env={"PATH": str(installer / "bin")},
        start_new_session=True,
    )
    try:
        assert process.wait(30) == 0  # the watcher goes on
        assert machines.wait("progress")["percent"] == "5"
        time.sleep(2.5)  # it has looked
        assert [name for name, _ in machines.heard] == ["progress"]
        with (installer / "syslog").open("a") as log:
            log.write(f"{ODD}{line}\n")
        told = machines.wait("failed")
        assert told["message"] == f"the installer stopped: {said}"
        assert ODD.strip() in told["log"] and line in told["log"]
    finally:
        subprocess.run(
            ["pkill", "-9", "-s", str(process.pid)], check=False
        )  # the session that this test began, and no other


def test_kickstart_reports(machines: Machines, tmp_path: Path) -> None:
    """The functions of kickstart's scripts deliver progress, success, and a failure with whatever is in its log."""
    host = make_host(system=ALMA, medium=ALMA_MEDIUM)
    text = RENDERER.render("kickstart/redhat-9.ks.j2", build_context(host, machines.urls))
    handler = makeVersion(RHEL9)
    KickstartParser(handler, followIncludes=False).readKickstartFromString(text)
    functions = handler.scripts[0].script.partition('provisiond_progress 5 "')[0]
    (tmp_path / "log").write_text(ODD)
    script = f"{functions}\nprovisiond_progress 80 'a & b = c'\nprovisiond_failed \"it's at line 3 & gone\" {tmp_path}/log\n"
    script += f"provisiond_post {machines.urls.names()['built']} --data ''\n"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert machines.heard == [
        ("progress", {"percent": "80", "text": "a & b = c"}),
        ("failed", {"message": "it's at line 3 & gone", "log": ODD}),
        ("built", {}),
    ]


@pytest.mark.parametrize("number", [0, 1])
def test_esxi_reports(machines: Machines, number: int) -> None:
    """ESXi's %pre and %post, run by Python, tell how far it is; the last word is that the machine boots its own disk."""
    host = read_fixtures([shipped_directory()])["esxi-uefi-static"].host()
    text = RENDERER.render("kickstart/esxi.cfg.j2", build_context(host, machines.urls))
    script = re.findall(r"^%(?:pre|post) --interpreter=python.*\n((?:(?!%).*\n)*)", text, re.MULTILINE)[
        number
    ]
    done = subprocess.run(["python3", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    heard = [("progress", {"percent": "5", "text": "the installer has its kickstart"})]
    if number:
        heard = [("progress", {"percent": "80", "text": "ESXi is on the disk"}), ("built", {})]
    assert machines.heard == heard


def test_esxi_phones_home(machines: Machines, tmp_path: Path) -> None:
    """ESXi's first boot puts exactly the given keys in place and tells the keys of its SSH server."""
    host = read_fixtures([shipped_directory()])["esxi-uefi-static"].host()
    text = RENDERER.render("kickstart/esxi.cfg.j2", build_context(host, machines.urls, authorized_keys=KEYS))
    script = text.partition("%firstboot --interpreter=busybox\n")[2].replace("/tmp/", "/etc/ssh/")
    script = script.replace("/sbin/auto-backup.sh", ":").replace("python /", "python3 /")
    script = script.replace("/etc/ssh", str(tmp_path))
    (tmp_path / "keys-root").mkdir()
    (tmp_path / "ssh_host_rsa_key.pub").write_text("ssh-rsa HOST")
    stubs = f'vim-cmd() {{ :; }}\nesxcli() {{ echo "$@" >> {tmp_path}/asked; }}\n'
    done = subprocess.run(
        ["bash", "-c", stubs + script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "keys-root/authorized_keys").read_text().splitlines()[-len(KEYS) :] == KEYS
    assert (
        "network firewall ruleset set --ruleset-id=httpClient --enabled=true"
        in (tmp_path / "asked").read_text()
    )
    assert machines.heard[0][0] == "phone-home" and machines.heard[0][1]["pub_key_rsa"] == "ssh-rsa HOST"
    assert host.deployment and machines.heard[0][1]["instance_id"] == host.deployment.id


def test_first_boot_tells_its_keys(machines: Machines, tmp_path: Path) -> None:
    """An installed system tries until the daemon hears its SSH host keys, then removes itself."""
    host = make_host(medium=DEBIAN_MEDIUM)
    source = RENDERER.catalogue.files["snippets/first-boot.sh.j2"]
    assert source
    text = RENDERER.render("preseed/debian.cfg.j2", build_context(host, machines.urls))
    encoded = re.search(r"echo (\S+) \| chroot /target base64 -d", text)
    assert encoded
    late = base64.b64decode(encoded[1]).decode()
    script = late.partition("provisiond-first-boot <<'PROVISIOND-END'\n")[2].partition("PROVISIOND-END\n")[0]
    (tmp_path / "ssh").mkdir()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ssh/ssh_host_ed25519_key")],
        check=True,
    )
    script = script.replace("/etc/ssh", str(tmp_path / "ssh")).replace("sleep 5", "sleep 0.2")
    script = script.replace("/etc/systemd", str(tmp_path)).replace("/usr/local/sbin", str(tmp_path))
    script = script.replace("systemctl", f"echo >> {tmp_path}/asked").replace("ssh-keygen -A", "true")
    machines.refuse.add("phone-home")
    process = subprocess.Popen(["sh", "-c", script], stderr=subprocess.DEVNULL)
    machines.wait("phone-home")
    assert process.poll() is None
    machines.refuse.clear()
    assert process.wait(30) == 0
    fields = machines.heard[-1][1]
    assert (
        fields["pub_key_ed25519"].strip() == (tmp_path / "ssh/ssh_host_ed25519_key.pub").read_text().strip()
    )
    assert fields["instance_id"] == host.deployment.id if host.deployment else False
    assert "disable provisiond-first-boot.service" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("status", "script", "message"),
    [
        ('{"v1": {"init": {"errors": []}, "modules-config": {"errors": []}}}', None, None),
        (
            '{"v1": {"init": {"errors": []},\n "modules-config": {"errors": ["(\'ntp\', Boom)"]}}}',
            None,
            "cloud-init met errors",
        ),
        ('{"v1": {}}', "#!/bin/sh\nexit 3\n", "first_boot_script ended with status 3"),
        ('{"v1": {}}', "#!/bin/sh\nexit 0\n", None),
    ],
)
def test_cloud_init_reports_failure(
    machines: Machines, tmp_path: Path, status: str, script: str | None, message: str | None
) -> None:
    """When a stage or the operator's script failed, that is reported and cloud-init is kept from phoning home; else nothing is said."""
    parameters: dict[str, Any] = {} if script is None else {"first_boot_script": script}
    user_data = yaml.safe_load(
        RENDERER.render(
            "cloud-init/user-data.j2", build_context(make_host(image=IMAGE, **parameters), machines.urls)
        )
    )
    for name in ("run/cloud-init", "var/log", "var/lib"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run/cloud-init/status.json").write_text(status)
    (tmp_path / "var/log/cloud-init-output.log").write_text(ODD)
    for file in user_data["write_files"]:
        path = tmp_path / file["path"].lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        decoded = subprocess.run(
            ["base64", "-d"], input=file["content"], capture_output=True, text=True, check=True
        ).stdout
        if path.name == "report":
            decoded = decoded.replace("/run/cloud-init", f"{tmp_path}/run/cloud-init").replace(
                "/var/", f"{tmp_path}/var/"
            )
        path.write_text(decoded)
        path.chmod(int(file["permissions"], 8))
    (command,) = user_data["runcmd"]
    done = subprocess.run(
        [str(tmp_path / command[0].lstrip("/"))], capture_output=True, text=True, timeout=60, check=False
    )
    held_back = (tmp_path / "var/lib/cloud/instance/sem/config_phone_home").exists()
    if message is None:
        assert (done.returncode, machines.heard, held_back) == (0, [], False), done.stderr
        assert not (tmp_path / "var/lib/provisiond").exists()
    else:
        assert (done.returncode, machines.heard, held_back) == (
            1,
            [("failed", {"message": message, "log": ODD})],
            True,
        )
