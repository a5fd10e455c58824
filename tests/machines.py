"""Machines as their ramdisks tell of them, for tests of discovery: facts like those of real servers, and sessions of the ramdisk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from provisiond.config import Settings, load_settings
from provisiond.discovery.intake import take_facts
from provisiond.inventory.facts import Facts
from provisiond.inventory.hardware_tables import AgentSession, Hardware
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Event, Host, Interface, Subnet, new_id, new_row, table

GIB = 1 << 30


def server(number: int = 1, **changes: Any) -> dict[str, Any]:
    """The facts of a Dell R640 with two cards, two SSDs and a DVD drive; ``changes`` replace whole fields."""
    facts: dict[str, Any] = {
        "version": 1, "vendor": "Dell Inc.", "model": "PowerEdge R640", "serial": f"7XK{number:04}", "sku": "SKU=NotProvided",
        "uuid": f"4c4c4544-0058-4b10-8030-{number:012x}",
        "board": {"vendor": "Dell Inc.", "model": "0H28RR", "serial": f".7XK{number:04}.CNFCP0089A00AB."},
        "chassis": {"type": "rack mount chassis", "serial": f"7XK{number:04}", "asset": None},
        "firmware": {"mode": "uefi", "vendor": "Dell Inc.", "version": "2.12.2", "date": "07/09/2021", "secure_boot": False},
        "architecture": "x86_64",
        "cpu": {"model": "Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz", "vendor": "GenuineIntel", "sockets": 2, "cores": 32, "threads": 64, "mhz": 3700},
        "memory": {"mib": 65536, "dimms": [
            {"slot": slot, "mib": 32768, "type": "DDR4", "mts": 2666, "vendor": "Samsung",
             "serial": f"36F{number:04}{slot}", "part": "M393A4K40CB2-CTD"}
            for slot in ("A1", "B1")]},
        "disks": [
            {"name": f"sd{letter}", "path": f"/dev/sd{letter}", "model": "SAMSUNG MZ7LH960",
             "serial": f"S45N{number:04}{letter}", "size": 960197124096,
             "rotational": False, "wwn": f"0x5002538e{number:04x}000{n}", "by_id": [f"ata-SAMSUNG_{number}{letter}"],
             "by_path": f"pci-0000:00:17.0-ata-{n}", "transport": "sata", "removable": False, "read_only": False}
            for n, letter in enumerate("ab", 1)]
        + [{"name": "sr0", "path": "/dev/sr0", "model": "DVD-ROM", "serial": None, "size": None, "rotational": True, "removable": True}],
        "nics": [
            {"name": f"eno{n}", "mac": f"e4:43:4b:00:{number:02x}:{n:02x}", "driver": "tg3", "pci": f"0000:19:00.{n - 1}", "link": n == 1,
             "mbps": 1000 if n == 1 else None, "boot": n == 1,
             "lldp": {"chassis": "00:1c:73:aa:bb:cc", "port": f"Ethernet{number}",
                      "port_description": "", "system": "rack1-sw1", "vlan": 100} if n == 1 else None}
            for n in (1, 2)],
        "bmc": {"address": f"10.99.0.{number % 250 + 1}", "mac": f"e4:43:4b:01:{number:02x}:00", "version": "4.40"},
        "gpus": [{"vendor": "Matrox", "model": "G200eW3", "pci": "0000:03:00.0"}], "tpm": "2.0", "virtual": None,
    }  # fmt: skip
    return {**facts, **changes}


def whitebox(number: int = 1) -> dict[str, Any]:
    """A board whose maker wrote nothing in: what it calls its serial number and UUID identifies nothing."""
    return server(
        number, vendor="To be filled by O.E.M.", model="Default string", serial="Default string",
        uuid="03000200-0400-0500-0006-000700080009", bmc=None,
        nics=[{"name": "eth0", "mac": f"d0:50:99:00:00:{number:02x}", "driver": "igb", "boot": True, "link": True}],
    )  # fmt: skip


@dataclass
class Lobby:
    """Where machines report: a store with a subnet that discovers, and what became of them."""

    settings: Settings
    store: Store
    box: SecretBox
    subnet_id: str = ""

    async def boot(self, facts: dict[str, Any], *, host_id: str | None = None, address: str = "10.0.0.200") -> AgentSession:  # fmt: skip
        """A session of the ramdisk as the door begins it at a claim."""
        macs = [nic["mac"] for nic in facts["nics"]]
        mac = next((nic["mac"] for nic in facts["nics"] if nic.get("boot")), macs[0] if macs else "")
        row = AgentSession(
            id=new_id(), host_id=host_id, mac=mac, macs=macs, secret_hash="0" * 64, address=address, serial=facts["serial"]
        )  # fmt: skip
        async with self.store.write() as session:
            session.add(row)
        return row

    async def report(self, facts: dict[str, Any], **told: Any) -> str:
        """Boot, and tell the facts; the host's name."""
        return await take_facts(self, await self.boot(facts, **told), Facts.model_validate(facts))

    async def hosts(self) -> dict[str, Any]:
        """Every host's row by name."""
        async with self.store.read() as session:
            return {row.name: row for row in await session.execute(select(table(Host)))}

    async def macs(self, name: str) -> list[str]:
        host = (await self.hosts())[name]
        i = table(Interface)
        async with self.store.read() as session:
            found = await session.execute(
                select(i.c.mac).where(i.c.host_id == host.id).order_by(i.c.primary.desc(), i.c.mac)
            )
            return list(found.scalars())

    async def events(self, kind: str) -> list[Any]:
        e = table(Event)
        async with self.store.read() as session:
            return list(await session.execute(select(e).where(e.c.kind == kind).order_by(e.c.id)))

    async def snapshots(self, name: str) -> list[Any]:
        host = (await self.hosts())[name]
        h = table(Hardware)
        async with self.store.read() as session:
            return list(await session.execute(select(h).where(h.c.host_id == host.id).order_by(h.c.id)))


async def open_lobby(store: Store, directory: Path, **overrides: Any) -> Lobby:
    """With subnet rack1 (10.0.0.0/24), whose pool has four addresses."""
    settings = load_settings(None, {"state": {"dir": directory}, **overrides})
    lobby = Lobby(settings, store, SecretBox.open(directory / "secret.key"))
    row = new_row(
        Subnet, name="rack1", cidr="10.0.0.0/24", unknown="discover", pools=[["10.0.0.10", "10.0.0.13"]],
        dynamic=[["10.0.0.200", "10.0.0.250"]],
    )  # fmt: skip
    async with store.write("catalogue") as session:
        await session.execute(insert(table(Subnet)), row)
    lobby.subnet_id = row["id"]
    return lobby
