"""lshw -json: one tree of everything. Asked only where the ramdisk has that program, for what the other sources left open.

It reads firmware tables and device trees that nothing else here does (POWER, many arm64 boards), but needs seconds.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from ramdisk_agent.facts.text import mac, number, said

Node = dict[str, Any]

_DIMM = re.compile(r"\b(DDR[2-5]?|LPDDR[2-5]|HBM[23]?)\b")
_RATE = re.compile(r"([0-9]{1,5})\s*(?:MT/s|MHz)")
_BITS = re.compile(r"([0-9]{1,6})\s*([MG])bit/s")


def parse_lshw(text: str) -> dict[str, Any]:
    """The part of facts that lshw tells; {} for text that is not its JSON."""
    try:
        top = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    nodes = list(_walk(top, 0))
    root = nodes[0] if nodes else {}

    # a "SCSI processor" of a RAID controller is of class processor too, so ids count
    def of(kind: str) -> list[Node]:
        return [n for n in nodes if n.get("class") == kind]

    def named(beginning: str) -> Node:
        return next((n for n in nodes if str(n.get("id")).startswith(beginning)), {})

    settings = _dict(root.get("configuration"))
    board, firmware = named("core"), named("firmware")
    dimms = [d for n in of("memory") if re.match(r"bank(:|$)", str(n.get("id"))) and (d := _dimm(n))]
    return {
        "vendor": said(root.get("vendor")),
        "model": _product(root.get("product"), settings.get("sku")),
        "serial": said(root.get("serial")),
        "uuid": said(settings.get("uuid")),
        "sku": said(settings.get("sku")),
        "board": {
            k: said(board.get(v))
            for k, v in (("vendor", "vendor"), ("model", "product"), ("serial", "serial"))
        },
        "firmware": {k: said(firmware.get(k)) for k in ("vendor", "version", "date")},
        "cpu": _cpu(
            [
                n
                for n in of("processor")
                if re.match(r"cpu(:|$)", str(n.get("id"))) and n.get("disabled") is not True
            ]
        ),
        "memory": {"mib": _memory(of("memory"), dimms), "dimms": dimms},
        "disks": [d for n in nodes if n.get("class") == "disk" and (d := _disk(n))],
        "nics": [c for n in of("network") if (c := _nic(n))],
        "gpus": [
            {"vendor": said(n.get("vendor")), "model": said(n.get("product")), "pci": _pci(n)}
            for n in of("display")
            if _pci(n)
        ],
    }


def fill(facts: dict[str, Any], more: dict[str, Any]) -> None:
    """Put what `more` tells into the places of `facts` that are still None or empty."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(facts.get(key), dict):
            fill(facts[key], value)
        elif facts.get(key) in (None, [], {}) and value not in (None, [], {}):
            facts[key] = value


def gather(facts: dict[str, Any]) -> None:
    """Fill `facts` of this machine."""
    import shutil

    from ramdisk_agent.run import run

    if shutil.which("lshw"):
        fill(facts, parse_lshw(run(["lshw", "-json", "-quiet"], timeout=60, check=False)))


def _walk(value: object, depth: int) -> Iterator[Node]:
    """All nodes, parents first. Newer versions put the root into a list."""
    if depth > 64:
        return
    if isinstance(value, list):
        for one in value:
            yield from _walk(one, depth + 1)
    elif isinstance(value, dict):
        yield value
        yield from _walk(value.get("children"), depth + 1)


def _product(product: object, sku: object) -> str | None:
    """The model without the SKU that lshw puts behind it in brackets."""
    text = said(product)
    return text.removesuffix(f" ({sku})").strip() or None if text else None


def _cpu(nodes: list[Node]) -> dict[str, Any]:
    def total(key: str) -> int | None:
        counts = [number(_dict(n.get("configuration")).get(key)) for n in nodes]
        return sum(c for c in counts if c) or None

    first = nodes[0] if nodes else {}
    speed = _int(first.get("capacity")) or _int(first.get("size"))
    return {
        "model": said(first.get("product")) or said(first.get("version")),
        "vendor": said(first.get("vendor")),
        "sockets": len(nodes) or None,
        "cores": total("cores"),
        "threads": total("threads"),
        "mhz": speed // 1_000_000 if speed else None,
    }


def _dimm(node: Node) -> dict[str, Any] | None:
    size = _int(node.get("size"))
    if not size:
        return None  # an empty slot
    description = str(node.get("description"))
    kind, rate, clock = _DIMM.search(description), _RATE.search(description), _int(node.get("clock"))
    return {
        "slot": said(node.get("slot")),
        "mib": size >> 20,
        "type": kind[1] if kind else None,
        "mts": int(rate[1]) if rate else clock // 1_000_000 if clock else None,
        "vendor": said(node.get("vendor")),
        "serial": said(node.get("serial")),
        "part": said(node.get("product")),
    }


def _memory(nodes: list[Node], dimms: list[dict[str, Any]]) -> int | None:
    sizes = [_int(n.get("size")) for n in nodes if str(n.get("id")).split(":")[0] == "memory"]
    return sum(d["mib"] for d in dimms) or sum(s for s in sizes if s) >> 20 or None


def _disk(node: Node) -> dict[str, Any] | None:
    path = _names(node)[0] if _names(node) else ""
    size = _int(node.get("size"))
    if not path.startswith("/dev/") or not size or str(node.get("id")).startswith("cdrom"):
        return None
    turns = next((k for k in _dict(node.get("capabilities")) if re.fullmatch("[0-9]+rpm", k)), None)
    return {
        "name": path.removeprefix("/dev/"),
        "path": path,
        "model": said(node.get("product")),
        "serial": said(node.get("serial")),
        "size": size,
        "rotational": True if turns else None,
        "wwn": said(_dict(node.get("configuration")).get("wwid")),
        "by_id": [],
    }


def _nic(node: Node) -> dict[str, Any] | None:
    settings = _dict(node.get("configuration"))
    address = mac(node.get("serial"))
    if not address:
        return None
    speed = _BITS.search(str(settings.get("speed")))
    size = _int(node.get("size"))
    return {
        "name": _names(node)[0] if _names(node) else None,
        "mac": address,
        "driver": said(settings.get("driver")),
        "pci": _pci(node),
        "link": {"yes": True, "no": False}.get(str(settings.get("link"))),
        "mbps": int(speed[1]) * (1000 if speed[2] == "G" else 1)
        if speed
        else size // 1_000_000
        if size
        else None,
        "boot": None,
        "lldp": None,
    }


def _names(node: Node) -> list[str]:
    name = node.get("logicalname")
    return [n for n in (name if isinstance(name, list) else [name]) if isinstance(n, str)]


def _pci(node: Node) -> str | None:
    bus = node.get("businfo")
    return bus.removeprefix("pci@") if isinstance(bus, str) and bus.startswith("pci@") else None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None
