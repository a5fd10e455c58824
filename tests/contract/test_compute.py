"""The compute contract, over the fake and over real machines of a private libvirtd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt
import pytest

from provisiond.drivers.compute import (
    DiskSpec,
    HypervisorTarget,
    MachineEvent,
    MachineSpec,
    MachineState,
    NicSpec,
    connection,
    disks,
)
from provisiond.drivers.compute import libvirt as driver
from provisiond.drivers.compute.fake import FakeCompute
from provisiond.drivers.compute.libvirt import LibvirtCompute
from provisiond.errors import DriverRejected, DriverUnavailable
from tests.lab.kit.fixtures import libvirtd, netns  # noqa: F401
from tests.lab.kit.libvirtd import Libvirtd

SEED = (
    ("user-data", "#cloud-config\npassword: hunter2\n"),
    ("meta-data", "instance-id: one\n"),
    ("network-config", "{}\n"),
)


class Crash(BaseException):
    """Stands for the daemon's death in the middle of a call."""


class FakeWorld:
    """The fake, and what happens to its machines behind the driver's back."""

    def __init__(self, tmp: Path) -> None:
        self.compute = FakeCompute()
        self.target = HypervisorTarget("hv1", f"fake://{tmp}/hypervisor")

    @contextlib.contextmanager
    def crash(self, stage: str) -> Iterator[None]:
        self.compute.crash_after = {"redefined": "defined", "disk": "defined"}.get(stage, stage)
        with pytest.raises(asyncio.CancelledError):
            yield

    def restart(self) -> None:
        self.compute = FakeCompute()

    def machines(self) -> list[str]:
        return [name.removesuffix(".json") for name in self.compute.files(self.target).names("machines")]

    def disks(self, uuid: str) -> list[str]:
        return self.compute.files(self.target).names(f"disks/{uuid}")

    def power(self, uuid: str, *, on: bool) -> None:
        self.compute.power(self.target, uuid, on=on)

    def write(self, uuid: str, content: int) -> None:
        files = self.compute.files(self.target)
        files.write(f"disks/{uuid}/0", {**files.read(f"disks/{uuid}/0"), "content": content})

    def read(self, uuid: str) -> int:
        return int(self.compute.files(self.target).read(f"disks/{uuid}/0")["content"] or 0)

    def foreign(self, name: str) -> str:
        files, other = self.compute.files(self.target), str(uuid.uuid4())
        row = {
            "uuid": other,
            "name": name,
            "state": "stopped",
            "ours": False,
            "making": False,
            "generation": 1,
            "snapshots": {},
        }
        files.write(f"machines/{other}.json", row)
        files.write(f"names/{name}", other)
        return other


class LibvirtWorld:
    """A real libvirtd."""

    def __init__(self, lv: Libvirtd, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lv, self.monkeypatch = lv, monkeypatch
        self.compute = LibvirtCompute()
        self.target = HypervisorTarget("hv1", lv.provisiond_uri)
        self.connection = libvirt.open(lv.uri)

    @contextlib.contextmanager
    def crash(self, stage: str) -> Iterator[None]:
        def die(*_: Any) -> None:
            raise Crash(stage)

        place = {
            "redefined": (
                libvirt.virDomain,
                "undefineFlags",
            ),  # a rebuild has its new definition, the old NVRAM too
            "defined": (driver, "_fill"),
            "disk": (disks, "make_seed"),
            "disks": (driver, "_write_mark"),
            "stopped": (driver, "_remove_volumes"),
            "removed": (libvirt.virDomain, "undefineFlags"),
        }[stage]
        with self.monkeypatch.context() as patch:
            patch.setattr(*place, die)
            with pytest.raises(Crash):
                yield

    def restart(self) -> None:
        self.compute = LibvirtCompute()

    def machines(self) -> list[str]:
        return [domain.UUIDString() for domain in self.connection.listAllDomains()]

    def disks(self, uuid: str) -> list[str]:
        return sorted(path.name for path in self.lv.pool.glob(f"*{uuid}*"))

    def power(self, uuid: str, *, on: bool) -> None:
        domain = self.connection.lookupByUUIDString(uuid)
        domain.create() if on else domain.destroy()

    def write(self, uuid: str, content: int) -> None:
        self._qemu_io(uuid, f"write -P {content} 0 64k")

    def read(self, uuid: str) -> int:
        for content in (0, 1, 2):
            with contextlib.suppress(subprocess.CalledProcessError):
                self._qemu_io(uuid, f"read -P {content} 0 64k")
                return content
        raise AssertionError("something else is on the disk")

    def foreign(self, name: str) -> str:
        other = str(uuid.uuid4())
        self.connection.defineXML(
            f"<domain type='qemu'><name>{name}</name><uuid>{other}</uuid><memory unit='MiB'>64</memory>"
            "<os><type arch='x86_64'>hvm</type></os></domain>"
        )
        return other

    def xml(self, uuid: str) -> str:
        text: str = self.connection.lookupByUUIDString(uuid).XMLDesc(libvirt.VIR_DOMAIN_XML_SECURE)
        return text

    def _qemu_io(self, uuid: str, command: str) -> None:
        path = self.lv.pool / f"provisiond-{uuid}-disk0.qcow2"
        done = subprocess.run(
            ["qemu-io", "-f", "qcow2", "-c", command, path], capture_output=True, text=True, check=True
        )
        if "Pattern verification failed" in done.stdout:
            raise subprocess.CalledProcessError(1, command)

    def sweep(self) -> None:
        for domain in self.connection.listAllDomains():
            if domain.isActive():
                domain.destroy()
            domain.undefineFlags(driver._UNDEFINE)
        for path in self.lv.pool.iterdir():
            path.unlink()
        self.connection.storagePoolLookupByName("default").refresh()
        self.connection.close()


World = FakeWorld | LibvirtWorld


@pytest.fixture(params=["fake", "libvirt"])
async def world(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    """A hypervisor without machines, of either kind."""
    if request.param == "fake":
        yield FakeWorld(tmp_path)
        return
    async for real in _real(request, monkeypatch):
        yield real


@pytest.fixture
async def real(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LibvirtWorld]:
    """A real libvirtd without machines."""
    async for world in _real(request, monkeypatch):
        yield world


async def _real(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LibvirtWorld]:
    world = LibvirtWorld(request.getfixturevalue("libvirtd"), monkeypatch)
    try:
        yield world
    finally:
        await world.compute.close()
        world.sweep()


def spec(**changes: Any) -> MachineSpec:
    """A small machine with a seed."""
    wanted = MachineSpec(
        uuid=str(uuid.uuid4()),
        name=f"web-{uuid.uuid4().hex[:6]}",
        vcpus=1,
        memory_mib=128,
        disks=(DiskSpec(1),),
        nics=(NicSpec("52:54:00:aa:bb:01", bridge="br-lab"),),
        seed=SEED,
    )
    return replace(wanted, **changes)


# --- the contract, by every driver --------------------------------------------------------------------------


async def test_ensure_twice_makes_one_machine(world: World) -> None:
    """The second call finds what the first made and leaves its disks alone."""
    wanted = spec()
    made = await world.compute.ensure(world.target, wanted)
    world.write(wanted.uuid, 1)
    assert made == await world.compute.ensure(world.target, wanted)
    assert (made.uuid, made.name, made.state) == (wanted.uuid, wanted.name, MachineState.STOPPED)
    assert world.machines() == [wanted.uuid]
    assert world.read(wanted.uuid) == 1
    assert await world.compute.list(world.target) == [made]
    assert await world.compute.find(world.target, wanted.uuid) == made


async def test_ensure_at_once_makes_one_machine(world: World) -> None:
    """Ten calls side by side for the same machine, and others beside it."""
    wanted = [spec(), spec(), spec()]
    await asyncio.gather(*(world.compute.ensure(world.target, w) for w in wanted for _ in range(10)))
    assert sorted(world.machines()) == sorted(w.uuid for w in wanted)


@pytest.mark.parametrize("stage", ["defined", "disk", "disks"])
async def test_ensure_completes_what_a_crash_left(world: World, stage: str) -> None:
    """Whatever stands half-made is taken over by the next daemon, and never doubled."""
    wanted = spec()
    with world.crash(stage):
        await world.compute.ensure(world.target, wanted)
    assert world.machines() == [wanted.uuid]
    world.restart()
    made = await world.compute.ensure(world.target, wanted)
    assert world.machines() == [wanted.uuid]
    first = world.disks(wanted.uuid)
    await world.compute.ensure(world.target, spec(uuid=str(uuid.uuid4())))
    assert world.disks(wanted.uuid) == first
    world.power(made.uuid, on=True)
    await world.compute.destroy(world.target, wanted.uuid)
    assert world.disks(wanted.uuid) == []


@pytest.mark.parametrize("stage", ["redefined", "defined", "disk", "disks"])
async def test_a_rebuild_completes_after_a_crash(world: World, stage: str) -> None:
    """A crash in the middle of fresh=True: the next call makes new disks even when it does not ask for them."""
    wanted = spec()
    await world.compute.ensure(world.target, wanted)
    world.write(wanted.uuid, 1)
    with world.crash(stage):
        await world.compute.ensure(world.target, wanted, fresh=True)
    world.restart()
    await world.compute.ensure(world.target, wanted)
    assert world.read(wanted.uuid) == 0
    assert world.machines() == [wanted.uuid]


@pytest.mark.parametrize("stage", ["stopped", "removed"])
async def test_destroy_completes_after_a_crash(world: World, stage: str) -> None:
    """A crash in the middle of destroy leaves nothing behind once it is called again."""
    wanted = spec()
    await world.compute.ensure(world.target, wanted)
    with world.crash(stage):
        await world.compute.destroy(world.target, wanted.uuid)
    world.restart()
    await world.compute.destroy(world.target, wanted.uuid)
    assert (world.machines(), world.disks(wanted.uuid)) == ([], [])


async def test_destroy_of_half_a_machine(world: World) -> None:
    """A build that was given up after a crash leaves nothing either."""
    wanted = spec()
    with world.crash("disks"):
        await world.compute.ensure(world.target, wanted)
    world.restart()
    await world.compute.destroy(world.target, wanted.uuid)
    assert (world.machines(), world.disks(wanted.uuid)) == ([], [])


async def test_destroy_removes_one_and_nothing_else(world: World) -> None:
    """The neighbour stays whole; a second destroy is fine."""
    one, two = spec(), spec()
    for wanted in (one, two):
        await world.compute.ensure(world.target, wanted)
    before = world.disks(two.uuid)
    world.power(one.uuid, on=True)
    await world.compute.destroy(world.target, one.uuid)
    await world.compute.destroy(world.target, one.uuid)
    assert await world.compute.find(world.target, one.uuid) is None
    assert (world.machines(), world.disks(one.uuid), world.disks(two.uuid)) == ([two.uuid], [], before)


async def test_a_running_machine_is_left_running_unless_fresh(world: World) -> None:
    """ensure does not touch what runs; fresh stops it and makes new disks."""
    wanted = spec()
    await world.compute.ensure(world.target, wanted)
    world.write(wanted.uuid, 1)
    world.power(wanted.uuid, on=True)
    assert (await world.compute.ensure(world.target, wanted)).state is MachineState.RUNNING
    assert (await world.compute.ensure(world.target, wanted, fresh=True)).state is MachineState.STOPPED
    assert world.read(wanted.uuid) == 0


async def test_fresh_happens_once_for_each_build(world: World) -> None:
    """Repeated for the same build, fresh wipes nothing that runs or was written since; for the next build it does."""
    wanted = replace(spec(), build="build-1")
    await world.compute.ensure(world.target, wanted, fresh=True)
    world.write(wanted.uuid, 1)
    world.power(wanted.uuid, on=True)
    assert (await world.compute.ensure(world.target, wanted, fresh=True)).state is MachineState.RUNNING
    world.power(wanted.uuid, on=False)
    assert world.read(wanted.uuid) == 1
    again = replace(wanted, build="build-2")
    assert (await world.compute.ensure(world.target, again, fresh=True)).state is MachineState.STOPPED
    assert world.read(wanted.uuid) == 0


async def test_others_machines_are_never_touched(world: World) -> None:
    """A machine provisiond did not make is not listed, found, taken over or destroyed; its name is not taken."""
    other = world.foreign("precious")
    wanted = spec(name="precious")
    with pytest.raises(DriverRejected, match=f"another machine named 'precious'.*{other}"):
        await world.compute.ensure(world.target, wanted)
    with pytest.raises(DriverRejected, match="did not make"):
        await world.compute.ensure(world.target, replace(wanted, uuid=other))
    with pytest.raises(DriverRejected, match="not made by provisiond"):
        await world.compute.destroy(world.target, other)
    with pytest.raises(DriverRejected, match="build the host first"):
        await world.compute.snapshot(world.target, other, "mine")
    assert await world.compute.find(world.target, other) is None
    assert await world.compute.list(world.target) == []
    assert (world.machines(), world.disks(wanted.uuid)) == ([other], [])


async def test_snapshot_and_revert(world: World) -> None:
    """The disk's content comes back; there is no going back to a snapshot that was never made."""
    wanted = spec()
    await world.compute.ensure(world.target, wanted)
    world.write(wanted.uuid, 1)
    await world.compute.snapshot(world.target, wanted.uuid, "clean")
    world.write(wanted.uuid, 2)
    world.power(wanted.uuid, on=True)
    with pytest.raises(DriverRejected, match="power it off"):
        await world.compute.snapshot(world.target, wanted.uuid, "running")
    await world.compute.revert(world.target, wanted.uuid, "clean")
    assert (await world.compute.find(world.target, wanted.uuid)).state is MachineState.STOPPED  # type: ignore[union-attr]
    assert world.read(wanted.uuid) == 1
    with pytest.raises(DriverRejected, match="no snapshot 'dirty'"):
        await world.compute.revert(world.target, wanted.uuid, "dirty")
    await world.compute.destroy(world.target, wanted.uuid)
    assert (world.machines(), world.disks(wanted.uuid)) == ([], [])


async def test_events_tell_of_our_machines(world: World) -> None:
    """The state at the beginning, then each change; nothing of others' machines."""
    first, second = spec(), spec()
    await world.compute.ensure(world.target, first)
    heard: list[MachineEvent] = []

    async def listen() -> None:
        async for event in world.compute.events(world.target):
            heard.append(event)

    task = asyncio.create_task(listen())
    await until(lambda: heard)
    assert heard == [MachineEvent(first.uuid, "stopped")]
    heard.clear()
    world.foreign("precious")
    await world.compute.ensure(world.target, second)
    world.power(second.uuid, on=True)
    await world.compute.destroy(world.target, second.uuid)
    await until(lambda: heard and heard[-1].kind == "removed")
    assert {event.uuid for event in heard} == {second.uuid}
    kinds = [event.kind for event in heard]
    assert kinds[0] == "defined"
    assert kinds[-3:] == ["started", "stopped", "removed"]
    task.cancel()


async def test_console_needs_a_running_machine(world: World) -> None:
    """A stopped machine has no console to read."""
    wanted = spec()
    await world.compute.ensure(world.target, wanted)
    with pytest.raises(DriverRejected, match="run"):
        await anext(aiter(world.compute.console(world.target, wanted.uuid)))


# --- libvirt only ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("firmware", "secure"),
    [("bios", False), ("uefi", False), ("uefi", True)],
    ids=["bios", "uefi", "secure-boot"],
)
async def test_a_machine_really_starts(real: LibvirtWorld, firmware: str, secure: bool) -> None:
    """Each firmware is accepted by QEMU and runs; nothing is left of it, its NVRAM included."""
    log = real.lv.root / "log" / f"{uuid.uuid4()}.console"
    wanted = spec(
        firmware=firmware, secure_boot=secure, boot=("network", "disk"), console_log=str(log), memory_mib=256
    )
    await real.compute.ensure(real.target, wanted)
    real.power(wanted.uuid, on=True)
    nvram = real.lv.root / "lib/qemu/nvram" / f"{wanted.name}_VARS.fd"
    assert nvram.exists() is (firmware == "uefi")
    said = b""
    async with asyncio.timeout(90):  # OVMF needs some 5 s of a quiet machine to get there
        async for data in real.compute.console(real.target, wanted.uuid):
            said += data
            if (b"iPXE" if firmware == "bios" else b"Start PXE over IPv4") in said:
                break
    assert said[:20] in log.read_bytes()
    assert (await real.compute.find(real.target, wanted.uuid)).state is MachineState.RUNNING  # type: ignore[union-attr]
    rom = "<rom enabled='no'/>" in real.xml(wanted.uuid)
    assert rom is (firmware == "uefi")
    await real.compute.destroy(real.target, wanted.uuid)
    assert not nvram.exists()


async def test_the_console_ends_with_the_machine(real: LibvirtWorld) -> None:
    """A reader is not left hanging when the machine is powered off."""
    wanted = spec()
    await real.compute.ensure(real.target, wanted)
    real.power(wanted.uuid, on=True)

    said = b""

    async def read() -> None:
        nonlocal said
        async for data in real.compute.console(real.target, wanted.uuid):
            said += data

    reader = asyncio.create_task(read())
    for _ in range(10):  # QEMU throws away what a machine says before the reader is there
        with contextlib.suppress(AssertionError):
            await until(lambda: wanted.uuid.encode() in said, 6)
            break
        real.connection.lookupByUUIDString(wanted.uuid).reset()
    assert wanted.uuid.encode() in said
    real.power(wanted.uuid, on=False)
    await asyncio.wait_for(reader, 30)


async def test_disks_are_laid_over_an_image(real: LibvirtWorld, tmp_path: Path) -> None:
    """qcow2 and raw images: the format is written into the disk, the image stays as it was, the size is the disk's."""
    for kind in ("qcow2", "raw"):
        image = tmp_path / f"base.{kind}"
        qemu_img("create", "-f", kind, image, "64M")
        before = image.read_bytes()
        wanted = spec(disks=(DiskSpec(2, str(image), kind), DiskSpec(1)))
        await real.compute.ensure(real.target, wanted)
        info = qemu_img("info", "-f", "qcow2", real.lv.pool / f"provisiond-{wanted.uuid}-disk0.qcow2")
        assert f"backing file: {image}" in info
        assert f"backing file format: {kind}" in info
        assert "2 GiB" in info
        real.write(wanted.uuid, 1)
        assert image.read_bytes() == before


async def test_dangerous_images_are_refused(real: LibvirtWorld, tmp_path: Path) -> None:
    """A backing file, an external data file, another format, too large, not there: refused, and nothing was made."""
    plain, layered, split, large = (tmp_path / f"{n}.qcow2" for n in ("plain", "layered", "split", "large"))
    qemu_img("create", "-f", "qcow2", plain, "64M")
    qemu_img("create", "-f", "qcow2", "-F", "qcow2", "-b", plain, layered)
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw", split, "64M")
    qemu_img("create", "-f", "qcow2", large, "3G")
    (tmp_path / "text").write_text("root:x:0:0" * 100)
    for image, kind, why in (
        (layered, "qcow2", "has a backing file"),
        (split, "qcow2", "external data file"),
        (tmp_path / "text", "qcow2", "declared as qcow2 but is none"),
        (large, "qcow2", r"3.0 GiB and does not fit on a disk of 1 GiB; take a larger flavor"),
        (plain, "vmdk", "format 'vmdk' is not taken"),
        (tmp_path / "absent", "raw", "there is no image"),
        (tmp_path / "no" / "absent", "raw", "cannot be looked at"),
        (Path("relative.img"), "raw", "absolute path"),
    ):
        wanted = spec(disks=(DiskSpec(1, str(image), kind),))
        with pytest.raises(DriverRejected, match=why):
            await real.compute.ensure(real.target, wanted)
        assert (real.machines(), real.disks(wanted.uuid)) == ([], []), image
    assert [pool.name() for pool in real.connection.listAllStoragePools()] == ["default"]


async def test_the_seed_holds_the_files_and_hides_them(real: LibvirtWorld, tmp_path: Path) -> None:
    """A file system labelled cidata, readable by its owner only; its secrets are not in the definition."""
    wanted = spec()
    await real.compute.ensure(real.target, wanted)
    seed = real.lv.pool / f"provisiond-{wanted.uuid}-seed.iso"
    assert seed.stat().st_mode & 0o777 == 0o600
    blkid = subprocess.run(
        ["blkid", "-p", "-o", "export", seed], capture_output=True, text=True, check=True
    ).stdout
    assert "LABEL=cidata" in blkid
    assert "TYPE=iso9660" in blkid
    for name, text in SEED:
        got = subprocess.run(
            ["isoinfo", "-R", "-x", f"/{name}", "-i", seed], capture_output=True, text=True, check=True
        )
        assert got.stdout == text
    assert "hunter2" not in real.xml(wanted.uuid)
    assert "hunter2" not in repr(wanted)


async def test_a_changed_spec_changes_the_definition_and_keeps_the_rest(
    real: LibvirtWorld, tmp_path: Path
) -> None:
    """Memory, CPUs and seed follow the spec; disks, places on the bus, a disk and a VNC password added by hand stay."""
    wanted = spec()
    await real.compute.ensure(real.target, wanted)
    real.write(wanted.uuid, 1)
    extra = real.lv.pool / "by-hand.qcow2"
    qemu_img("create", "-f", "qcow2", extra, "16M")
    domain = real.connection.lookupByUUIDString(wanted.uuid)
    added = f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{extra}'/><target dev='vdx' bus='virtio'/></disk>"
    real.connection.defineXML(
        domain.XMLDesc().replace("</devices>", f"{added}<graphics type='vnc' passwd='pa55'/></devices>")
    )
    place = (
        real.xml(wanted.uuid)
        .split("<mac address='52:54:00:aa:bb:01'/>")[1]
        .split("<address ")[1]
        .split("/>")[0]
    )
    for fresh, memory in ((False, 256), (True, 192)):
        wanted = replace(wanted, memory_mib=memory, vcpus=2, seed=(("user-data", "new\n"), ("meta-data", "")))
        await real.compute.ensure(real.target, wanted, fresh=fresh)
        now = real.xml(wanted.uuid)
        assert f"<memory unit='KiB'>{memory * 1024}</memory>" in now
        assert ">2</vcpu>" in now
        assert "passwd='pa55'" in now
        assert str(extra) in now
        assert place in now
        seed = real.lv.pool / f"provisiond-{wanted.uuid}-seed.iso"
        got = subprocess.run(
            ["isoinfo", "-R", "-x", "/user-data", "-i", seed], capture_output=True, text=True, check=True
        )
        assert got.stdout == "new\n"
        assert real.read(wanted.uuid) == (0 if fresh else 1)
    await real.compute.ensure(real.target, replace(wanted, firmware="uefi"), fresh=True)
    assert "passwd='pa55'" in real.xml(wanted.uuid)
    assert "firmware='efi'" in real.xml(wanted.uuid)
    await real.compute.destroy(real.target, wanted.uuid)
    assert extra.exists()
    assert real.disks(wanted.uuid) == []


async def test_volumes_without_a_definition_are_found(real: LibvirtWorld) -> None:
    """Somebody undefined the machine by hand: destroy still removes its disks, ensure still makes one machine."""
    wanted = spec()
    await real.compute.ensure(real.target, wanted)
    real.connection.lookupByUUIDString(wanted.uuid).undefine()
    await real.compute.destroy(real.target, wanted.uuid)
    assert real.disks(wanted.uuid) == []
    await real.compute.ensure(real.target, wanted)
    real.write(wanted.uuid, 1)
    real.connection.lookupByUUIDString(wanted.uuid).undefine()
    await real.compute.ensure(real.target, wanted)
    assert (real.machines(), real.read(wanted.uuid)) == ([wanted.uuid], 0)
    await real.compute.destroy(real.target, wanted.uuid)
    real.lv.pool.joinpath(f"provisiond-{wanted.uuid}-disk0.qcow2").write_text(
        "the pool has not noticed this one"
    )
    await real.compute.ensure(real.target, wanted)
    assert real.read(wanted.uuid) == 0


async def test_what_is_missing_on_the_hypervisor_is_named(real: LibvirtWorld) -> None:
    """No such pool, network or driver option: rejected with what to do, and nothing was made."""
    wanted = spec()
    with pytest.raises(DriverRejected, match="no storage pool 'fast'; make one: virsh"):
        await real.compute.ensure(replace(real.target, pool="fast"), wanted)
    with pytest.raises(DriverRejected, match="no network 'dmz' for card 52:54:00:aa:bb:01"):
        await real.compute.ensure(
            real.target, replace(wanted, nics=(NicSpec("52:54:00:aa:bb:01", network="dmz"),))
        )
    with pytest.raises(DriverRejected, match="needs a network or a bridge"):
        await real.compute.ensure(real.target, replace(wanted, nics=(NicSpec("52:54:00:aa:bb:01"),)))
    with pytest.raises(DriverRejected, match="unknown option provisiond_tpye"):
        await real.compute.list(HypervisorTarget("hv1", f"{real.lv.uri}&provisiond_tpye=qemu"))
    await real.compute.destroy(replace(real.target, pool="fast"), wanted.uuid)
    assert (real.machines(), real.disks(wanted.uuid)) == ([], [])


async def test_what_may_pass_is_tried_again(real: LibvirtWorld) -> None:
    """The pool's directory is away for the moment (an unmounted share): DriverUnavailable, and the next call completes it."""
    wanted, away = spec(), real.lv.pool.with_name("away")
    real.lv.pool.rename(away)
    try:
        with pytest.raises(DriverUnavailable, match="cannot make machine web"):
            await real.compute.ensure(real.target, wanted)
    finally:
        away.rename(real.lv.pool)
    await real.compute.ensure(real.target, wanted)
    assert (real.machines(), len(real.disks(wanted.uuid))) == ([wanted.uuid], 2)


async def test_a_definition_that_is_refused_leaves_the_old_one(real: LibvirtWorld) -> None:
    """libvirt rejects a rebuild (a malformed MAC): the machine is still there, and the next call mends it."""
    wanted = spec(firmware="uefi")
    await real.compute.ensure(real.target, wanted)
    with pytest.raises(DriverRejected, match="cannot make machine web"):
        await real.compute.ensure(
            real.target, replace(wanted, nics=(NicSpec("nonsense", bridge="br-lab"),)), fresh=True
        )
    assert real.machines() == [wanted.uuid]
    assert "52:54:00:aa:bb:01" in real.xml(wanted.uuid)
    await real.compute.ensure(real.target, wanted)


async def test_a_lost_connection_comes_back(real: LibvirtWorld) -> None:
    """libvirtd ends: DriverUnavailable; libvirtd is back: calls and events go on, and what was missed is told."""
    wanted = spec()
    await real.compute.ensure(real.target, wanted)
    heard: list[MachineEvent] = []

    async def listen() -> None:
        async for event in real.compute.events(real.target):
            heard.append(event)

    task = asyncio.create_task(listen())
    await until(lambda: heard)
    real.connection.close()
    await asyncio.to_thread(real.lv.kill)
    try:
        for _ in range(3):
            with pytest.raises(DriverUnavailable, match="hv1"):
                await real.compute.find(real.target, wanted.uuid)
    finally:
        await asyncio.to_thread(real.lv.restart)
        real.connection = libvirt.open(real.lv.uri)
    assert (await real.compute.find(real.target, wanted.uuid)) is not None
    real.power(wanted.uuid, on=True)  # perhaps before the listener is back: then it is told at its first look
    await until(lambda: heard and heard[-1] == MachineEvent(wanted.uuid, "started"))
    task.cancel()


async def test_closing_while_somebody_listens(real: LibvirtWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirt's event thread, which every connection needs, outlives a driver that is closed while a listener is ending."""
    await real.compute.ensure(real.target, spec())
    heard, ending = asyncio.Event(), threading.Event()
    deregister = libvirt.libvirtmod.virConnectDomainEventDeregisterAny

    def slowly(*args: Any) -> Any:
        ending.set()
        time.sleep(0.5)  # libvirt's own lock may be taken for as long as this
        return deregister(*args)

    monkeypatch.setattr(libvirt.libvirtmod, "virConnectDomainEventDeregisterAny", slowly)

    async def listen() -> None:
        async for _ in real.compute.events(real.target):
            heard.set()

    task = asyncio.create_task(listen())
    await heard.wait()
    task.cancel()
    await asyncio.to_thread(ending.wait)
    await real.compute.close()
    await asyncio.gather(task, return_exceptions=True)
    turned = threading.Event()
    number = libvirt.virEventAddTimeout(0, lambda *_: turned.set(), None)
    assert await asyncio.to_thread(turned.wait, 10)
    libvirt.virEventRemoveTimeout(number)


async def test_a_frozen_hypervisor_is_noticed(real: LibvirtWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """libvirtd hangs in the middle of a call: keep-alive, or else the time limit, ends the call with DriverUnavailable."""
    monkeypatch.setattr(connection, "KEEPALIVE", (1, 2))
    monkeypatch.setattr(connection, "CALL_SECONDS", 10.0)
    pid = int((real.lv.root / "run/libvirtd.pid").read_text())
    assert await real.compute.list(real.target) == []
    os.kill(pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(DriverUnavailable, match="hv1"):
            await real.compute.list(real.target)
        assert time.monotonic() - start < 30
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await real.compute.list(real.target) == []


async def test_a_frozen_hypervisor_does_not_keep_the_daemon_from_stopping(real: LibvirtWorld) -> None:
    """A process with a call that hangs in libvirt ends all the same when it is told to."""
    program = (
        "import asyncio, sys\n"
        "from provisiond.drivers.compute import HypervisorTarget\n"
        "from provisiond.drivers.compute.libvirt import LibvirtCompute\n"
        "async def main():\n"
        f"    compute, target = LibvirtCompute(), {real.target!r}\n"
        "    await compute.list(target); print('ready', flush=True); sys.stdin.readline()\n"
        "    task = asyncio.create_task(compute.list(target)); await asyncio.sleep(0.2)\n"
        "    task.cancel(); await compute.close()\n"
        "asyncio.run(main())\n"
    )
    pid = int((real.lv.root / "run/libvirtd.pid").read_text())
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        await asyncio.to_thread(child.stdout.readline)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(
            child.communicate, b"go\n", 30
        )  # libvirtd stays frozen: without an end of its own it hangs
        assert child.returncode == 0
    finally:
        os.kill(pid, signal.SIGCONT)
        child.kill()


async def test_a_hypervisor_that_is_not_there() -> None:
    """No socket there: try again. No such kind of hypervisor: do not."""
    compute = LibvirtCompute()
    with pytest.raises(DriverUnavailable, match="cannot connect to hypervisor hv9"):
        await compute.list(HypervisorTarget("hv9", "qemu+unix:///system?socket=/nonexistent/sock"))
    with pytest.raises(DriverRejected, match="cannot connect to hypervisor hv9"):
        await compute.list(HypervisorTarget("hv9", "qemu+nonsense:///system"))
    await compute.close()


async def test_kill_nine_while_making_a_machine(real: LibvirtWorld) -> None:
    """A daemon killed at a random moment of ensure(fresh=True), eight times over: one whole machine, and nothing left."""
    wanted = spec(firmware="uefi", disks=(DiskSpec(1), DiskSpec(1)))
    program = (
        "import asyncio, pickle\n"
        "from provisiond.drivers.compute.libvirt import LibvirtCompute\n"
        f"target, spec = pickle.loads({pickle.dumps((real.target, wanted))!r})\n"
        "async def main():\n"
        "    compute = LibvirtCompute(); await compute.list(target); print('ready', flush=True)\n"
        "    while True: await compute.ensure(target, spec, fresh=True)\n"
        "asyncio.run(main())\n"
    )
    for number in range(8):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert child.stdout is not None
        await asyncio.to_thread(child.stdout.readline)
        await asyncio.sleep(0.013 * number)
        child.kill()
        child.communicate()
        assert len(real.machines()) <= 1
    made = await real.compute.ensure(real.target, wanted)
    assert real.machines() == [made.uuid]
    assert len(real.disks(wanted.uuid)) == 3
    real.power(wanted.uuid, on=True)
    await real.compute.destroy(real.target, wanted.uuid)
    assert (real.machines(), real.disks(wanted.uuid)) == ([], [])


# --- the fake only --------------------------------------------------------------------------------------------------


async def test_the_fakes_files_outlive_it(tmp_path: Path) -> None:
    """Another driver on the same directory finds the machine; the journal tells how often one was made."""
    target, wanted = HypervisorTarget("hv1", f"fake://{tmp_path}"), spec()
    await FakeCompute().ensure(target, wanted)
    again = FakeCompute()
    await again.ensure(target, wanted)
    assert (await again.find(target, wanted.uuid)) is not None
    assert (tmp_path / "calls.jsonl").read_text().count('"made"') == 1
    await again.destroy(target, wanted.uuid)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "calls.jsonl"]


async def test_the_fake_fails_and_waits_on_demand() -> None:
    """Injected errors come first, in order; latency and chance of failure may stand in the URI."""
    compute, wanted = FakeCompute(), spec()
    compute.fail_next = [DriverUnavailable("a"), DriverRejected("b")]
    for kind in (DriverUnavailable, DriverRejected):
        with pytest.raises(kind):
            await compute.ensure(HypervisorTarget("hv1", "fake://"), wanted)
    with pytest.raises(DriverUnavailable):
        await compute.ensure(HypervisorTarget("hv1", "fake://?fail=1"), wanted)
    start = time.monotonic()
    await compute.ensure(HypervisorTarget("hv1", "fake://?latency=0.05"), wanted)
    assert time.monotonic() - start >= 0.05
    assert await compute.find(HypervisorTarget("hv2", "fake://two"), wanted.uuid) is None
    assert [call[0] for call in compute.calls] == ["ensure"] * 4 + ["find"]


async def test_the_fakes_console() -> None:
    """What a test lets the machine say arrives, until it is powered off."""
    compute, target, wanted = FakeCompute(), HypervisorTarget("hv1", "fake://"), spec()
    await compute.ensure(target, wanted)
    compute.power(target, wanted.uuid, on=True)
    heard: list[bytes] = []

    async def read() -> None:
        async for data in compute.console(target, wanted.uuid):
            heard.append(data)

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    compute.say(wanted.uuid, b"login:")
    compute.power(target, wanted.uuid, on=False)
    await asyncio.wait_for(reader, 30)
    assert heard == [b"login:"]


async def until(true: Any, seconds: float = 30.0) -> None:
    """Wait for a condition."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.02)


def qemu_img(*argv: Any) -> str:
    """qemu-img's output."""
    return subprocess.run(["qemu-img", *map(str, argv)], capture_output=True, text=True, check=True).stdout
