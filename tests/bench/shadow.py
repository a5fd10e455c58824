"""A shadow run of the shipped templates over 10,000 hosts of several families, beside a client that uses the API meanwhile.

The release under trial changes a line of every unattended file. Prints ``name value unit peer``; no peer has anything like it, so the
peer is the figure asked for: 60 s on 2 cores, and Cobbler's published 4.0 s for rendering 1,000 kickstarts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from provisiond.inventory import migrate
from provisiond.inventory.store import Store
from provisiond.templating.catalogue import Catalogue, ensure_release, read_directory, shipped_directory
from provisiond.templating.served import UNATTENDED
from tests.bench.api import Client
from tests.bench.lives import daemon
from tests.fleet import FAMILIES, add_release, populate

MORE = {
    "redhat10": ("bench-10", "redhat", "10.0", "https://mirror.example.org/10/BaseOS/x86_64/os/"),
    "suse": ("bench-leap", "suse", "15.6", "https://download.example.org/leap/15.6/repo/oss/"),
    "ubuntu": ("bench-ubuntu", "ubuntu", "24.04", "https://archive.example.org/ubuntu"),
}
UNATTENDED_KINDS = {kind for kinds in UNATTENDED.values() for kind in kinds} | {"user-data"}
LINE = {
    "kickstart": "# tried",
    "preseed": "# tried",
    "user-data": "# tried",
    "autoinstall": "# tried",
    "autoyast": "<!-- tried -->",
}
VARIANTS = (("", True, True), ("_no_validate", True, False), ("_own_secrets", False, True))
"""Label, whether the hosts differ in names and addresses only, whether the validators look."""
PAGE = os.sysconf("SC_PAGE_SIZE")


def fleet_of(catalogue: Catalogue) -> dict[str, Any]:
    """The families that the shipped templates can install."""
    families = dict(FAMILIES)
    for name, system in MORE.items():
        if any(catalogue.has(kind, system[1], system[2]) for kind in UNATTENDED.get(system[1], ())):
            families[name] = system
    return families


def tried(catalogue: Catalogue) -> dict[str, str]:
    """The same templates, each unattended file with one more line."""
    files = dict(catalogue.files)
    for path, header in catalogue.headers.items():
        if header.kind in LINE:
            files[path] = files[path].rstrip("\n") + "\n" + LINE[header.kind] + "\n"
    return files


async def furnish(directory: Path, hosts: int, *, alike: bool) -> None:
    """The fleet, the shipped templates as what is current (release 1) and the one under trial (release 2)."""
    url = f"sqlite:///{directory}/provisiond.db"
    migrate.upgrade(url)
    store = Store(url)
    await store.open()
    catalogue = read_directory(shipped_directory())
    await ensure_release(store, catalogue)
    own = (
        (lambda n: {"parameters": {}})
        if alike
        else (
            lambda n: {
                "parameters": {"timezone": f"Etc/GMT+{n % 12}", "root_password_hash": f"$6$salt${n:040}"}
            }
        )
    )
    await populate(store, hosts, families=fleet_of(catalogue), every=own)
    await add_release(store, tried(catalogue))
    await store.close()


class Peak(threading.Thread):
    """Watches the memory (resident, MB) of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.daemon_mb, self.workers_mb, self.running = pid, 0.0, 0.0, True

    def run(self) -> None:
        while self.running:
            workers = 0.0
            for stat in Path("/proc").glob("[0-9]*/stat"):
                try:
                    if int(stat.read_text().rpartition(")")[2].split()[1]) == self.pid:
                        workers += _mb(stat.parent)
                except OSError:
                    continue
            self.workers_mb = max(self.workers_mb, workers)
            self.daemon_mb = max(self.daemon_mb, _mb(Path(f"/proc/{self.pid}")))
            time.sleep(0.3)


def _mb(process: Path) -> float:
    return int((process / "statm").read_text().split()[1]) * PAGE / 1e6


def _cpu(pid: int) -> float:
    """Seconds of processor that a process and its children that have ended have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def run(
    client: Client, other: Client, names: list[str], *, validating: bool, pid: int
) -> tuple[dict[str, Any], list[float], Peak]:
    """One run to its end; the run, the latencies in ms of reads and creates meanwhile, and the memory."""
    peak = Peak(pid)
    peak.start()
    number = json_of(client.call("POST", "/shadow-runs", {"release": "2", "validate_results": validating}))[
        "number"
    ]
    latencies: list[float] = []
    seen = 0.0
    while True:
        for name in names[:20]:
            begun = time.perf_counter()
            other.call("GET", f"/hosts/{name}")
            latencies.append((time.perf_counter() - begun) * 1000)
            time.sleep(0.005)
        if time.monotonic() - seen > 0.5:
            seen = time.monotonic()
            progress = json_of(client.call("GET", f"/shadow-runs/{number}/progress"))
            print(f"\r{progress['done']} of {progress['total']}", end="", file=sys.stderr)
            if progress["state"] != "running":
                break
    print(file=sys.stderr)
    peak.running = False
    peak.join()
    view = json_of(client.call("GET", f"/shadow-runs/{number}"))
    assert view["state"] == "done", view["failure"]
    return view, latencies, peak


def json_of(text: bytes) -> Any:
    import json

    return json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hosts", type=int, default=10_000)
    parser.add_argument("--only", choices=[label.strip("_") or "alike" for label, _, _ in VARIANTS])
    options = parser.parse_args()
    for label, alike, validating in VARIANTS:
        if options.only and options.only != (label.strip("_") or "alike"):
            continue
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(furnish(Path(folder), options.hosts, alike=alike))
            with daemon(Path(folder)) as (url, token, pid):
                client, other = Client(url, token), Client(url, token)
                names = [h["name"] for h in json_of(client.call("GET", "/hosts?limit=20"))["items"]]
                begun, used = time.perf_counter(), _cpu(pid)
                view, latencies, peak = run(client, other, names, validating=validating, pid=pid)
                took, used = time.perf_counter() - begun, _cpu(pid) - used
            for difference in view["differences"]:
                if difference["kind"] != "changed":
                    print(
                        f"# {difference['kind']} {difference['hosts']} {difference['template']}: {difference['text'][:200]}",
                        file=sys.stderr,
                    )
            found = f"{view['unchanged']}/{view['changed']}/{view['failing']} in {len(view['differences']) + view['more_differences']} differences"
            print(
                f"# unchanged/changed/failing {found}; {view['checked']} renderings, {view['validated']} told apart",
                file=sys.stderr,
            )
            print(f"shadow_{options.hosts}{label} {took:.1f} s asked:60", flush=True)
            print(f"shadow_cpu{label} {used:.1f} s -")
            print(f"shadow_render_host{label} {view['work']['mean_milliseconds']:.2f} ms -")
            p99 = statistics.quantiles(latencies, n=100)[98]
            print(f"shadow_api_p99{label} {p99:.1f} ms -")
            print(f"shadow_peak_workers{label} {peak.workers_mb:.0f} MB -")
            print(f"shadow_peak_daemon{label} {peak.daemon_mb:.0f} MB -", flush=True)


if __name__ == "__main__":
    main()
