"""GPUs: display controllers on PCI (class 03), but for the console of a server's controller and of a virtual machine."""

from typing import Any

from ramdisk_agent.facts.text import names, read

_NAMES_FILES = ("/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids")
_VENDORS = {"10de": "NVIDIA", "1002": "AMD", "8086": "Intel"}
# ASPEED, Matrox (controllers of servers), QEMU, Cirrus, virtio, QXL, VMware, Hyper-V, VirtualBox: a console, not a GPU
_CONSOLES = frozenset(["1a03", "102b", "1234", "1013", "1af4", "1b36", "15ad", "1414", "80ee"])
_MODELS = {  # the usual ones in servers, for a ramdisk without pci.ids
    "10de:15f8": "Tesla P100 PCIe 16GB", "10de:1b38": "Tesla P40", "10de:1bb3": "Tesla P4", "10de:1db1": "Tesla V100 SXM2 16GB",
    "10de:1db4": "Tesla V100 PCIe 16GB", "10de:1db5": "Tesla V100 SXM2 32GB", "10de:1db6": "Tesla V100 PCIe 32GB",
    "10de:1eb8": "Tesla T4", "10de:20b0": "A100 SXM4 40GB", "10de:20b2": "A100 SXM4 80GB", "10de:20b5": "A100 PCIe 80GB",
    "10de:20b7": "A30 PCIe", "10de:20f1": "A100 PCIe 40GB", "10de:2235": "A40", "10de:2236": "A10", "10de:25b6": "A16 / A2",
    "10de:2321": "H100L 94GB", "10de:2330": "H100 SXM5 80GB", "10de:2331": "H100 PCIe", "10de:2335": "H200 SXM 141GB",
    "10de:26b5": "L40", "10de:26b9": "L40S", "10de:27b8": "L4",
    "1002:738c": "Instinct MI100", "1002:7408": "Instinct MI250X", "1002:740f": "Instinct MI210", "1002:74a1": "Instinct MI300X",
    "8086:56c0": "Data Center GPU Flex 170", "8086:56c1": "Data Center GPU Flex 140", "8086:0bd5": "Data Center GPU Max 1550",
    "8086:0bda": "Data Center GPU Max 1100",
}  # fmt: skip


def parse_pci_ids(text: str, wanted: set[str]) -> dict[str, str]:
    """Names out of pci.ids for `wanted`, each VENDOR or VENDOR:DEVICE in hex."""
    names: dict[str, str] = {}
    vendor = ""
    for line in text.splitlines():
        if line.startswith("\t\t") or not line or line[0] == "#":
            continue
        number, _, name = line.strip().partition(" ")
        if line[0] != "\t":
            vendor = number
            key = vendor
        else:
            key = f"{vendor}:{number}"
        if key in wanted:
            names.setdefault(key, name.strip())
    return names


def gather(
    root: str = "/sys/bus/pci/devices", names_files: tuple[str, ...] = _NAMES_FILES
) -> list[dict[str, Any]]:
    """facts["gpus"]."""
    found = []
    for pci in names(root):
        vendor = read(f"{root}/{pci}/vendor").removeprefix("0x")
        if read(f"{root}/{pci}/class").startswith("0x03") and vendor and vendor not in _CONSOLES:
            found.append((pci, vendor, f"{vendor}:{read(f'{root}/{pci}/device').removeprefix('0x')}"))
    known = {**_VENDORS, **_MODELS}
    missing = {key for _, vendor, device in found for key in (vendor, device)} - set(known)
    if missing:
        known |= parse_pci_ids("".join(_whole(file) for file in names_files[:2]), missing)
    return [
        {"vendor": known.get(vendor, vendor), "model": known.get(device, device), "pci": pci}
        for pci, vendor, device in found
    ]


def _whole(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
