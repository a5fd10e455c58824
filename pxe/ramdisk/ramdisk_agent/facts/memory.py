"""Memory: the modules that the firmware tells of, or what the kernel has where it tells of none."""

from typing import Any

from ramdisk_agent.facts.text import number, read


def parse_meminfo(text: str) -> int | None:
    """MiB of MemTotal in /proc/meminfo: what is left after firmware and the kernel took theirs."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "MemTotal":
            kib = number(value)
            return kib // 1024 if kib else None
    return None


def gather(dimms: list[dict[str, Any]]) -> dict[str, Any]:
    """facts["memory"]."""
    told = sum(d["mib"] or 0 for d in dimms)
    return {"mib": told or parse_meminfo(read("/proc/meminfo")), "dimms": dimms}
