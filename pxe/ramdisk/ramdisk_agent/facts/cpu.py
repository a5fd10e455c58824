"""Processors: /proc/cpuinfo, and the kernel's topology where that file tells none (arm64)."""

import re
from typing import Any

from ramdisk_agent.facts.text import names, number, read, said

# MIDR_EL1 implementers and parts, as the kernel's arch/arm64/include/asm/cputype.h numbers them
_ARM = {
    "0x41": "ARM",
    "0x43": "Cavium",
    "0x46": "Fujitsu",
    "0x48": "HiSilicon",
    "0x4e": "NVIDIA",
    "0x61": "Apple",
    "0xc0": "Ampere",
}
_ARM_CORES = {
    "0xd03": "Cortex-A53", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72", "0xd0c": "Neoverse N1", "0xd40": "Neoverse V1",
    "0xd49": "Neoverse N2", "0xd4f": "Neoverse V2",
}  # fmt: skip


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """The shape of facts["cpu"]; sockets and cores None where the text tells no topology."""
    cpus = []
    for block in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            name, colon, value = line.partition(":")
            if colon:
                fields.setdefault(name.strip(), value.strip())
        if fields.get("processor", "").isdigit():
            cpus.append(fields)
    first = cpus[0] if cpus else {}
    packages = {c["physical id"] for c in cpus if "physical id" in c}
    cores = {(c["physical id"], c["core id"]) for c in cpus if "physical id" in c and "core id" in c}
    implementer, part = first.get("CPU implementer", ""), first.get("CPU part", "")
    speeds = [s for c in cpus if (s := number(c.get("cpu MHz"))) is not None]
    return {
        "model": said(first.get("model name"))
        or (_ARM_CORES.get(part, part) if implementer == "0x41" else part)
        or None,
        "vendor": said(first.get("vendor_id")) or _ARM.get(implementer, implementer) or None,
        "sockets": len(packages) or None,
        "cores": len(cores) or None,
        "threads": len(cpus) or None,
        "mhz": max(speeds, default=None),
    }


def topology(root: str = "/sys/devices/system/cpu") -> dict[str, int | None]:
    """sockets, cores and the highest MHz as the kernel numbers them; None where it does not."""
    packages, cores = set[str](), set[tuple[str, ...]]()
    for name in names(root):
        package = (
            read(f"{root}/{name}/topology/physical_package_id") if re.fullmatch("cpu[0-9]+", name) else ""
        )
        if package.lstrip("-").isdigit():
            packages.add(package)
            cores.add(
                (package, read(f"{root}/{name}/topology/cluster_id"), read(f"{root}/{name}/topology/core_id"))
            )
    khz = number(read(f"{root}/cpu0/cpufreq/cpuinfo_max_freq"))
    return {
        "sockets": len(packages) or None,
        "cores": len(cores) or None,
        "mhz": khz // 1000 if khz else None,
    }


def gather(processors: list[dict[str, str]]) -> dict[str, Any]:
    """facts["cpu"] of this machine; `processors` are dmidecode's, for the speed and name that the kernel may not know."""
    cpu = parse_cpuinfo(read("/proc/cpuinfo"))
    kernel = topology()
    for key in ("sockets", "cores"):
        cpu[key] = cpu[key] or kernel[key]
    dmi = processors[0] if processors else {}
    if cpu["model"] is None or cpu["model"].startswith("0x"):
        cpu["model"] = said(dmi.get("Version")) or cpu["model"]
    if cpu["vendor"] is None or cpu["vendor"].startswith("0x"):
        cpu["vendor"] = said(dmi.get("Manufacturer")) or cpu["vendor"]
    cpu["mhz"] = kernel["mhz"] or cpu["mhz"] or number(dmi.get("Current Speed"))
    return cpu
