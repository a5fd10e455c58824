"""The compute contract: virtual machines on a hypervisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True)
class HypervisorTarget:
    """Where a machine lives: ``uri`` as the driver reads it (libvirt: qemu+unix:///system?socket=...), its storage ``pool``."""

    name: str
    uri: str
    pool: str = "default"


@dataclass(frozen=True)
class DiskSpec:
    """One disk of ``gib`` GiB. ``image`` is the path of a base image on the hypervisor (None: blank), in ``image_format``."""

    gib: int
    image: str | None = None
    image_format: str = "qcow2"


@dataclass(frozen=True)
class NicSpec:
    """One network card on a libvirt ``network`` or a ``bridge`` (exactly one is set)."""

    mac: str
    bridge: str | None = None
    network: str | None = None


@dataclass(frozen=True)
class MachineSpec:
    """The wanted virtual machine. ``uuid`` is its identity: ``ensure`` finds it by that and makes it only once.

    ``boot`` is the order of devices. ``seed`` holds NoCloud files (``user-data``, ``meta-data``, ``network-config``) to be
    attached as a cidata disk; it may hold secrets and so is left out of repr.
    """

    uuid: str
    name: str
    vcpus: int
    memory_mib: int
    disks: tuple[DiskSpec, ...]
    nics: tuple[NicSpec, ...]
    firmware: str = "bios"  # bios | uefi
    boot: tuple[str, ...] = ("disk",)  # disk, network, cdrom
    secure_boot: bool = False
    seed: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    console_log: str | None = None  # path on the hypervisor that serial output is written to
    build: str = ""  # names what the disks are made for; see Compute.ensure


class MachineState(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Machine:
    """A virtual machine as the hypervisor has it."""

    uuid: str
    name: str
    state: MachineState


@dataclass(frozen=True)
class MachineEvent:
    """The hypervisor tells of a change: ``kind`` is started, stopped, crashed, defined or removed."""

    uuid: str
    kind: str


class Compute(Protocol):
    """Drivers of this room. Raises only DriverUnavailable, DriverRejected, Unsupported."""

    async def ensure(self, target: HypervisorTarget, spec: MachineSpec, *, fresh: bool = False) -> Machine:
        """Make the machine stopped and ready to start, or find it by UUID; with ``fresh`` its disks are made anew.

        Once for each ``spec.build``: a machine that was made fresh for this very build is found as it stands, so that a
        repetition (after a crash, or by a daemon that was frozen) never wipes what has been started since.

        Crash-safe: half-made disks or a definition left by an earlier call are taken over, never doubled.
        A running machine is left running unless ``fresh``.
        """

    async def destroy(self, target: HypervisorTarget, uuid: str) -> None:
        """Stop the machine and remove it with the disks, seed and NVRAM that ``ensure`` made, and nothing else. Absent is fine."""

    async def find(self, target: HypervisorTarget, uuid: str) -> Machine | None:
        """The machine by its UUID."""

    async def list(self, target: HypervisorTarget) -> list[Machine]:
        """Every machine that provisiond made there (others are not shown)."""

    async def snapshot(self, target: HypervisorTarget, uuid: str, name: str) -> None:
        """Keep the disks as they are now under ``name``."""

    async def revert(self, target: HypervisorTarget, uuid: str, name: str) -> None:
        """Go back to snapshot ``name``; DriverRejected if there is none."""

    def console(self, target: HypervisorTarget, uuid: str) -> AsyncIterator[bytes]:
        """Serial output as it comes."""

    def events(self, target: HypervisorTarget) -> AsyncIterator[MachineEvent]:
        """Life-cycle events as they happen, until closed."""

    async def close(self) -> None:
        """Close every connection."""
