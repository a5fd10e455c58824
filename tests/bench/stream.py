"""One image to fifty machines at once: MB/s, and the server's processor time for each GiB, beside other ways to send a file.

Peers, in the same run over the loopback: aiohttp's FileResponse on asyncio (sendfile) and on uvloop (which has none: read and
write), and nginx where it is installed. Each server runs in a process of its own; the clients throw away what they get without
copying it (MSG_TRUNC). Each figure is the best of the rounds, taken in turn.

    python -m tests.bench.stream [--rounds N] [--clients 50] [--mib 128]
"""

from __future__ import annotations

import argparse
import asyncio
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
from typing import TextIO

MIB = 1 << 20
GIB = 1 << 30
HERE = "127.0.0.1"


# --- the clients ----------------------------------------------------------------------------------------


def fetch_all(port: int, clients: int, size: int) -> float:
    """Seconds until all have everything."""
    poll, left, socks = select.epoll(), {}, {}
    begun = time.monotonic()
    for number in range(clients):
        sock = socket.create_connection((HERE, port))
        sock.sendall(
            f"GET /image?machine=m{number} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        assert b" 200 " in head.split(b"\r\n", 1)[0], head
        left[sock.fileno()] = size - len(head.split(b"\r\n\r\n", 1)[1])
        socks[sock.fileno()] = sock
        sock.setblocking(False)
        poll.register(sock, select.EPOLLIN)
    nothing = bytearray(4 * MIB)
    while socks:
        for descriptor, _ in poll.poll(10):
            got = socks[descriptor].recv_into(nothing, len(nothing), socket.MSG_TRUNC)
            left[descriptor] -= got
            if not got or left[descriptor] <= 0:
                assert left[descriptor] == 0, "the server broke off"
                poll.unregister(descriptor)
                socks.pop(descriptor).close()
    return time.monotonic() - begun


# --- the servers ----------------------------------------------------------------------------------------


def serve(kind: str, path: Path) -> None:
    """One of ours or aiohttp's, in this process; prints its port."""
    import uvloop
    from aiohttp import web

    from provisiond.boot.image_source import ImageSource
    from provisiond.boot.shares import Limits, Shares
    from provisiond.boot.stream import send_image

    source = ImageSource(path, "zstd", [(0, path.stat().st_size)], "x", None, 0)
    shares, limits = Shares(), Limits("rack", 0, 0)

    async def ours(request: web.Request) -> web.StreamResponse:
        return await send_image(request, source, shares, limits, request.query["machine"])

    async def theirs(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    async def life() -> None:
        app = web.Application()
        app.router.add_get("/image", ours if kind == "provisiond" else theirs)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, HERE, 0, backlog=256).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    if kind == "aiohttp_asyncio":
        asyncio.run(life())
    else:
        uvloop.run(life())


@contextmanager
def server(kind: str, path: Path) -> Iterator[tuple[int, int]]:
    """(pid of the process that serves, port)."""
    if kind == "nginx":
        with nginx(path) as found:
            yield found
        return
    argv = [sys.executable, "-m", "tests.bench.stream", "--serve", kind, str(path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        out: TextIO = child.stdout  # type: ignore[assignment]
        try:
            yield child.pid, int(out.readline())
        finally:
            child.send_signal(signal.SIGKILL)


@contextmanager
def nginx(path: Path) -> Iterator[tuple[int, int]]:
    """nginx with one worker and sendfile, as its documentation has it for large files."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        port = probe.getsockname()[1]
    folder = path.parent
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 256; }}\n"
        f"http {{ access_log off; sendfile on; sendfile_max_chunk 1m; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;"
        f" fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;\n"
        f"server {{ listen {HERE}:{port} backlog=256; location = /image {{ alias {path}; }} }} }}\n"
    )
    with subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")]) as child:
        try:
            for _ in range(100):
                with socket.socket() as sock:
                    if sock.connect_ex((HERE, port)) == 0:
                        break
                time.sleep(0.1)
            yield child.pid, port
        finally:
            child.terminate()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]))
        return
    kinds = ["provisiond", "aiohttp_asyncio", "aiohttp_uvloop", *(["nginx"] if shutil.which("nginx") else [])]
    size = options.mib * MIB
    rates, costs = dict.fromkeys(kinds, 0.0), dict.fromkeys(kinds, float("inf"))
    with tempfile.TemporaryDirectory(prefix="pvbench-") as directory:
        path = Path(directory) / "image"
        path.write_bytes(os.urandom(MIB) * options.mib)
        for _ in range(options.rounds):
            for kind in kinds:
                with server(kind, path) as (pid, port):
                    before = cpu_seconds(pid)
                    seconds = fetch_all(port, options.clients, size)
                    cost = (cpu_seconds(pid) - before) / (options.clients * size / GIB)
                    rates[kind] = max(rates[kind], options.clients * size / 1e6 / seconds)
                    costs[kind] = min(costs[kind], cost)
    for kind in kinds:
        print(f"image_{options.clients}_clients {rates[kind]:.0f} MB/s {kind}", flush=True)
        print(f"image_{options.clients}_clients_cpu {costs[kind]:.3f} s/GiB {kind}", flush=True)


if __name__ == "__main__":
    main()
