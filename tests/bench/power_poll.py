"""How long it takes to poll 50 controllers, five of them dead, beside ipmitool; lines of ``name value unit peer``.

    python -m tests.bench.power_poll [--virtualbmc]

As root. The 45 living are served by one process (tests/lab/kit/oddbmc.py), or, with --virtualbmc, by 45 of VirtualBMC (1.4 GB).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import libvirt

from provisiond.drivers.power import PowerTarget
from provisiond.drivers.power.ipmi import IpmiPower
from provisiond.errors import DriverUnavailable
from tests.lab.kit.libvirtd import Libvirtd
from tests.lab.kit.netns import Netns
from tests.lab.kit.oddbmc import OddBmcs
from tests.lab.kit.vbmc import PASSWORD, USER, Vbmcd

HERE, FIRST, ALIVE, DEAD = "10.77.0.1", 7000, 45, 5
DOMAIN = "<domain type='qemu'><name>{}</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os></domain>"


@contextmanager
def controllers(ns: Netns, virtualbmc: bool) -> Iterator[None]:
    """The living ones."""
    with ExitStack() as stack:
        if virtualbmc:
            hypervisor = stack.enter_context(Libvirtd(ns, Path(tempfile.mkdtemp(prefix="pvb-"))))
            connection = libvirt.open(hypervisor.uri)
            vbmcd = Vbmcd(ns)
            for number in range(ALIVE):
                connection.defineXML(DOMAIN.format(f"p{number}"))
                vbmcd.write(f"p{number}", hypervisor.uri, FIRST + number)
            stack.enter_context(vbmcd)
        else:
            stack.enter_context(OddBmcs(ns, range(FIRST, FIRST + ALIVE)))
        yield


async def spread(targets: list[PowerTarget], ask: Callable[[PowerTarget], object]) -> dict[bool, float]:
    """Ask all at once; the time until the last living and the last dead one was done, in seconds."""
    started, last = time.monotonic(), {True: 0.0, False: 0.0}

    async def one(target: PowerTarget) -> None:
        await ask(target)  # type: ignore[misc]
        last[target.address == HERE] = time.monotonic() - started

    await asyncio.gather(*map(one, targets))
    return last


async def main() -> None:
    targets = [PowerTarget(f"web{n}", HERE, FIRST + n, USER, PASSWORD) for n in range(ALIVE)]
    targets += [PowerTarget(f"dead{n}", f"10.77.0.{240 + n}", 623, USER, PASSWORD) for n in range(DEAD)]
    driver = IpmiPower()

    async def ours(target: PowerTarget) -> None:
        try:
            await driver.state(target)
        except DriverUnavailable:
            assert target.address != HERE

    async def ipmitool(target: PowerTarget) -> None:
        argv = (
            f"ipmitool -I lanplus -C 3 -H {target.address} -p {target.port} -U {USER} -E power status".split()
        )
        child = await asyncio.create_subprocess_exec(
            *argv,
            env={"IPMI_PASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        said, _ = await child.communicate()
        assert (b"Chassis Power is" in said) == (target.address == HERE)

    first = await spread(targets, ours)
    kept = await spread(targets, ours)
    alone = await spread(targets[:ALIVE], ours)
    await driver.close()
    peer = await spread(targets, ipmitool)
    print(f"power_poll_50_login_alive {first[True]:.2f} s {peer[True]:.2f}")
    print(f"power_poll_50_kept_alive {kept[True]:.2f} s {peer[True]:.2f}")
    print(f"power_poll_45_without_dead {alone[True]:.2f} s {peer[True]:.2f}")
    print(f"power_poll_50_dead {first[False]:.2f} s {peer[False]:.2f}")


if __name__ == "__main__":
    with Netns() as lab, controllers(lab, "--virtualbmc" in sys.argv), lab.enter():
        asyncio.run(main())
