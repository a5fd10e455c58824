"""What this machine is made of: `gather()`, one module a source. Shape: docs/hardware.md.

Programs and slow sources run beside each other. A source that fails leaves its part empty and a line in the log: a machine
whose controller hangs must still appear. Switches announce themselves only every 30 s, so the first report goes without
them, and `stale()` says when it is time for another.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

VERSION = 1
BMC_SECONDS = 20.0  # how long a report waits for a slow controller; it comes with the next one

_lldp: Any = None  # the one lldp.Listener of this process
_late: set[str] = set()  # sources that were not ready for the last report
_reported: dict[str, Any] = {}  # what the last report was made of, as far as it may change


class _Source(threading.Thread):
    """One source at work: `result`, or `error` when it failed."""

    def __init__(self, name: str, function: Callable[[], Any]) -> None:
        super().__init__(name=f"facts-{name}", daemon=True)
        self.function = function
        self.result: Any = None
        self.start()

    def run(self) -> None:
        from ramdisk_agent.log import LOG

        began = time.monotonic()
        try:
            self.result = self.function()
            LOG.add(f"facts: {self.name} took {time.monotonic() - began:.2f} s")
        except Exception as error:  # one source must not take the others with it
            LOG.add(f"facts: {self.name} failed: {type(error).__name__}: {error}")


_bmc: _Source | None = None


def gather(lldp_seconds: float = 0.0) -> dict[str, Any]:
    """The facts of this machine, as POST /agent/facts takes them. `lldp_seconds`: how long to wait for the switches."""
    global _bmc
    from ramdisk_agent.facts import cpu, dmi, firmware, gpus, lshw, memory, nics, text
    from ramdisk_agent.log import LOG

    boot = nics.boot_mac(text.read("/proc/cmdline"))
    names = nics.cards(boot)
    nics.bring_up(names)
    _listener().start(names)
    firm = _Source("dmi", dmi.gather)
    disks = _Source("disks", _disks)
    cards = [nics.describe(name, boot) for name in names]
    graphics = _Source("gpus", gpus.gather)
    firm.join()
    machine: dict[str, Any] = firm.result or dmi.from_sysfs()
    if _bmc is None:
        told = bool(machine["controller"])
        _bmc = _Source("bmc", lambda: _controller(told))
    started = firmware.gather(machine)
    facts: dict[str, Any] = {
        "version": VERSION,
        **{key: machine[key] for key in ("vendor", "model", "serial", "uuid", "sku", "board", "chassis")},
        "serial": firmware.own_serial(machine, started["virtual"]),
        "firmware": {**machine["firmware"], **started["firmware"]},
        "architecture": os.uname().machine,
        "cpu": cpu.gather(machine["processors"]),
        "memory": memory.gather(machine["dimms"]),
        "tpm": started["tpm"],
        "virtual": started["virtual"],
    }
    if lldp_seconds:
        _listener().wait([c["name"] for c in cards if c["link"]], lldp_seconds)
    heard = _listener().heard()
    for card in cards:
        card["lldp"] = heard.get(card["name"])
    disks.join()
    graphics.join()
    _bmc.join(BMC_SECONDS)
    controller = _bmc.result or {"bmc": None, "fru": {}}
    facts |= {
        "disks": disks.result or [],
        "nics": cards,
        "bmc": controller["bmc"],
        "gpus": graphics.result or [],
    }
    lshw.fill(facts, controller["fru"])
    _Source("lshw", lambda: lshw.gather(facts)).join()
    _reported.clear()
    _reported.update(lldp=heard, seen=_seen(boot), boot=boot)
    _late.clear()
    if _bmc.is_alive():
        _late.add("bmc")
        LOG.add("facts: the controller has not answered yet; it is told of when it does")
    else:
        _bmc = None if controller["bmc"] is None else _bmc
    return facts


def stale() -> bool:
    """Whether something came up since the last report: a switch announced itself, a link came or went, the controller answered,
    a disk or a card appeared or is gone."""
    if not _reported:
        return False
    if _lldp is not None and _lldp.heard() != _reported["lldp"]:
        return True
    if "bmc" in _late and _bmc is not None and not _bmc.is_alive():
        return True
    return bool(_seen(_reported["boot"]) != _reported["seen"])


def refresh() -> None:
    """Ask the controller anew at the next report: its set-up may have changed."""
    global _bmc
    if _bmc is not None and not _bmc.is_alive():
        _bmc = None


def _listener() -> Any:
    global _lldp
    if _lldp is None:
        from ramdisk_agent.facts.lldp import Listener

        _lldp = Listener()
    return _lldp


def _disks() -> list[dict[str, Any]]:
    from ramdisk_agent.drivers import settle
    from ramdisk_agent.facts import disks

    settle()
    return disks.gather()


def _controller(told: bool) -> dict[str, Any]:
    from ramdisk_agent.drivers import settle
    from ramdisk_agent.facts import bmc

    settle()
    return bmc.gather() if bmc.present(told) else {"bmc": None, "fru": {}}


def _seen(boot: str | None) -> tuple[list[str], dict[str, str]]:
    """Names of disks and whether each card has a link: what may change while the machine waits."""
    from ramdisk_agent.facts import nics
    from ramdisk_agent.facts.text import names, read

    return names("/sys/block"), {name: read(f"/sys/class/net/{name}/carrier") for name in nics.cards(boot)}
