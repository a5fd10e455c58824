"""The handover contract: giving a freshly built machine to configuration management."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol


@dataclass(frozen=True)
class HandoverTarget:
    """The machine and what to run on it.

    ``key`` names this run for good (``deployment:configuring``): applying it twice finds the first run.
    ``host_keys`` are the machine's SSH public keys as it told them itself ("ssh-ed25519 AAAA..."). ``groups`` is the path of
    the host's groups from the root. ``settings`` are the driver's own (playbook directory or git URL, script path...).
    """

    key: str
    host: str
    address: str
    user: str = "root"
    port: int = 22
    ssh_key: str = ""  # path of the private key
    host_keys: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 3600.0


class RunState(StrEnum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Run:
    """A run as it stands. ``output`` is what came since ``offset`` (bytes of the whole output); ``stats`` per host when it ended."""

    key: str
    state: RunState
    output: str = ""
    offset: int = 0
    stats: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""


class Handover(Protocol):
    """Drivers of this room. Raises only DriverUnavailable, DriverRejected, Unsupported."""

    async def apply(self, target: HandoverTarget) -> Run:
        """Begin the run in a process of its own, or find the one of the same key (also after a restart of the daemon)."""

    async def poll(self, key: str, offset: int = 0) -> Run:
        """How the run stands, with its output from ``offset``. A run that died with a crash is FAILED, with a message saying so."""

    async def cancel(self, key: str) -> None:
        """End the run and its children. Absent or ended is fine."""

    async def close(self) -> None:
        """Let go of runs; they may go on in their processes."""
