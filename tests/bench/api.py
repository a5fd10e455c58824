"""The REST API under load: 8 clients against one whole daemon on this machine's cores, shared with the clients.

The daemon is on fake drivers; its engine verifies and inspects the created hosts meanwhile.

Prints one figure a line: name, value, unit, peer. The peer is Ironic (SQLite, fake hardware) as measured on the same kind of
machine: 14-22 creates/s, 54-75 GETs/s, 422 ms for a list of 1,000.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.lives import daemon

CLIENTS = 8
CREATES = 2000
GETS = 8000
LISTS = 15


class Client:
    """One connection, kept alive."""

    def __init__(self, url: str, token: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self.connection = http.client.HTTPConnection(host, int(port))
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        self.connection.request(
            method, "/api/v1" + path, json.dumps(body) if body is not None else None, self.headers
        )
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]!r}")
        return text


def create(url: str, token: str, number: int, gate: Any) -> None:
    """One client's share of the creates."""
    client = Client(url, token)
    client.call("GET", "/whoami")
    gate.wait()
    for i in range(CREATES // CLIENTS):
        n = number * 10_000 + i
        mac = f"52:54:00:{n >> 16 & 255:02x}:{n >> 8 & 255:02x}:{n & 255:02x}"
        bmc = {"driver": "fake", "address": f"b{number}-{i}", "username": "admin", "password": "secret"}
        body = {
            "name": f"h{number}-{i:05}",
            "mac": mac,
            "group": "bench",
            "bmc": bmc,
            "parameters": {"role": "web"},
        }
        client.call("POST", "/hosts", body)
    gate.wait()


def get(url: str, token: str, number: int, gate: Any) -> None:
    """One client's share of the GETs."""
    client = Client(url, token)
    client.call("GET", "/whoami")
    gate.wait()
    for i in range(GETS // CLIENTS):
        client.call("GET", f"/hosts/h{number}-{i % (CREATES // CLIENTS):05}")
    gate.wait()


def rate(work: Any, url: str, token: str, count: int) -> float:
    """Requests a second of all clients together."""
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(CLIENTS + 1)
    clients = [context.Process(target=work, args=(url, token, n, gate)) for n in range(CLIENTS)]
    for client in clients:
        client.start()
    gate.wait()
    began = time.perf_counter()
    gate.wait()
    took = time.perf_counter() - began
    for client in clients:
        client.join()
    return count / took


def main() -> None:
    """Run the three and print them."""
    with tempfile.TemporaryDirectory() as directory, daemon(Path(directory)) as (url, token, _pid):
        client = Client(url, token)
        subnet = {"name": "bench", "cidr": "10.99.0.0/16", "pools": ["10.99.1.0-10.99.200.0"]}
        client.call("POST", "/subnets", subnet)
        client.call("POST", "/groups", {"name": "bench", "subnet": "bench"})
        print(f"api_creates {rate(create, url, token, CREATES):.0f} per_second ironic:14-22")
        settle(client)
        print(f"api_gets {rate(get, url, token, GETS):.0f} per_second ironic:54-75")
        times = []
        for _ in range(LISTS):
            began = time.perf_counter()
            page = json.loads(client.call("GET", "/hosts?limit=1000"))
            times.append((time.perf_counter() - began) * 1000)
            assert len(page["items"]) == 1000
        print(f"api_list_1000 {statistics.median(times):.1f} ms ironic:422")


def settle(client: Client) -> None:
    """Until the engine has checked every host and rests."""
    while json.loads(client.call("GET", "/hosts?limit=1&state=enrolled,inspecting"))["items"]:
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
