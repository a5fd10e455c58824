"""The ground of the lab: a network namespace with a bridge and no route outside.

    with Netns() as ns:
        ns.exec(["dnsmasq", ...])                 # a process inside
        with ns.enter():                          # a socket made inside, used by this process outside
            sock = socket.create_server(("10.77.0.1", 80))

Needs root. The namespace's name holds the pid of its maker, so that ``reap()`` can remove what a killed test run left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

RUN = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # sched.h; Python 3.11 has no os.setns
_libc = ctypes.CDLL(None, use_errno=True)


class Netns:
    """One namespace; ``addresses`` (CIDR) are those of ``bridge``, the lab's own end of its network."""

    def __init__(
        self,
        name: str | None = None,
        *,
        bridge: str = "br-lab",
        addresses: Sequence[str] = ("10.77.0.1/24", "fd77::1/64"),
    ) -> None:
        self.name = name or f"pvlab-{os.getpid()}-{secrets.token_hex(3)}"
        self.bridge, self.addresses = bridge, tuple(addresses)

    @classmethod
    def attach(cls, name: str) -> Netns:
        """One that an earlier process made (its bridge is taken to be the default)."""
        return cls(name)

    @property
    def path(self) -> Path:
        return RUN / self.name

    @property
    def exists(self) -> bool:
        return self.path.exists()

    # --- up and down ---------------------------------------------------------------------------------

    def up(self) -> Netns:
        """Make it; one that is there already is completed."""
        if not self.exists:
            _ip("netns", "add", self.name)
        try:
            return self._wire()
        except BaseException:
            self.down()
            raise

    def _wire(self) -> Netns:
        self.ip("link", "set", "lo", "up")
        if self.bridge:
            self.add_bridge(self.bridge, self.addresses)
        return self

    def down(self) -> None:
        """End the processes inside (SIGTERM, after 3 s SIGKILL), by pid, and remove the namespace. Absent is fine."""
        if not self.exists:
            return
        end(self.pids)
        _ip("netns", "del", self.name)

    def __enter__(self) -> Netns:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # --- wiring -----------------------------------------------------------------------------------------

    def ip(self, *argv: str) -> str:
        """Run ``ip`` on this namespace."""
        return _ip("-n", self.name, *argv)

    def add_bridge(self, bridge: str, addresses: Sequence[str] = ()) -> None:
        """A bridge without spanning tree or forwarding delay (a booting machine's first DHCP packet must pass)."""
        if subprocess.run(["ip", "-n", self.name, "link", "show", bridge], capture_output=True).returncode:
            self.ip("link", "add", bridge, "type", "bridge", "stp_state", "0", "forward_delay", "0")
            # a bridge without ports has no carrier, and then IPv6 sockets cannot be bound to its addresses
            port, far = f"{bridge[:12]}-p", f"{bridge[:12]}-q"
            self.ip("link", "add", port, "type", "veth", "peer", "name", far)
            self.ip("link", "set", port, "master", bridge, "up")
            self.ip("link", "set", far, "up")
        for address in addresses:
            self.ip("addr", "replace", address, "dev", bridge, *(["nodad"] if ":" in address else []))
        self.ip("link", "set", bridge, "up")

    def add_tap(self, tap: str, bridge: str | None = None) -> str:
        """A tap device on the bridge, for a QEMU started by hand."""
        self.ip("tuntap", "add", tap, "mode", "tap")
        self.ip("link", "set", tap, "master", bridge or self.bridge, "up")
        return tap

    def plug(self, other: Netns, interface: str = "eth0", addresses: Sequence[str] = ()) -> None:
        """Give namespace ``other`` (made with ``bridge=""``) a card on this one's bridge, by a veth pair."""
        port = f"v{secrets.token_hex(5)}"
        self.ip("link", "add", port, "type", "veth", "peer", "name", interface, "netns", other.name)
        self.ip("link", "set", port, "master", self.bridge, "up")
        for address in addresses:
            other.ip("addr", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))
        other.ip("link", "set", interface, "up")

    # --- life inside --------------------------------------------------------------------------------------

    def argv(self, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
        """``argv`` with what is needed in front for it to run inside (the pid stays that of the program)."""
        return ["ip", "netns", "exec", self.name, *(os.fspath(word) for word in argv)]

    def exec(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[Any]:
        """Start a process inside; ``options`` are Popen's. Whoever starts it waits for it; ``down()`` ends what is left."""
        return subprocess.Popen(self.argv(argv), **options)

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        check: bool = True,
        timeout: float = 60,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return its output as text; CalledProcessError tells what it said."""
        options = {"capture_output": True, "text": True, **options}
        done: subprocess.CompletedProcess[str] = subprocess.run(self.argv(argv), timeout=timeout, **options)
        if check and done.returncode:
            raise RuntimeError(
                f"{list(map(str, argv))} ended with {done.returncode}: {done.stderr or done.stdout}"
            )
        return done

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """The calling thread is inside for the length of the block; sockets made there stay inside. Never await in it."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(there)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(there)
            os.close(home)

    def listen(self, host: str, port: int = 0) -> socket.socket:
        """A TCP socket listening inside, not blocking (for ``loop.create_server(sock=...)`` or aiohttp's SockSite)."""
        with self.enter():
            sock = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128
            )
        sock.setblocking(False)
        return sock

    def udp(self, host: str, port: int = 0) -> socket.socket:
        """A bound UDP socket inside, not blocking."""
        with self.enter():
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((host, port))
        sock.setblocking(False)
        return sock

    def connect(self, host: str, port: int, timeout: float = 5.0) -> socket.socket:
        """A TCP connection made inside."""
        with self.enter():
            return socket.create_connection((host, port), timeout)

    def pids(self) -> list[int]:
        """The processes inside, this one left out."""
        if not self.exists:
            return []
        return [pid for pid in map(int, _ip("netns", "pids", self.name).split()) if pid != os.getpid()]


def reap() -> list[str]:
    """Take down the namespaces whose maker is dead (a test run that was killed); returns their names."""
    gone = []
    for path in RUN.glob("pvlab-*") if RUN.exists() else ():
        maker = re.fullmatch(r"pvlab-(\d+)-[0-9a-f]{6}", path.name)
        if maker and not Path(f"/proc/{maker[1]}").exists():
            Netns(path.name).down()
            gone.append(path.name)
    return gone


def end(pids: Any, patience: float = 3.0) -> None:
    """SIGTERM to every pid that ``pids()`` lists, then SIGKILL to those still there after ``patience`` seconds."""
    for sign, wait in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        for pid in pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        until = time.monotonic() + wait
        while _alive(pids()):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        else:
            return


def _alive(pids: Sequence[int]) -> bool:
    """Whether any of them still runs; a zombie waits only for its parent."""
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return True
    return False


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _ip(*argv: str) -> str:
    done = subprocess.run(["ip", *argv], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout
