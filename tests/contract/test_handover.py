"""The contract of the handover room, over every driver: the fake, and script and ansible against a real sshd started here."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from provisiond.drivers import load
from provisiond.drivers.handover import Handover, HandoverTarget, Run, RunState
from provisiond.drivers.handover.fake import FakeHandover
from provisiond.drivers.handover.processes import of_run
from provisiond.errors import DriverRejected

REAL = ("script", "ansible")
GIT = ("https", "ssh", "file")


def free_port() -> int:
    """A TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path) -> str:
    """A new ed25519 key pair; its public key as `type base64`."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


@dataclass
class Sshd:
    """A real sshd on the loopback with keys of its own."""

    folder: Path
    port: int
    host_key: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "log")]
        )
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait()
            self.process = None
            for pid in self._left_behind():
                os.kill(pid, signal.SIGKILL)

    def _left_behind(self) -> list[int]:
        """What sessions of this server still run: the far side of a run whose near side was killed."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                mine = f" 127.0.0.1 {self.port}".encode()
                if any(
                    v.startswith(b"SSH_CONNECTION=") and v.endswith(mine)
                    for v in (entry / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(entry.name))
        return found


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path, as control sockets have little room for theirs."""
    if os.geteuid() or not shutil.which("/usr/sbin/sshd"):
        pytest.skip("needs root and openssh-server")
    path = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def configure(folder: Path) -> Sshd:
    """An sshd that lets root in with folder/key, not yet started."""
    server = Sshd(folder, free_port(), make_key(folder / "host"))
    make_key(folder / "key")
    shutil.copy(folder / "key.pub", folder / "authorized")
    (folder / "sshd_config").write_text(
        f"Port {server.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    )
    return server


@pytest.fixture(scope="module")
def sshd(folder: Path) -> Iterator[Sshd]:
    """A running sshd."""
    server = configure(folder)
    server.start()
    yield server
    server.stop()


@dataclass
class Rig:
    """A driver with targets that succeed, fail or take long; each writes a line to ``trace`` when it runs."""

    name: str
    driver: Handover
    target: HandoverTarget
    trace: Path
    runs: Path | None = None
    keys: list[str] = field(default_factory=list)

    def make(self, what: str, key: str = "", **changes: Any) -> HandoverTarget:
        """A target whose run does ``what``: succeed, fail or linger."""
        made = replace(
            self.target, key=key or f"{self.name}-{what}-{len(self.keys)}-{time.monotonic_ns()}", **changes
        )
        self.keys.append(made.key)
        if isinstance(self.driver, FakeHandover):
            self.driver.polls = {"linger": 10**6}.get(what, 1)
            self.driver.fails = {made.host} if what == "fail" else set()
        elif self.name == "script":
            texts = {
                "succeed": "echo all done",
                "fail": "echo about to fail; exit 7",
                "linger": "echo begun; sleep 300; echo never",
            }
            made = replace(made, settings={"text": f"echo {what} >> {self.trace}\n{texts[what]}\n"})
        else:
            made = replace(
                made, settings={"directory": str(self.trace.parent / "play"), "playbook": f"{what}.yml"}
            )
        return made

    async def wait(
        self,
        key: str,
        until: Callable[[Run], bool] = lambda r: r.state is not RunState.RUNNING,
        seconds: float = 90,
    ) -> Run:
        """Poll as the lifecycle does until ``until``; the last answer with the whole output."""
        output, offset, deadline = "", 0, time.monotonic() + seconds
        while True:
            run = await self.driver.poll(key, offset)
            output, offset = output + run.output, run.offset
            if until(replace(run, output=output)):
                return replace(run, output=output)
            assert time.monotonic() < deadline, f"still {run.state} after {seconds} s: {output}"
            await asyncio.sleep(0.05)

    def ran(self) -> list[str]:
        return self.trace.read_text().split() if self.trace.exists() else []


async def none_left(run: Path) -> bool:
    """Whether all processes of the run are gone; its supervisor may take a moment after it wrote the result."""
    for _ in range(600):
        if not list(of_run(run)):
            return True
        await asyncio.sleep(0.05)
    return False


PLAYS = {
    "succeed": [
        {"name": "leave a trace", "ansible.builtin.raw": "echo succeed >> TRACE"},
        {"name": "say it", "ansible.builtin.debug": {"msg": "all done"}},
    ],
    "fail": [
        {
            "name": "break on purpose",
            "ansible.builtin.raw": "echo fail >> TRACE; echo about to fail >&2; exit 7",
        }
    ],
    "linger": [
        {"name": "leave a trace", "ansible.builtin.raw": "echo linger >> TRACE"},
        {"name": "linger", "ansible.builtin.raw": "sleep 300"},
    ],
}


def write_plays(folder: Path, trace: Path) -> None:
    """The playbooks, with an ansible.cfg that tries to turn the check of host keys off."""
    folder.mkdir(parents=True)
    (folder / "ansible.cfg").write_text(
        "[defaults]\nhost_key_checking = False\n"
        "[ssh_connection]\nssh_args = -o StrictHostKeyChecking=no\nssh_common_args = -o StrictHostKeyChecking=no\n"
    )
    for name, tasks in PLAYS.items():
        text = json.dumps([{"hosts": "web", "gather_facts": False, "tasks": tasks}]).replace(
            "TRACE", str(trace)
        )
        (folder / f"{name}.yml").write_text(text)


@pytest_asyncio.fixture(params=["fake", "fake-directory", *REAL])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Each driver; the real ones against sshd."""
    if request.param.startswith("fake"):
        directory = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
        target = HandoverTarget(key="x", host="web01", address="127.0.0.1")
        yield Rig(
            "fake",
            FakeHandover(directory / "runs" if request.param != "fake" else None),
            target,
            directory / "trace",
        )
        shutil.rmtree(directory)
        return
    async for made in real_rig(request.param, request.getfixturevalue("sshd")):
        yield made


@pytest_asyncio.fixture(params=REAL)
async def real(request: pytest.FixtureRequest, sshd: Sshd) -> AsyncIterator[Rig]:
    """The drivers that do something."""
    async for made in real_rig(request.param, sshd):
        yield made


@pytest_asyncio.fixture
async def ansible(sshd: Sshd) -> AsyncIterator[Rig]:
    """The ansible driver."""
    async for made in real_rig("ansible", sshd):
        yield made


async def real_rig(name: str, server: Sshd) -> AsyncIterator[Rig]:
    """A driver with directories of its own; afterwards none of its processes is left."""
    folder = Path(tempfile.mkdtemp(dir=server.folder))
    write_plays(folder / "play", folder / "trace")
    runs = folder / "r"
    target = HandoverTarget(
        key="x", host="web01", address="127.0.0.1", port=server.port, ssh_key=str(server.folder / "key"), host_keys=(server.host_key,),
        groups=("all", "web", "web-front"), parameters={"colour": "blue", "secret": "s3cr3t-in-no-argv"}, timeout=60,
    )  # fmt: skip
    made = Rig(name, load("handover", name)(runs, protocols=GIT), target, folder / "trace", runs)
    yield made
    for key in made.keys:
        await made.driver.cancel(key)
        assert await none_left(runs / key)
    await made.driver.close()


async def test_success(rig: Rig) -> None:
    """A run ends with its output in pieces that fit together, and figures per host; applied again, it is found."""
    target = rig.make("succeed")
    first = await rig.driver.apply(target)
    assert first.key == target.key
    done = await rig.wait(target.key)
    assert done.state is RunState.SUCCEEDED, done
    assert "all" in done.output and "done" in done.output and done.offset == len(done.output.encode())
    assert done.stats["web01"]["ok"] >= 1 and done.stats["web01"]["failures"] == 0
    again = await rig.driver.apply(target)
    assert again.state is RunState.SUCCEEDED
    assert (await rig.driver.poll(target.key, done.offset)).output == ""
    if rig.name != "fake":
        assert rig.ran() == ["succeed"]


async def test_failure(rig: Rig) -> None:
    """A failing run says which task or status failed, and what it printed is in the output."""
    target = rig.make("fail")
    await rig.driver.apply(target)
    done = await rig.wait(target.key)
    assert done.state is RunState.FAILED and done.message
    assert done.stats["web01"]["failures"] == 1
    if rig.name != "fake":
        assert "about to fail" in done.output
        assert {"script": "status 7", "ansible": "break on purpose"}[rig.name] in done.message


async def test_cancel(rig: Rig) -> None:
    """A cancelled run is over at once, with every process of it; cancelling again, or what never was, is fine."""
    target = rig.make("linger")
    await rig.driver.apply(target)
    if rig.name != "fake":
        while rig.ran() != ["linger"]:
            await asyncio.sleep(0.05)
    began = time.monotonic()
    await rig.driver.cancel(target.key)
    assert time.monotonic() - began < 15
    assert (await rig.wait(target.key)).state is RunState.CANCELLED
    await rig.driver.cancel(target.key)
    await rig.driver.cancel("never-was")
    if rig.runs:
        assert await none_left(rig.runs / target.key)


async def test_unknown_run(rig: Rig) -> None:
    """A run that never was is FAILED with a message."""
    run = await rig.driver.poll("never-was")
    assert run.state is RunState.FAILED and run.message


async def test_wrong_host_key(real: Rig, folder: Path) -> None:
    """When another key answers, nothing runs, whatever ansible.cfg says; the message says so, and no waiting is done."""
    make_key(folder / f"other-{real.name}")
    other = " ".join((folder / f"other-{real.name}.pub").read_text().split()[:2])
    target = real.make("succeed", host_keys=(other,))
    began = time.monotonic()
    await real.driver.apply(target)
    done = await real.wait(target.key)
    assert done.state is RunState.FAILED and "SSH host key is not the one it told" in done.message
    assert real.ran() == [] and time.monotonic() - began < 20


async def test_no_host_key_is_rejected(real: Rig) -> None:
    """A machine that told no host key is never trusted at first sight."""
    with pytest.raises(DriverRejected, match="told no SSH host key"):
        await real.driver.apply(real.make("succeed", host_keys=()))


async def test_login_refused(real: Rig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key the machine does not take ends in a message about that (with the time limit here, else after 30 s)."""
    make_key(folder / f"stranger-{real.name}")
    target = real.make("succeed", ssh_key=str(folder / f"stranger-{real.name}"), timeout=3.0)
    await real.driver.apply(target)
    done = await real.wait(target.key)
    assert done.state is RunState.FAILED and "Permission denied" in done.message and real.ran() == []


async def test_timeout(real: Rig) -> None:
    """A run past its time is ended with all its processes and says how long it had."""
    target = real.make("linger", timeout=8.0)
    await real.driver.apply(target)
    done = await real.wait(target.key)
    assert done.state is RunState.FAILED and "not done after 8 s" in done.message
    assert real.runs and await none_left(real.runs / target.key)


async def test_unreachable_then_reachable(real: Rig) -> None:
    """A machine that is not up yet is waited for."""
    other = Path(tempfile.mkdtemp(prefix="ph", dir="/tmp"))
    server = configure(other)
    target = real.make("succeed", port=server.port, host_keys=(server.host_key,), ssh_key=str(other / "key"))
    await real.driver.apply(target)
    waiting = await real.wait(target.key, lambda r: "waiting for SSH" in r.output)
    assert waiting.state is RunState.RUNNING and "refused" in waiting.output
    server.start()
    try:
        assert (await real.wait(target.key)).state is RunState.SUCCEEDED
    finally:
        server.stop()
        shutil.rmtree(other)


async def test_daemon_killed_in_the_middle(real: Rig) -> None:
    """The run goes on when the daemon is killed; the next daemon finds it by its key, and it ran once."""
    assert real.runs
    target = real.make("succeed")
    program = (
        "import asyncio, pickle, sys, time\n"
        "name, runs, target = pickle.loads(sys.stdin.buffer.read())\n"
        "from provisiond.drivers import load\n"
        "asyncio.run(load('handover', name)(runs).apply(target))\n"
        "print('begun', flush=True)\ntime.sleep(100)\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert daemon.stdin and daemon.stdout
    daemon.stdin.write(pickle.dumps((real.name, real.runs, target)))
    daemon.stdin.close()
    assert daemon.stdout.readline() == b"begun\n"
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    found = await real.driver.apply(target)
    assert found.state is RunState.RUNNING
    done = await real.wait(target.key)
    assert done.state is RunState.SUCCEEDED and real.ran() == ["succeed"]


async def test_supervisor_killed(real: Rig) -> None:
    """When the run's own process is killed the run is FAILED and says so, what it had started is ended, and it does not run again."""
    assert real.runs
    target = real.make("linger")
    await real.driver.apply(target)
    while real.ran() != ["linger"]:
        await asyncio.sleep(0.05)
    os.kill(json.loads((real.runs / target.key / "begun").read_text())["pid"], signal.SIGKILL)
    done = await real.wait(target.key)
    assert done.state is RunState.FAILED and "cut off: its process was killed" in done.message
    assert await none_left(real.runs / target.key)
    assert (await real.driver.apply(target)).state is RunState.FAILED
    assert real.ran() == ["linger"]


async def test_many_at_once_run_once(real: Rig) -> None:
    """Several daemons that apply the same key at the same time start one run."""
    target = real.make("succeed")
    drivers = [real.driver, *(load("handover", real.name)(real.runs) for _ in range(5))]
    await asyncio.gather(*(d.apply(target) for d in drivers))
    assert (await real.wait(target.key)).state is RunState.SUCCEEDED
    assert real.ran() == ["succeed"]
    for driver in drivers[1:]:
        assert (await driver.poll(target.key)).state is RunState.SUCCEEDED


async def test_secrets_stay_in_private_files(real: Rig) -> None:
    """No parameter is in an argument list, the run's files are its owner's alone, and those with parameters go at the end."""
    assert real.runs
    target = real.make("linger")
    await real.driver.apply(target)
    while real.ran() != ["linger"]:
        await asyncio.sleep(0.05)
    run = real.runs / target.key
    for pid in of_run(run):
        assert b"s3cr3t-in-no-argv" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"s3cr3t-in-no-argv" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert run.stat().st_mode & 0o077 == 0
    await real.driver.cancel(target.key)
    holders = [p for p in run.rglob("*") if p.is_file() and b"s3cr3t-in-no-argv" in p.read_bytes()]
    assert holders == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "no parameter 'ansible'"),
        ({"playbook": "site.yml"}, "either 'directory' or 'git'"),
        ({"playbook": "../site.yml", "directory": "/tmp"}, "below its directory"),
        ({"playbook": "nope.yml", "directory": "/tmp"}, "there is no playbook /tmp/nope.yml"),
        ({"playbook": "site.yml", "git": "ext::sh -c id"}, "ansible.git must be"),
        ({"playbook": "site.yml", "git": "http://example.org/x"}, "ansible.git must be"),
        ({"playbook": "site.yml", "git": "--upload-pack=id"}, "ansible.git must be"),
        ({"playbook": "site.yml", "git": "https://example.org/x", "ref": "--upload-pack=id"}, "ansible.ref"),
        ({"playbook": "site.yml", "git": "https://example.org/x", "extra": 1}, "unknown keys: extra"),
        ({"playbook": "site.yml", "git": "https://example.org/x", "tags": "all"}, "ansible.tags"),
    ],
)
async def test_wrong_settings_of_ansible(ansible: Rig, settings: dict[str, Any], said: str) -> None:
    """Wrong settings are rejected before anything is begun."""
    with pytest.raises(DriverRejected) as caught:
        await ansible.driver.apply(replace(ansible.target, key="wrong", settings=settings))
    assert said in str(caught.value) and "web01" in str(caught.value)
    assert ansible.runs and not (ansible.runs / "wrong").exists()


async def test_sources_are_a_fence(ansible: Rig, tmp_path: Path) -> None:
    """With handover.sources set, a playbook or repository from elsewhere is rejected."""
    assert ansible.runs
    fenced = load("handover", "ansible")(
        ansible.runs, sources=(str(tmp_path), "https://git.example.org/infra")
    )
    for settings in ({"directory": str(ansible.trace.parent / "play"), "playbook": "succeed.yml"},
                     {"git": "https://git.example.org/infrastructure-of-others", "playbook": "site.yml"}):  # fmt: skip
        with pytest.raises(DriverRejected, match=r"not below any of handover\.sources"):
            await fenced.apply(replace(ansible.target, key="fenced", settings=settings))


async def test_ansible_from_git(ansible: Rig, tmp_path: Path) -> None:
    """A playbook comes from a branch of a repository; a branch that is not there is a failure that says so."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    write_plays(tmp_path / "plays", ansible.trace)
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "x"], ["branch", "stable"]):
        subprocess.run([*git, *command], check=True)
    settings = {"git": f"file://{tmp_path}", "ref": "stable", "playbook": "plays/succeed.yml"}
    target = replace(ansible.make("succeed"), settings=settings)
    await ansible.driver.apply(target)
    done = await ansible.wait(target.key)
    assert done.state is RunState.SUCCEEDED and ansible.ran() == ["succeed"], done
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert head in done.output
    missing = replace(ansible.make("succeed"), settings={**settings, "ref": "nowhere"})
    await ansible.driver.apply(missing)
    done = await ansible.wait(missing.key)
    assert done.state is RunState.FAILED and "cannot fetch" in done.message and "nowhere" in done.message


async def test_parameters_are_data_for_ansible(ansible: Rig) -> None:
    """Parameters arrive as they are: none is taken for a template, none changes how the machine is reached."""
    evil = ansible.trace.parent / "evil"
    play = [
        {
            "hosts": "web_front",
            "gather_facts": False,
            "tasks": [
                {
                    "ansible.builtin.debug": {
                        "msg": "{{ greeting }} {{ provisiond.groups | join('/') }} {{ numbers }}"
                    }
                }
            ],
        }
    ]
    (ansible.trace.parent / "play" / "show.yml").write_text(json.dumps(play))
    parameters = {
        "greeting": f"{{{{ lookup('pipe', 'touch {evil}') }}}}", "numbers": [1, {"a": "b: c # d"}], "ansible_host": "192.0.2.1",
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=no", "not a name": 1, "ansible": {"git": "https://token@example.org/"},
    }  # fmt: skip
    target = replace(
        ansible.make("succeed", parameters=parameters),
        settings={"directory": str(ansible.trace.parent / "play"), "playbook": "show.yml"},
    )
    await ansible.driver.apply(target)
    done = await ansible.wait(target.key)
    assert done.state is RunState.SUCCEEDED, done
    assert "lookup('pipe'" in done.output and "all/web/web-front" in done.output and "b: c # d" in done.output
    assert not evil.exists()


async def test_play_for_nobody(ansible: Rig) -> None:
    """A playbook that has no play for the host is not a success."""
    (ansible.trace.parent / "play" / "nobody.yml").write_text(
        json.dumps([{"hosts": "database", "tasks": []}])
    )
    target = replace(
        ansible.make("succeed"),
        settings={"directory": str(ansible.trace.parent / "play"), "playbook": "nobody.yml"},
    )
    await ansible.driver.apply(target)
    done = await ansible.wait(target.key)
    assert done.state is RunState.FAILED and "no play for host web01" in done.message


async def test_script_reads_its_variables(sshd: Sshd) -> None:
    """The script knows its host, groups and parameters, whatever is in them."""
    async for rig in real_rig("script", sshd):
        text = (
            'echo "$PROVISIOND_HOST" "$PROVISIOND_GROUPS"; printf "%s" "$PROVISIOND_PARAMETERS"; echo é >&2\n'
        )
        target = replace(
            rig.make("succeed", parameters={"nasty": 'it\'s $(id) `id`\n"x"'}), settings={"text": text}
        )
        await rig.driver.apply(target)
        done = await rig.wait(target.key)
        assert done.state is RunState.SUCCEEDED and done.output.startswith("web01 all web web-front\n"), done
        assert json.loads(done.output.split("\n", 1)[1].replace("é\n", "")) == {
            "nasty": 'it\'s $(id) `id`\n"x"'
        }


async def test_script_cancel_ends_the_far_side(sshd: Sshd) -> None:
    """Cancelling ends the script on the machine too, with its children."""
    async for rig in real_rig("script", sshd):
        target = replace(rig.make("linger"), settings={"text": f"echo $$ > {rig.trace}\nsleep 321 & wait\n"})
        await rig.driver.apply(target)
        while not rig.ran():
            await asyncio.sleep(0.05)
        pid = int(rig.ran()[0])
        await rig.driver.cancel(target.key)
        for _ in range(300):
            if not Path(f"/proc/{pid}").exists():
                break
            await asyncio.sleep(0.1)
        assert not Path(f"/proc/{pid}").exists()
        sleeping = [p for p in Path("/proc").glob("[0-9]*/cmdline") if p.read_bytes() == b"sleep\x00321\x00"]
        assert sleeping == []


async def test_much_output(sshd: Sshd) -> None:
    """All of a long output is handed over, in pieces that never split a character, before the run counts as ended."""
    async for rig in real_rig("script", sshd):
        target = replace(
            rig.make("succeed"),
            settings={"text": "i=0; while [ $i -lt 20000 ]; do echo ä$i-ö€😀-ende; i=$((i+1)); done\n"},
        )
        await rig.driver.apply(target)
        done = await rig.wait(target.key)
        assert done.output == "".join(f"ä{i}-ö€😀-ende\n" for i in range(20000))
