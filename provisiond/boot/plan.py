"""The plan of a build, as the ramdisk reads it: lines of `key value` (pxe/ramdisk/agent lists the keys)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from provisiond.boot.image_source import ImageSource
from provisiond.boot.target import Boot
from provisiond.errors import RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.storage import Storage
from provisiond.templating.context import BuildUrls
from provisiond.templating.disks import plan_storage
from provisiond.templating.quoting import kargs
from provisiond.templating.served import SEED

WAIT = "action wait\n"
REBOOT = "action reboot\n"
_VALUE = re.compile(r"[ -~]+")


def image_plan(host: ResolvedHost, source: ImageSource, urls: BuildUrls) -> str:
    """Write the image. Raises RenderError when a parameter cannot stand in a plan.

    The disk is the one that the storage description puts / on. Parameters of the host: `finish` (kexec or reboot); of the
    image: `root_label` (default root) and `kernel_arguments`.
    """
    own, image = host.parameters, host.image.parameters if host.image else {}
    label, finish = str(image.get("root_label", "root")), str(own.get("finish", "kexec"))
    if finish not in {"kexec", "reboot"}:
        raise RenderError(
            "plan",
            f"parameter 'finish' of host {host.name} must be kexec or reboot, not {finish!r}",
            key="finish",
        )
    console = own.get("serial_console", "ttyS0,115200n8")
    lines: dict[str, str] = {
        "action": "image",
        "disk": _disk(host),
        "image": f"{urls.base}/image",
        "map": f"{urls.base}/map",
        "bytes": str(source.size),
        "sha256": source.sha256,
        "rootlabel": label,
        "seed": " ".join(SEED),
        "finish": finish,
        "cmdline": " ".join([f"root=LABEL={label}", "ro", *_arguments(host, image)]),
    }
    if isinstance(console, str):
        lines["serial"] = console.partition(",")[0]
    for key, value in lines.items():
        if not _VALUE.fullmatch(str(value)):
            raise RenderError(
                "plan",
                f"{key} of host {host.name} holds a line break or another character no plan can hold",
                key=key,
            )
    return "".join(f"{key} {value}\n" for key, value in lines.items())


def _disk(host: ResolvedHost) -> str:
    """The device that the image is written to, or ``auto``: the first that is large enough. The ramdisk knows no more than paths."""
    try:
        storage = Storage.model_validate(host.storage) if host.storage is not None else None
    except ValueError as error:
        raise RenderError(
            "plan", f"the storage description of host {host.name} does not fit: {error}", key="storage"
        ) from None
    plan = plan_storage(storage, host.row.firmware)
    disk = next(
        (d for d in plan["disks"] if plan["root"]["name"] in [p["name"] for p in d["partitions"]]), None
    )
    match = disk["match"] if disk else None
    if match is not None and match["path"] is not None:
        return str(match["path"])
    if match is None or not match["first"] or plan["keep"]:
        raise RenderError(
            "plan",
            f"host {host.name}: an image is written to a disk that is named by its path, or to the first one where none is to be kept",
            key="storage.disks",
        )
    return "auto"


def _arguments(host: ResolvedHost, image: Mapping[str, object]) -> list[str]:
    """Kernel arguments of the first start, when the ramdisk starts the new kernel itself."""
    console = host.parameters.get("serial_console", "ttyS0,115200n8")
    words: list[object] = ["console=tty0", f"console={console}"] if isinstance(console, str) else []
    for several in (image.get("kernel_arguments", ()), host.parameters.get("kernel_arguments", ())):
        words += several if isinstance(several, list | tuple) else []
    try:
        return [kargs(word) for word in words]
    except ValueError as error:
        raise RenderError(
            "plan", f"kernel_arguments of host {host.name}: {error}", key="kernel_arguments"
        ) from None


def plan_for(boot: Boot, *, built: bool) -> str | None:
    """The plan of a machine that is not to write an image now; None: it is."""
    if boot is Boot.IMAGE:
        return None
    return REBOOT if built else WAIT
