"""What the ramdisk's agent is to do, as JSON: the decision of boot/target.py, for a machine whose ramdisk is running already.

A ramdisk that waits is given its image without a restart; it starts again only for what it cannot do itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from provisiond.boot.image_source import ImageSource
from provisiond.boot.machines import Machine
from provisiond.boot.target import Boot
from provisiond.errors import RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.storage import PASSPHRASE, Storage
from provisiond.media.hardware_tests import TestScript
from provisiond.templating.context import BuildUrls
from provisiond.templating.disks import needs_layout, plan_storage
from provisiond.templating.quoting import kargs
from provisiond.templating.served import SEED

WAIT_SECONDS = 5
REBOOT: Mapping[str, Any] = {"id": "reboot", "action": "reboot"}
CONSOLE = "ttyS0,115200n8"

_WAITING_STATES = frozenset({"discovered", "enrolled", "inspecting", "ready", "releasing"})
"""In these a machine has nothing on its disks to boot, or is about to be given work."""


SOON_SECONDS = 1.0
"""Where the host is on its way to something that the ramdisk may have to do."""


def wait(*, facts: bool = False, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
    """Ask again after ``seconds``; ``facts``: say what you are made of first."""
    return {
        "id": "wait",
        "action": "wait",
        "seconds": min(round(seconds + 0.005, 2), WAIT_SECONDS),
        "facts": facts,
    }


def waits(machine: Machine) -> bool:
    """Whether a machine that has no work now is to wait for some; else it starts again, and boots what it is told then."""
    if machine.target.boot is not Boot.LOCAL:
        return machine.target.boot is not Boot.INSTALLER
    if machine.host is None:
        return False
    state, deployment = machine.host.row.state, machine.host.deployment
    if state == "building":
        return deployment is None or deployment.built_at is None
    return state in _WAITING_STATES


def image_plan(host: ResolvedHost, source: ImageSource, urls: BuildUrls) -> dict[str, Any]:
    """Write the image. Raises RenderError when a parameter or the storage description cannot stand in a plan.

    ``layout`` is the storage plan (templating/disks.py) where the image's root file system goes into one made for it, and None where
    the whole image goes onto the disk of /. Parameters of the host: `finish` (kexec or reboot), `serial_console`, `kernel_arguments`,
    `luks_passphrase`; of the image: `root_label` (default root) and `kernel_arguments`.
    """
    assert host.deployment is not None
    own, image = host.parameters, host.image.parameters if host.image else {}
    label, finish = str(image.get("root_label", "root")), str(own.get("finish", "kexec"))
    if finish not in {"kexec", "reboot"}:
        raise RenderError(
            "plan", f"parameter 'finish' of host {host.name} must be kexec or reboot, not {finish!r}", key="finish"
        )  # fmt: skip
    console = own.get("serial_console", CONSOLE)
    root = _root(source.partitions)
    storage = _storage(host, root["filesystem"] if root else None)
    layout = source.map is None or needs_layout(storage)
    return {
        "id": host.deployment.id,
        "action": "image",
        "image": {
            "url": f"{urls.base}/{source.name}",
            "map": f"{urls.base}/blockmap" if source.map else None,
            "encoding": source.encoding,
            "sha256": source.sha256,
            "size_mib": source.size_mib,
            "used_mib": source.used_mib,
            "root": root,
            "partitions": list(source.partitions),
        },
        "disk": _root_disk(storage),
        "keep": storage["keep"],
        "layout": storage if layout else None,
        "passphrase": _passphrase(host) if layout and storage["encrypted"] else None,
        "firmware": host.row.firmware,
        "seed": {name: f"{urls.base}/{name}" for name in SEED},
        "finish": finish,
        "cmdline": " ".join(_arguments(host, [f"root=LABEL={label}", "ro"])),
        "serial": console.partition(",")[0] if isinstance(console, str) else None,
        "hostname": host.name,
    }


def task_plan(host: ResolvedHost, box: SecretBox, tests: Sequence[TestScript]) -> dict[str, Any]:
    """Inspect, erase or rescue, by the host's task; ``tests`` are those that it is to run. Raises RenderError."""
    task = host.task
    assert task is not None
    plan: dict[str, Any] = {"id": task.id, "action": task.kind}
    listed = [{"name": t.name, "timeout": t.timeout, "sha256": t.sha256} for t in tests]
    if task.kind == "inspect":
        secret = json.loads(box.decrypt(task.secret)) if task.secret else {}
        return {**plan, "tests": listed, "bmc": secret.get("bmc")}
    if task.kind == "erase":
        mode = task.options.get("mode", "auto")
        return {**plan, "mode": mode, "keep": _storage(host)["keep"], "tests": listed}
    return {**plan, "keys": list(task.options.get("keys", ()))}


def _storage(host: ResolvedHost, filesystem: str | None = None) -> dict[str, Any]:
    """The storage plan; ``filesystem`` is the image's own, for a description that says none."""
    try:
        storage = Storage.model_validate(host.storage) if host.storage is not None else None
        return plan_storage(storage, host.row.firmware, filesystem)
    except ValueError as error:
        raise RenderError(
            "plan", f"the storage description of host {host.name} does not fit: {error}", key="storage"
        ) from None


def _root_disk(storage: dict[str, Any]) -> dict[str, Any] | None:
    """The selector of the disk that carries / in a partition; None where / is on a RAID or volume."""
    root = storage["root"]["name"]
    holding = (d for d in storage["disks"] if root in [p["name"] for p in d["partitions"]])
    return next((dict(disk["match"]) for disk in holding), None)


def _passphrase(host: ResolvedHost) -> str:
    given = host.parameters.get(PASSPHRASE)
    if not isinstance(given, str) or not given:
        raise RenderError(
            "plan", f"the storage of host {host.name} is to be encrypted: its parameter {PASSPHRASE} must say with what",
            key=PASSPHRASE,
        )  # fmt: skip
    return given


def _root(partitions: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The partition of the image that holds /, where it is known."""
    found = next((p for p in partitions if p.get("mount") == "/"), None)
    return {key: found.get(key) for key in ("number", "filesystem", "label")} if found else None


def _arguments(host: ResolvedHost, words: list[object]) -> list[str]:
    """Kernel arguments of the first start, when the ramdisk starts the new kernel itself: ``words`` and those of host and image."""
    console = host.parameters.get("serial_console", CONSOLE)
    words += ["console=tty0", f"console={console}"] if isinstance(console, str) else []
    for parameters in (host.image.parameters if host.image else {}, host.parameters):
        several = parameters.get("kernel_arguments", ())
        words += several if isinstance(several, list | tuple) else []
    try:
        return [kargs(word) for word in words]
    except ValueError as error:
        raise RenderError(
            "plan", f"kernel_arguments of host {host.name}: {error}", key="kernel_arguments"
        ) from None
