"""Parsers of what machines say: recorded outputs of real ones (samples/README.md), and whatever else may come."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisiond.inventory.facts import Facts, real_serial, real_uuid
from ramdisk_agent.facts import bmc, cpu, disks, dmi, firmware, gpus, lshw, memory, nics

SAMPLES = Path(__file__).parent / "samples"
CHECKS = Path(__file__).parents[3] / "pxe/ramdisk/checks"


def check(name: str) -> ModuleType:
    """A hardware test as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(CHECKS / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _dmi(text: str) -> dict[str, Any]:
    return dmi.machine(dmi.parse_dmidecode(text))


PARSERS: dict[str, Any] = {
    "dmidecode": _dmi,
    "lshw": lshw.parse_lshw,
    "lsblk": disks.parse_lsblk,
    "lan": bmc.parse_lan,
    "mc-info": bmc.parse_info,
    "fru": bmc.parse_fru,
    "smart": check("disk-smart").judge,
}
FILES = sorted(p for p in SAMPLES.glob("*/*") if not p.name.endswith(".golden.json"))


@pytest.mark.parametrize("sample", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_what_real_machines_said(sample: Path) -> None:
    """The parser makes of each recorded output what a person read in it."""
    made = json.loads(json.dumps(PARSERS[sample.parent.name](sample.read_text())))
    golden = sample.with_suffix(".golden.json")
    if os.environ.get("REWRITE_GOLDEN"):
        golden.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    assert made == json.loads(golden.read_text())


@pytest.mark.parametrize("name", sorted(PARSERS))
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_text_makes_a_parser_raise(name: str, data: st.DataObject) -> None:
    """Neither random text nor a recorded output with pieces of it cut, doubled or replaced."""
    sample = data.draw(st.sampled_from([f for f in FILES if f.parent.name == name])).read_text()
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(sample))] * 2)))
    PARSERS[name](sample[:begin] + data.draw(st.text(max_size=40)) + sample[end:])
    PARSERS[name](data.draw(st.text(max_size=200)))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "class", "children", "configuration", "size", "serial", "logicalname", "businfo", "blockdevices",
                 "name", "kname", "type", "rota", "smart_status", "ata_smart_attributes", "table", "raw", "value",
                 "nvme_smart_health_information_log", "media_errors", "percentage_used", "scsi_error_counter_log", "read"]
            ),
            inner | st.sampled_from(["network", "disk", "processor", "memory", "display", "cpu", "bank:0"]),
            max_size=6,
        )
    ),
    max_leaves=20,
)  # fmt: skip


@pytest.mark.parametrize("name", ["lshw", "lsblk"])
@settings(max_examples=40, deadline=None)
@given(_JSON)
def test_no_json_makes_a_parser_raise(name: str, value: Any) -> None:
    """JSON of other shapes than a program's gives what it gives, and never an error."""
    PARSERS[name](json.dumps(value))
    PARSERS[name](json.dumps({"blockdevices": value, "class": "system", "children": value}))


@settings(max_examples=40, deadline=None)
@given(_JSON)
def test_no_json_makes_the_judgement_of_a_disk_raise(value: Any) -> None:
    """A disk that says odd things about itself has no SMART or gets a verdict."""
    judge = PARSERS["smart"]
    for one in (
        value,
        {"smart_status": value, "nvme_smart_health_information_log": value},
        {"ata_smart_attributes": value},
    ):
        assert judge(json.dumps(one)) is None or judge(json.dumps(one))[0] in (0, 1, 2)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=300))
def test_no_text_of_the_kernel_makes_a_parser_raise(text: str) -> None:
    """cpuinfo, meminfo, kernel arguments, pci.ids."""
    cpu.parse_cpuinfo(text + "\nprocessor : 0\nphysical id : x\n" + text)
    memory.parse_meminfo("MemTotal: " + text)
    nics.boot_mac(text)
    gpus.parse_pci_ids(text, {"10de"})


def test_identity_of_real_machines() -> None:
    """What the agent tells of each machine names it, or is seen to be nobody's."""
    known = {p.stem: PARSERS["dmidecode"](p.read_text()) for p in FILES if p.parent.name == "dmidecode"}
    told = {name: (real_serial(m["serial"]), real_uuid(m["uuid"])) for name, m in known.items()}
    assert told["asrock-desktop"] == (None, None) and told["none"] == (None, None)
    assert told["supermicro-6018r"] == ("A177950X7709591", "00000000-0000-0000-0000-0cc47a4b18c0")
    assert told["qemu"] == (None, "99163626-edcf-fb4c-a81c-a7fd9eaa058e")
    assert all(Facts.model_validate(m).board.model != "" for m in known.values())


def test_virtual_machines_are_known() -> None:
    """By what their firmware says; the serial number that all guests of a RHEV host share is not theirs."""
    for name, virtual in {
        "rhev": "kvm",
        "vmware": "vmware",
        "dell-m630": None,
        "hpe-bl460c-gen10": None,
    }.items():
        machine = PARSERS["dmidecode"]((SAMPLES / f"dmidecode/{name}.txt").read_text())
        assert firmware.virtual(machine["vendor"], machine["model"], root="/nowhere") == virtual
        serial = firmware.own_serial(machine, virtual)
        assert serial == (None if name == "rhev" else machine["serial"])
    assert firmware.virtual("QEMU", "Standard PC (Q35 + ICH9, 2009)", root="/nowhere") == "qemu"


X86 = """processor\t: {n}
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7302P 16-Core Processor
cpu MHz\t\t: 1794.163
physical id\t: 0
core id\t\t: {core}
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n\nprocessor\t: 1\nCPU part\t: 0xd0c\n"


def test_processors() -> None:
    """Threads of one core are counted as one core; arm64 has no topology there but a name."""
    amd = cpu.parse_cpuinfo("\n".join(X86.format(n=n, core=n % 16) for n in range(32)))
    assert amd == {
        "model": "AMD EPYC 7302P 16-Core Processor", "vendor": "AuthenticAMD", "sockets": 1, "cores": 16, "threads": 32, "mhz": 1794,
    }  # fmt: skip
    arm = cpu.parse_cpuinfo(ARM)
    assert (arm["model"], arm["vendor"], arm["threads"], arm["cores"]) == ("Neoverse N1", "ARM", 2, None)


def test_the_card_that_was_booted_from() -> None:
    """PXELINUX and GRUB write its MAC with dashes and the hardware type, iPXE's script as provisiond.mac."""
    for line in (
        "quiet BOOTIF=01-52-54-00-AA-BB-CC x",
        "provisiond.mac=52:54:00:aa:bb:cc",
        "BOOTIF=52-54-00-aa-bb-cc",
    ):
        assert nics.boot_mac(line) == "52:54:00:aa:bb:cc"
    assert nics.boot_mac("provisiond.url=http://x/?mac=52:54:00:aa:bb:cc") is None


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_gpus_but_no_consoles(tmp_path: Path) -> None:
    """A GPU has its name from the table, from pci.ids or its number; a server's console is none."""
    root = _tree(
        tmp_path,
        {
            "0000:01:00.0/class": "0x030200\n", "0000:01:00.0/vendor": "0x10de\n", "0000:01:00.0/device": "0x20b5\n",
            "0000:02:00.0/class": "0x030000\n", "0000:02:00.0/vendor": "0x1a03\n", "0000:02:00.0/device": "0x2000\n",
            "0000:03:00.0/class": "0x030000\n", "0000:03:00.0/vendor": "0x10de\n", "0000:03:00.0/device": "0xffff\n",
            "0000:04:00.0/class": "0x020000\n", "0000:04:00.0/vendor": "0x8086\n", "0000:04:00.0/device": "0x1521\n",
            "pci.ids": "# names\n10de  NVIDIA Corporation\n\tffff  Future One\n\t\t10de 1 Sub\n1002  AMD\n",
        },
    )  # fmt: skip
    found = gpus.gather(str(root), (str(root / "pci.ids"),))
    assert found == [
        {"vendor": "NVIDIA", "model": "A100 PCIe 80GB", "pci": "0000:01:00.0"},
        {"vendor": "NVIDIA", "model": "Future One", "pci": "0000:03:00.0"},
    ]
    assert gpus.gather(str(root), ())[1]["model"] == "10de:ffff"


def test_tables_by_the_kernel(tmp_path: Path) -> None:
    """Without dmidecode, sysfs tells the same but for the modules."""
    _tree(tmp_path, {"sys_vendor": "Dell Inc.\n", "product_name": "PowerEdge R650\n", "product_serial": "J4RMKQ2\n",
                     "chassis_type": "23\n", "product_uuid": "4C4C4544-0051\n", "bios_version": "1.2\n"})  # fmt: skip
    told = dmi.from_sysfs(str(tmp_path))
    assert (told["vendor"], told["serial"], told["chassis"]["type"]) == (
        "Dell Inc.",
        "J4RMKQ2",
        "rack mount chassis",
    )
    assert told["uuid"] == "4c4c4544-0051" and set(told) == set(dmi.machine([]))


def test_secure_boot_and_tpm(tmp_path: Path) -> None:
    """The variable has four bytes of attributes before its value."""
    name = "efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    assert firmware.secure_boot(str(tmp_path)) is None and firmware.tpm(str(tmp_path)) is None
    (tmp_path / "efivars").mkdir()
    for value, means in ((b"\x06\0\0\0\x01", True), (b"\x06\0\0\0\x00", False), (b"\x06", None)):
        (tmp_path / name).write_bytes(value)
        assert firmware.secure_boot(str(tmp_path)) is means
    _tree(tmp_path, {"tpm0/tpm_version_major": "2\n"})
    assert firmware.tpm(str(tmp_path)) == "2.0"


def test_cards_on_usb_are_left_out(tmp_path: Path) -> None:
    """Management controllers show one with the same address on many machines; the one that was booted from counts."""
    for card, place in {
        "eth0": "pci0000:00/0000:00:03.0",
        "usb0": "pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0",
    }.items():
        device = tmp_path / "devices" / place
        device.mkdir(parents=True)
        _tree(tmp_path / "net" / card, {"type": "1\n", "address": f"02:00:00:00:00:0{len(place) % 10}\n"})
        (tmp_path / "net" / card / "device").symlink_to(device)
    _tree(tmp_path / "net/br0", {"type": "1\n"})
    root = str(tmp_path / "net")
    assert nics.cards(None, root) == ["eth0"]
    mac = (tmp_path / "net/usb0/address").read_text().strip()
    assert nics.cards(mac, root) == ["eth0", "usb0"]
    assert nics.describe("eth0", None, root)["pci"] == "0000:00:03.0"


def test_what_lshw_knows_fills_gaps_only() -> None:
    """Nothing that another source told is replaced."""
    facts: dict[str, Any] = {
        "vendor": "Dell",
        "model": None,
        "cpu": {"cores": None, "threads": 4},
        "disks": [],
        "gpus": [{"pci": "a"}],
    }
    lshw.fill(
        facts,
        {
            "vendor": "X",
            "model": "R1",
            "cpu": {"cores": 2, "threads": 9},
            "disks": [1],
            "gpus": [2],
            "serial": None,
        },
    )
    assert facts == {
        "vendor": "Dell",
        "model": "R1",
        "cpu": {"cores": 2, "threads": 4},
        "disks": [1],
        "gpus": [{"pci": "a"}],
    }


def test_transports() -> None:
    """A USB disk hangs on PCI too, a SAS one behind an expander."""
    assert (
        disks.transport("/sys/devices/pci0000:00/0000:00:14.0/usb1/1-1/1-1:1.0/host6/target6:0:0/6:0:0:0")
        == "usb"
    )
    assert disks.transport("/sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0") == "sata"
    assert (
        disks.transport(
            "/sys/devices/pci0000:3a/0000:3b:00.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0"
        )
        == "sas"
    )
    assert disks.transport("/sys/devices/pci0000:80/0000:81:00.0/nvme/nvme0") == "nvme"
    assert disks.transport("/sys/devices/pci0000:00/0000:00:05.0/virtio2") == "virtio"
