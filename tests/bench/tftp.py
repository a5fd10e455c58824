"""TFTP throughput of provisiond beside tftpd-hpa and dnsmasq: 1, 10, 100 and 500 clients at once, 1 MiB each, blksize 1428.

Prints ``name value unit peer`` lines: MB/s of all clients together, and for windowsize 4 (UEFI firmware asks for it) where the
server knows it. Every server runs in a process of its own inside one network namespace and is asked by the same client, in
processes of their own; each figure is the best of the rounds, taken in turn so that all see the same machine.

    python -m tests.bench.tftp [--rounds N] [--clients 1,10,100,500]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import multiprocessing
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.kit.netns import Netns

SIZE = 1 << 20
BLKSIZE = 1428
HOST = "10.77.0.1"
RETRY = 2.0  # seconds of silence after which a client sends again


# --- the client -------------------------------------------------------------------------------------------


class Client:
    """Fetches one file; ``None`` from ``take`` while under way."""

    __slots__ = ("asked", "block", "done", "last", "request", "server", "since", "sock", "sum", "window")

    def __init__(self, server: tuple[str, int], window: int, check: bool) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind((HOST, 0))
        self.sock.setblocking(False)
        options = f"blksize\0{BLKSIZE}\0" + (f"windowsize\0{window}\0" if window > 1 else "")
        self.request = b"\0\1big\0octet\0" + options.encode()
        self.server, self.window = server, window
        self.asked, self.done, self.block, self.since = True, False, 0, 0
        self.sum = hashlib.md5() if check else None
        self.sock.sendto(self.request, server)
        self.last = time.monotonic()

    def take(self) -> None:
        while not self.done:
            try:
                if self.asked:
                    data, sender = self.sock.recvfrom(BLKSIZE + 4)
                    self.sock.connect(sender)
                    self.asked = False
                else:
                    data = self.sock.recv(BLKSIZE + 4)
            except BlockingIOError:
                return
            if data[1] == 6:
                self.sock.send(b"\0\4\0\0")
            elif data[1] == 3:
                if data[2:4] != (self.block + 1).to_bytes(2, "big"):
                    continue
                self.block += 1
                self.since += 1
                if self.sum:
                    self.sum.update(memoryview(data)[4:])
                self.done = len(data) < BLKSIZE + 4
                if self.done or self.since == self.window:
                    self.since = 0
                    self.sock.send(b"\0\4" + data[2:4])
            else:
                raise RuntimeError(f"the server said {data!r}")
            self.last = time.monotonic()

    def again(self, now: float) -> None:
        if now - self.last > RETRY:
            self.last = now
            if self.asked:
                self.sock.sendto(self.request, self.server)
            else:
                self.sock.send(b"\0\4" + self.block.to_bytes(2, "big"))


def fetch_all(
    namespace: str, port: int, count: int, window: int, gate: Any, digest: str, result: Any
) -> None:
    """``count`` clients at once in this process, from when ``gate`` opens."""
    with Netns.attach(namespace).enter():
        gate.wait()
        clients = {}
        for number in range(count):
            client = Client((HOST, port), window, check=number == 0)
            clients[client.sock.fileno()] = client
        first = next(iter(clients.values()))
        poll = select.epoll()
        for descriptor in clients:
            poll.register(descriptor, select.EPOLLIN)
        swept = time.monotonic()
        while clients:
            for descriptor, _ in poll.poll(0.5):
                client = clients[descriptor]
                client.take()
                if client.done:
                    poll.unregister(descriptor)
                    del clients[descriptor]
                    client.sock.close()
            now = time.monotonic()
            if now - swept > 0.5:
                swept = now
                for client in clients.values():
                    client.again(now)
    result.put((time.monotonic(), first.sum is not None and first.sum.hexdigest() == digest))


def measure(namespace: str, port: int, count: int, window: int, digest: str) -> float:
    """MB/s of ``count`` clients together."""
    context = multiprocessing.get_context("fork")
    gate, result = context.Event(), context.Queue()
    processes = min(count, 2)
    shares = [count // processes + (i < count % processes) for i in range(processes)]
    running = [
        context.Process(target=fetch_all, args=(namespace, port, share, window, gate, digest, result))
        for share in shares
    ]
    for process in running:
        process.start()
    time.sleep(0.2)
    began = time.monotonic()
    gate.set()
    ends = [result.get(timeout=300) for _ in running]
    for process in running:
        process.join()
    if not all(good for _, good in ends):
        raise RuntimeError("what came is not what was served")
    return count * SIZE / 1e6 / (max(end for end, _ in ends) - began)


# --- the servers ------------------------------------------------------------------------------------------


def serve_ours(namespace: str, root: Path, port: int) -> None:
    """provisiond's TFTP server as the daemon runs it (uvloop), in this process."""
    import logging

    import structlog
    import uvloop

    from provisiond.boot.tftp import TftpServer

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))

    async def lookup(path: str, client: str) -> bytes | Path | None:
        return root / path if path == "big" else None

    async def life() -> None:
        server = TftpServer([HOST], port, lookup, max_per_client=1000)
        await server.start()
        await asyncio.Event().wait()

    with Netns.attach(namespace).enter():
        uvloop.run(life())


@contextmanager
def servers(lab: Netns, root: Path) -> Iterator[dict[str, int]]:
    """All servers, each on a port of its own; those whose program is missing are left out."""
    ports = {"provisiond": 1069}
    children = [
        subprocess.Popen([sys.executable, "-m", "tests.bench.tftp", "--serve", lab.name, str(root), "1069"])
    ]
    if shutil.which("in.tftpd"):
        ports["tftpd-hpa"] = 1070
        argv = [
            "in.tftpd",
            "--foreground",
            "--user",
            "root",
            "--address",
            f"{HOST}:1070",
            "--secure",
            str(root),
        ]
        children.append(lab.exec(argv))
    if shutil.which("dnsmasq"):
        # dnsmasq serves TFTP on port 69 only; its limit of transfers is 50 unless told otherwise
        ports["dnsmasq"] = 69
        argv = [
            "dnsmasq",
            "--keep-in-foreground",
            "--port=0",
            "--enable-tftp",
            f"--tftp-root={root}",
            "--conf-file=/dev/null",
        ]
        argv += [
            f"--listen-address={HOST}",
            "--bind-interfaces",
            "--user=root",
            "--tftp-max=1000",
            "--pid-file",
            "--log-facility=/dev/null",
        ]
        children.append(lab.exec(argv))
    try:
        time.sleep(2)
        yield ports
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,10,100,500")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve_ours(options.serve[0], Path(options.serve[1]), int(options.serve[2]))
        return
    with tempfile.TemporaryDirectory(prefix="pvbench-") as directory, Netns(addresses=(f"{HOST}/24",)) as lab:
        root = Path(directory)
        root.chmod(0o755)
        content = os.urandom(SIZE)
        (root / "big").write_bytes(content)
        digest = hashlib.md5(content).hexdigest()
        with servers(lab, root) as ports:
            for count in map(int, options.clients.split(",")):
                for window in (1, 4):
                    peers = {peer: port for peer, port in ports.items() if window == 1 or peer != "tftpd-hpa"}
                    if window > 1:
                        peers.pop("dnsmasq", None)  # 2.90 does not know windowsize
                    best = dict.fromkeys(peers, 0.0)
                    for _ in range(options.rounds):
                        for peer, port in peers.items():
                            best[peer] = max(best[peer], measure(lab.name, port, count, window, digest))
                    name = f"tftp_{count}_clients" + (f"_window_{window}" if window > 1 else "")
                    for peer, value in best.items():
                        print(f"{name} {value:.1f} MB/s {peer}", flush=True)


if __name__ == "__main__":
    main()
