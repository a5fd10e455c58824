"""``kill -9`` at any point loses nothing: every host arrives, nothing is left over, the history has no hole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.engine.crash import (
    RUNS,
    WAITS,
    Engine,
    check_history,
    check_steps,
    everything,
    killed_everywhere,
    leases_run_out,
    power_cycles,
    whole,
)

CHECKED = {"enrolled/verify": RUNS}
PHYSICAL = {
    **CHECKED, "inspecting/sensors": RUNS, "building/prepare": RUNS, "building/reserve": RUNS, "building/boot": RUNS,
    "building/install": WAITS, "building/local": RUNS, "provisioned/first-boot": RUNS, "configuring/handover": RUNS,
}  # fmt: skip
VIRTUAL = {
    **CHECKED, "building/prepare": RUNS, "building/reserve": RUNS, "building/machine": RUNS, "building/boot": RUNS,
    "provisioned/first-boot": RUNS, "configuring/handover": RUNS,
}  # fmt: skip


async def check_all_arrived(url: str, directory: Path, names: set[str]) -> None:
    """Every host in service with one deployment, and of each side effect exactly one."""
    hosts, events, deployments = await everything(url)
    assert {host.name for host in hosts} == names
    assert {host.state for host in hosts} == {"active"}
    assert all(host.lease_owner is None and host.due_at is None and host.failure is None for host in hosts)
    assert Counter(d.host_id for d in deployments) == Counter(host.id for host in hosts)
    assert {d.outcome for d in deployments} == {"active"}
    for host in hosts:
        check_history(events, host.name)
    virtual = {host.id for host in hosts if host.hypervisor_id}
    fakes = directory / "fakes"
    machines = {path.stem for path in (fakes / "compute" / "machines").glob("*.json")}
    assert machines == virtual, "a virtual machine too many or too few"
    assert whole(fakes / "compute" / "names") == {h.name for h in hosts if h.id in virtual}
    assert {path.parent.name for path in (fakes / "compute" / "disks").glob("*/*")} == virtual, (
        "an orphaned disk"
    )
    assert len(whole(fakes / "dhcp" / "reservations")) == len(hosts), "a reservation too many or too few"
    assert len(list((fakes / "handover").glob("*.json"))) == len(hosts), "a handover ran twice"


@pytest.mark.parametrize("kind", ["physical", "virtual"])
@pytest.mark.timeout(600)
async def test_killed_at_every_boundary(database_url: str, tmp_path: Path, kind: str) -> None:
    """A daemon is killed at every boundary of a build, and again at the next one: all hosts go into service, with one build each."""
    steps = PHYSICAL if kind == "physical" else VIRTUAL
    names = await killed_everywhere(database_url, tmp_path, steps, kind="" if kind == "physical" else ":vm")
    _hosts, events, _deployments = await everything(database_url)
    check_steps(events, steps, {step.partition("/")[0] for step in steps})
    if kind == "physical":
        await check_physical(database_url, tmp_path, set(names))
    else:
        await check_all_arrived(database_url, tmp_path, set(names))


async def check_physical(url: str, directory: Path, names: set[str]) -> None:
    (directory / "fakes" / "compute" / "machines").mkdir(parents=True, exist_ok=True)
    (directory / "fakes" / "compute" / "names").mkdir(parents=True, exist_ok=True)
    await check_all_arrived(url, directory, names)
    # A kill between the power cycle and its being noted down makes one more cycle, and only that does.
    _hosts, events, _deployments = await everything(url)
    begun = Counter(e.host_name for e in events if (e.kind, e.step) == ("step.started", "boot"))
    cycles = power_cycles(directory)
    assert cycles.keys() == names
    assert all(1 <= cycles[name] <= begun[name] for name in names), (cycles, begun)


@pytest.mark.timeout(600)
async def test_killed_at_random_times(database_url: str, tmp_path: Path) -> None:
    """Killed again and again in the middle of many builds; in the end all are in service."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    chance = random.Random(seed)
    names: list[str] = []
    kills = rounds = 0
    while kills < 5:
        rounds += 1
        assert rounds <= 20, "the engine is through with its work before it can be killed"
        more = [f"p{rounds}-{n}" for n in range(4)] + [f"v{rounds}-{n}:vm" for n in range(4)]
        names += more
        number = str(12 + 8 * rounds)
        after = f"{chance.uniform(0.02, 0.3):.3f}"
        killed = Engine(database_url, tmp_path, "--add", *more, "--number", number, "--kill-after", after)
        code = await killed.wait()
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), killed.said
        await leases_run_out(database_url)
    await Engine(database_url, tmp_path).ends()
    await check_all_arrived(database_url, tmp_path, {name.partition(":")[0] for name in names})
    release = ("--ask", "release", "--rest", "ready")
    for _ in range(4):
        after = f"{chance.uniform(0.05, 0.3):.3f}"
        await Engine(database_url, tmp_path, *release, "--kill-after", after).wait()
        await leases_run_out(database_url)
    await Engine(database_url, tmp_path, *release).ends()
    fakes = tmp_path / "fakes"
    assert not whole(fakes / "compute" / "machines"), "a virtual machine is left"
    assert not whole(fakes / "dhcp" / "reservations"), "a reservation is left"
    _hosts, events, _deployments = await everything(database_url)
    for name in names:
        check_history(events, name.partition(":")[0])


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_two_daemons_and_one_freezes(database_url: str, tmp_path: Path) -> None:
    """On PostgreSQL a frozen daemon's hosts are taken over when its leases run out; when it wakes, its late writes change nothing."""
    names = [f"p{n}" for n in range(6)] + [f"v{n}:vm" for n in range(6)]
    frozen = Engine(database_url, tmp_path, "--add", *names)
    await wait_for_work(database_url)
    os.kill(frozen.pid, signal.SIGSTOP)
    try:
        await Engine(database_url, tmp_path).ends()
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    await frozen.ends()
    await check_all_arrived(database_url, tmp_path, {name.partition(":")[0] for name in names})


async def wait_for_work(url: str) -> None:
    """Until some host is in the middle of its build."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        hosts, _events, _deployments = await everything(url)
        if any(host.state == "building" for host in hosts):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was begun in 30 s")
