"""Action rescue: this machine becomes a place to repair its host from, with SSH by key, until the daemon calls it off.

The script that makes it so comes from the daemon (a template of kind rescue: network by the host's description, serial console,
the helper provisiond-chroot). Who may enter is said by the plan alone. No password opens SSH.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ramdisk_agent.run import run
from ramdisk_agent.work import Failed, Work

ROOT = Path("/")
SCRIPT = Path("/run/provisiond-rescue.sh")
PORT = 22
KEY = "etc/dropbear/dropbear_ed25519_host_key"
_LISTENS = "0A"  # TCP_LISTEN in /proc/net/tcp
STARTING = 20.0  # seconds that an SSH server may take to listen
LOOK = 2.0


def action(work: Work) -> dict[str, Any]:
    """Stay in rescue. Ends by Stopped; raises Failed where nobody could log in."""
    keys = [str(key).strip() for key in work.plan.get("keys") or () if str(key).strip()]
    if not keys:
        raise Failed("this rescue has no SSH key: nobody could log in; ask for it with --key")
    work.progress(1, "preparing the rescue")
    accounts(ROOT)
    fingerprint = host_key(ROOT)
    script = work.client.fetch("agent/rescue", lambda: work.progress(5, "asking for the rescue script"))
    work.progress(10, "the rescue script runs")
    _private(SCRIPT, script.decode(errors="replace"))
    run(["sh", str(SCRIPT)], timeout=300, check=False)  # what fails in it is said in the log
    admit(ROOT, keys)  # after the script: these and no others
    if not listens():
        run(["dropbear", "-R", "-s", "-p", str(PORT)])  # -s: no passwords
        until = time.monotonic() + STARTING
        while not listens():
            if time.monotonic() > until:
                raise Failed("the SSH server of the rescue did not start; see the log of this ramdisk")
            time.sleep(0.2)
    said = ""
    while True:
        address = own_address(work.client.url) or said or "ADDRESS"
        if address != said:
            said = address
            work.say(f"rescue: ssh root@{address}, host key {fingerprint}")
            work.say("provisiond-chroot enters the installed system")
        work.progress(100, f"rescue: ssh root@{address} (host key {fingerprint})")
        time.sleep(LOOK)


def accounts(root: Path) -> None:
    """What an SSH server looks root up in; a ramdisk has nobody else."""
    etc = root / "etc"
    etc.mkdir(exist_ok=True)
    shell = "/bin/bash" if (root / "bin/bash").exists() else "/bin/sh"
    for name, text in (
        ("passwd", f"root:x:0:0:root:/root:{shell}\n"),
        ("group", "root:x:0:\ntty:x:5:\n"),
        ("shells", "/bin/sh\n/bin/bash\n"),
    ):
        if not (etc / name).exists():
            (etc / name).write_text(text)
    if not (etc / "shadow").exists():
        _private(etc / "shadow", "root:*:19000:0:99999:7:::\n")


def host_key(root: Path) -> str:
    """Make a fresh host key; its fingerprint, such as SHA256:..."""
    place = root / KEY
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    return fingerprint(run(["dropbearkey", "-t", "ed25519", "-f", str(place)]))


def fingerprint(text: str) -> str:
    """Out of what dropbearkey says: 'Fingerprint: SHA256:...' (older ones: 'Fingerprint: sha1!! ...')."""
    lines = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("Fingerprint:")]
    return lines[0] if lines else "unknown"


def admit(root: Path, keys: list[str]) -> None:
    """Let the holders of these keys in, and nobody else."""
    folder = root / "root/.ssh"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (root / "root", folder):
        path.chmod(0o700)
    _private(folder / "authorized_keys", "".join(f"{key}\n" for key in keys))


def listens(port: int = PORT, proc: Path = Path("/proc")) -> bool:
    """Whether something listens on this TCP port."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                return True
    return False


def own_address(url: str) -> str | None:
    """The address this machine talks to the daemon from; None while there is no way to it."""
    parts = urlsplit(url)
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(
            parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM
        ):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(where)  # sends nothing
                return str(probe.getsockname()[0])
    except OSError:
        pass
    return None


def _private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    path.chmod(0o600)
