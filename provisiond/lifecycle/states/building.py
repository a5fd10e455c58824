"""building: an operating system is put on the machine.

A physical machine, or a virtual one without an image of its own, boots from the network and its installer or the ramdisk does
the work; a virtual machine with an image gets its disk made from it.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta
from typing import Any

from sqlalchemy import bindparam, func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.drivers.compute import DiskSpec, MachineSpec, NicSpec
from provisiond.drivers.dhcp import Reservation
from provisiond.drivers.power import BootDevice, PowerAction
from provisiond.inventory import agents
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import Deployment, new_id, new_row, table, utcnow
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Outcome, Step
from provisiond.lifecycle.states import ramdisk
from provisiond.lifecycle.states.ramdisk import from_image, network_boot
from provisiond.lifecycle.world import World

_DEPLOYMENT = table(Deployment)
_OPEN = insert(_DEPLOYMENT)
_NEXT_NUMBER = select(func.coalesce(func.max(_DEPLOYMENT.c.number), 0) + 1).where(
    _DEPLOYMENT.c.host_id == bindparam("b_host")
)

_LAST_BUILT = select(func.max(_DEPLOYMENT.c.built_at)).where(_DEPLOYMENT.c.host_id == bindparam("b_host"))


def by_network(host: ResolvedHost) -> bool:
    return not from_image(host)


def virtual(host: ResolvedHost) -> bool:
    return host.hypervisor is not None


async def prepare(host: ResolvedHost, world: World) -> Outcome:
    """Opens the deployment: pins the release and the feature flags, makes the boot token, and renders everything once.

    A template that cannot be rendered for this host fails here, before anything happens to the machine.
    """
    missing = what_is_missing(host)
    if missing:
        return Failed(missing, retryable=False, kind="incomplete")
    release_id = await world.renderings.check(host, world.boot_url)
    if host.deployment is not None:
        return Complete(f"deployment {host.deployment.number} was open already")
    row = deployment_row(host.id, release_id, host.row.method, world, flags=dict(host.flags))

    async def write(session: AsyncSession) -> None:
        await open_deployment(session, row)

    return Complete("deployment opened", host={"deployment_id": row["id"]}, write=write)


def deployment_row(
    host_id: str, release_id: str, method: str, world: World, flags: dict[str, bool] | None = None
) -> dict[str, Any]:
    """A new deployment with a boot token of its own; open_deployment gives it its number."""
    token = secrets.token_urlsafe(32)
    return new_row(
        Deployment, id=new_id(), host_id=host_id, release_id=release_id, flags=flags, method=method,
        token_hash=hashlib.sha256(token.encode()).hexdigest(), secret_seed=world.box.encrypt(token),
        token_expires=utcnow() + timedelta(minutes=world.settings.boot.token_minutes),
    )  # fmt: skip


async def open_deployment(session: AsyncSession, row: dict[str, Any]) -> None:
    """Store a row of deployment_row as the newest of its host."""
    connection = await session.connection()
    row["number"] = (await connection.execute(_NEXT_NUMBER, {"b_host": row["host_id"]})).scalar_one()
    await connection.execute(_OPEN, row)


async def reserve(host: ResolvedHost, world: World) -> Outcome:
    """Gives the machine's MAC its address in DHCP."""
    reserved = []
    for interface in host.interfaces:
        if interface.ip and interface.subnet and ":" not in interface.ip:  # the servers we drive speak DHCPv4
            await world.dhcp.reserve(
                Reservation(interface.mac, interface.ip, host.name, interface.subnet.name)
            )
            reserved.append(f"{interface.mac} {interface.ip}")
    return Complete("reserved " + ", ".join(reserved) if reserved else "no address to reserve")


async def machine(host: ResolvedHost, world: World) -> Outcome:
    """Makes the virtual machine (by its UUID, once for each deployment) with fresh disks."""
    compute, target = world.compute_of(host)
    assert host.hypervisor is not None and host.flavor is not None
    direct = from_image(host)
    image = world.settings.state.image_dir / host.image.path if direct and host.image else None
    console = world.settings.state.console_dir / f"{host.id}.log"
    console.parent.mkdir(parents=True, exist_ok=True)
    spec = MachineSpec(
        uuid=host.id, name=host.name, vcpus=host.flavor.vcpus, memory_mib=host.flavor.memory_mib,
        disks=(DiskSpec(host.flavor.disk_gib, str(image) if image else None, host.image.format if direct and host.image else "raw"),),
        nics=tuple(NicSpec(i.mac, host.hypervisor.bridge, None if host.hypervisor.bridge else host.hypervisor.network) for i in host.interfaces),
        firmware=host.row.firmware, boot=("disk",) if direct else ("network", "disk"),
        seed=await world.renderings.seed(host, world.boot_url, world.box) if direct else (), console_log=str(console),
        build=host.row.deployment_id or "",
    )  # fmt: skip
    made = await compute.ensure(target, spec, fresh=True)
    return Complete(f"virtual machine {made.name} on {host.hypervisor.name}")


async def boot(host: ResolvedHost, world: World) -> Outcome:
    """Starts the machine: from the network, or a virtual machine made from an image from its disk. A ramdisk that runs already goes on
    with the image, without a restart."""
    if by_network(host) and host.row.method == "image" and await _ramdisk_runs(host, world):
        return Complete("its ramdisk runs already: no restart")
    reach = world.power_of(host)
    if not from_image(host) or reach is None:
        return await network_boot(host, world)
    power, target = reach
    world.consoles.follow(host, power, target)
    state = await power.set(target, PowerAction.ON)
    return Complete(f"power is {state}", host={"power": str(state), "power_seen_at": utcnow()})


async def install(host: ResolvedHost, world: World) -> Outcome:
    """Waits for the installer or the ramdisk to say it is done."""
    deployment = host.deployment
    assert deployment is not None
    if deployment.failed_at is not None:
        return Failed(
            f"{deployment.failure}; mend it, then 'provisionctl host retry {host.name}'",
            retryable=False,
            kind="install",
        )
    if deployment.built_at is not None:
        return Complete("the machine says it is built")
    begun = deployment.boots or deployment.progress or deployment.progress_text
    if not begun and host.row.step_since is not None:
        return ramdisk.booting(
            host, host.row.step_since, "its boot program", "waiting for the machine to boot"
        )
    doing = f"installing: {deployment.progress} % {deployment.progress_text}".strip()
    if host.row.method == "image":
        return await ramdisk.heard(host, world, doing)
    return Continue(doing)


async def local(host: ResolvedHost, world: World) -> Outcome:
    """From now on the machine boots from its disk."""
    reach = world.power_of(host)
    if reach is None:
        return Complete("boot order is left to the machine")
    power, target = reach
    await power.set_boot(target, BootDevice.DISK)
    return Complete("boots from disk")


async def _ramdisk_runs(host: ResolvedHost, world: World) -> bool:
    """Whether the ramdisk runs on it, begun after what was built last: a system that was built since has taken its place."""
    if not await agents.alive(world.store, host.id):
        return False
    async with world.store.connect() as connection:
        built = (await connection.execute(_LAST_BUILT, {"b_host": host.id})).scalar()
    newest = await agents.newest(world.store, host.id)
    return newest is not None and (built is None or newest.claimed_at > built)


def what_is_missing(host: ResolvedHost) -> str:
    wants = []
    if host.row.method == "image" and host.image is None:
        wants.append("an image (--image, or on its group)")
    if host.row.method == "installer" and host.medium is None:
        wants.append("an installation medium (--media, or on its group)")
    if virtual(host) and host.flavor is None:
        wants.append("a flavor (--flavor)")
    if by_network(host) and not host.mac:
        wants.append("a MAC (--mac)")
    if not wants:
        return ""
    return (
        f"host {host.name} cannot be built: it lacks {' and '.join(wants)}; "
        f"set it with 'provisionctl host update {host.name}', then 'provisionctl host retry {host.name}'"
    )


STEPS = (
    Step("prepare", prepare, timeout=60.0),
    Step("reserve", reserve, timeout=60.0),
    Step("machine", machine, applies=virtual, timeout=600.0),
    Step("boot", boot, timeout=300.0),
    Step("install", install, applies=by_network, retry_from="boot"),
    Step("local", local, applies=by_network, timeout=180.0),
)
