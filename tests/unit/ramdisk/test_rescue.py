"""Rescue: whom it lets in, what it tells, and that it ends only when it is called off."""

from __future__ import annotations

import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import rescue
from ramdisk_agent.client import Client
from ramdisk_agent.work import Failed, Stopped, Work

KEYS = ["ssh-ed25519 AAAAOne alice", "ssh-ed25519 AAAATwo bob"]
SAID = "Generating 256 bit ed25519 key, this may take a while...\nPublic key portion is:\nssh-ed25519 AAAA root@x\nFingerprint: SHA256:abc+/=\n"


class Told(Client):
    """A client that keeps what it is told, and calls the rescue off when it has said twice where to log in."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9")
        self.texts: list[str] = []

    def fetch(self, url: str, idle: Any = None) -> bytes:
        assert url == "agent/rescue"
        return b"echo rescue script\n"

    def report(self, id: str, percent: int, text: str, done: int, total: int) -> None:
        self.texts.append(text)
        if sum(text.startswith("rescue: ssh") for text in self.texts) == 2:
            raise Stopped("the rescue is over")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run; the script writes keys of its own, and an SSH server listens once dropbear was started."""
    ran: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> str:
        ran.append(argv)
        if argv[0] == "sh":
            assert "rescue script" in Path(argv[1]).read_text()
            (tmp_path / "root/.ssh").mkdir(parents=True)
            (tmp_path / "root/.ssh/authorized_keys").write_text("ssh-ed25519 AAAAOther mallory\n")
        return SAID if argv[0] == "dropbearkey" else ""

    monkeypatch.setattr(rescue, "run", run)
    monkeypatch.setattr(rescue, "ROOT", tmp_path)
    monkeypatch.setattr(rescue, "SCRIPT", tmp_path / "rescue.sh")
    monkeypatch.setattr(rescue, "LOOK", 0.0)
    monkeypatch.setattr(rescue, "STARTING", 0.3)
    monkeypatch.setattr(rescue, "listens", lambda: any(argv[0] == "dropbear" for argv in ran))
    return ran


def test_the_keys_of_the_plan_and_no_others(tmp_path: Path, programs: list[list[str]]) -> None:
    """Whatever the script wrote; files only root may read; the address and the host key's fingerprint are told."""
    told = Told()
    with pytest.raises(Stopped):
        rescue.action(Work({"id": "T1", "action": "rescue", "keys": KEYS}, told))
    keys = tmp_path / "root/.ssh/authorized_keys"
    assert keys.read_text().splitlines() == KEYS
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600 and stat.S_IMODE(keys.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "etc/shadow").stat().st_mode) == 0o600
    assert (tmp_path / "etc/passwd").read_text().startswith("root:x:0:0:")
    assert told.texts[-1] == "rescue: ssh root@127.0.0.1 (host key SHA256:abc+/=)"
    assert [argv for argv in programs if argv[0] == "dropbear"] == [["dropbear", "-R", "-s", "-p", "22"]]


def test_without_a_key_or_a_server_nobody_could_log_in(
    programs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are failures that say so, instead of a rescue that looks well."""
    with pytest.raises(Failed, match="no SSH key"):
        rescue.action(Work({"id": "T1", "action": "rescue", "keys": [" "]}, Told()))
    assert programs == []
    monkeypatch.setattr(rescue, "listens", lambda: False)
    with pytest.raises(Failed, match="did not start"):
        rescue.action(Work({"id": "T1", "action": "rescue", "keys": KEYS}, Told()))


def test_who_listens() -> None:
    """As the kernel tells it, for IPv4 and IPv6."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as server:
            server.bind((address, 0))
            port = server.getsockname()[1]
            assert not rescue.listens(port)
            server.listen()
            assert rescue.listens(port)


def test_fingerprints() -> None:
    """Of dropbearkey, also of one that says something else."""
    assert rescue.fingerprint(SAID) == "SHA256:abc+/="
    assert rescue.fingerprint("Fingerprint: sha1!! 12:34") == "sha1!! 12:34"
    assert rescue.fingerprint("") == "unknown"


def test_the_address_towards_the_daemon() -> None:
    """The one that packets to it would come from; none where there is no way."""
    assert rescue.own_address("http://127.0.0.1:8421/x") == "127.0.0.1"
    assert rescue.own_address("http://[::1]:8421") == "::1"
