"""A machine's ramdisk without a machine: asks for its boot script, claims the ticket in it, and carries out its plans at once."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientError, ClientSession

_TICKET = re.compile(r"provisiond\.ticket=([A-Za-z0-9_-]+)")
DISK_BYTES = 64 << 30


class Refused(Exception):
    """The daemon refused with ``status``; the message is what it said."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{status}: {message}")


def facts_of(
    mac: str, serial: str | None = None, *, uuid: str | None = None, **changes: Any
) -> dict[str, Any]:
    """A report as a small server makes it: two disks, four DIMMs, two cards."""
    second = f"{mac[:6]}{(int(mac[6:8], 16) ^ 0x80):02x}{mac[8:]}"
    return {
        "version": 1, "vendor": "Example", "model": "Server 9000", "serial": serial, "uuid": uuid, "sku": "S9000-A",
        "board": {"vendor": "Example", "model": "Board 7", "serial": f"B{serial}" if serial else None},
        "chassis": {"type": "rack mount chassis", "serial": None, "asset": None},
        "firmware": {"mode": "uefi", "vendor": "Example", "version": "1.2.3", "date": "01/31/2026", "secure_boot": False},
        "architecture": "x86_64",
        "cpu": {"model": "Example CPU @ 2.40GHz", "vendor": "GenuineIntel", "sockets": 2, "cores": 32, "threads": 64, "mhz": 2400},
        "memory": {"mib": 65536, "dimms": [
            {"slot": f"DIMM_{letter}1", "mib": 16384, "type": "DDR4", "mts": 3200, "vendor": "Example", "serial": f"{serial}-{letter}",
             "part": "M393"}
            for letter in "ABCD"
        ]},
        "disks": [
            {"name": name, "path": f"/dev/{name}", "model": "EXAMPLE SSD", "serial": f"{mac.replace(':', '')}-{name}", "size": DISK_BYTES,
             "rotational": False, "wwn": f"0x5000{mac.replace(':', '')}", "by_id": [f"ata-EXAMPLE_{name}"], "by_path": f"pci-0000:00:1f.2-{name}",
             "transport": "sata", "removable": False, "read_only": False}
            for name in ("sda", "sdb")
        ],
        "nics": [
            {"name": "eno1", "mac": mac, "driver": "igb", "pci": "0000:01:00.0", "link": True, "mbps": 1000, "boot": True,
             "lldp": {"chassis": "00:11:22:33:44:55", "port": "ge-0/0/1", "port_description": "rack 1", "system": "sw1", "vlan": 10}},
            {"name": "eno2", "mac": second, "driver": "igb", "pci": "0000:01:00.1", "link": False, "mbps": None, "boot": False, "lldp": None},
        ],
        "bmc": None, "gpus": [], "tpm": "2.0", "virtual": None, **changes,
    }  # fmt: skip


class FakeRamdisk:
    """One boot of one machine. ``url`` is the root of the boot server; ``say`` is told each plan before it is carried out.

    ``trouble`` maps an action (image, inspect, erase, rescue) to the message that it fails with; ``pause`` is how many seconds pass
    between two questions.
    """

    def __init__(
        self,
        client: ClientSession,
        url: str,
        mac: str,
        *,
        serial: str | None = None,
        facts: dict[str, Any] | None = None,
        trouble: dict[str, str] | None = None,
        say: Callable[[dict[str, Any]], None] = lambda plan: None,
        pause: float = 0.05,
    ) -> None:
        self.client, self.url, self.mac, self.serial = client, url, mac, serial
        self.gathered = facts if facts is not None else facts_of(mac, serial)
        self.trouble, self.say, self.pause = trouble or {}, say, pause
        self.secret = secrets.token_hex(32)
        self.ticket = self.session = ""
        self.host: str | None = None
        self.done: list[dict[str, Any]] = []

    async def boot(self) -> bool:
        """Ask for the boot script, as iPXE does; whether it starts the ramdisk."""
        async with self.client.get(f"{self.url}/boot/ipxe", params={"mac": self.mac}) as answer:
            found = _TICKET.search(await answer.text())
        self.ticket = found[1] if found else ""
        return found is not None

    async def claim(self, **changes: Any) -> dict[str, Any]:
        """Turn the ticket into a session. Raises Refused."""
        identity = {"macs": [self.mac], "serial": self.serial, "uuid": None}
        body = {"ticket": self.ticket, "secret": self.secret, "identity": identity, "version": 1, **changes}
        answer = await self.ask("POST", "claim", body)
        self.session, self.host = answer["session"], answer["host"]
        return answer

    async def ask(self, method: str, name: str, body: Any = None) -> dict[str, Any]:
        """One call of /agent/NAME. Raises Refused."""
        headers = {"Authorization": f"Bearer {self.session}:{self.secret}"} if self.session else {}
        async with self.client.request(
            method, f"{self.url}/agent/{name}", json=body, headers=headers
        ) as answer:
            said = await answer.json()
            if answer.status != 200:
                raise Refused(answer.status, said.get("error", ""))
            return dict(said)

    async def plan(self) -> dict[str, Any]:
        """What to do now. Raises Refused."""
        return await self.ask("GET", "plan")

    async def progress(self, work: str, percent: int, text: str = "", done: int = 0, total: int = 0) -> bool:
        """Tell it; whether to go on."""
        body = {"id": work, "percent": percent, "text": text, "done": done, "total": total}
        return bool((await self.ask("POST", "progress", body))["go"])

    async def report(self) -> None:
        """Tell what the machine is made of."""
        self.host = (await self.ask("POST", "facts", self.gathered))["host"]

    async def step(self) -> dict[str, Any]:
        """Ask for the plan once and carry it out; the plan. Raises Refused."""
        plan = await self.plan()
        self.say(plan)
        if plan["action"] == "wait" and plan["facts"]:
            await self.report()
        elif plan["action"] in ("image", "inspect", "erase", "rescue"):
            await self._work(plan)
        return plan

    async def run(self) -> str:
        """Until the machine is to restart ('reboot', 'poweroff'), starts what it wrote ('kexec'), or its session is over ('over')."""
        while True:
            try:
                plan = await self.step()
            except Refused as refused:
                if refused.status in (401, 403, 410):
                    return "over"
                raise
            except (ClientError, OSError):  # the daemon restarts
                await asyncio.sleep(self.pause)
                continue
            if plan["action"] in ("reboot", "poweroff"):
                return str(plan["action"])
            if plan["action"] == "image" and plan["id"] in [d["id"] for d in self.done]:
                return str(plan["finish"])
            await asyncio.sleep(self.pause)

    async def _work(self, plan: dict[str, Any]) -> None:
        work, action = plan["id"], plan["action"]
        if not await self.progress(work, 1, action):
            return
        if message := self.trouble.get(action):
            await self.ask("POST", "log", {"id": work, "text": f"log of {action}\n{message}\n"})
            await self.ask("POST", "failed", {"id": work, "message": message, "log": f"{message}\n"})
            return
        result = await getattr(self, f"_{action}")(plan)
        if result is None:
            return
        await self.ask("POST", "log", {"id": work, "text": f"log of {action}\n"})
        await self.ask("POST", "done", {"id": work, "result": result})
        self.done.append(plan)

    async def _image(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        total = plan["image"]["used_mib"] << 20
        return {} if await self.progress(plan["id"], 90, "written", total, total) else None

    async def _inspect(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        await self.report()
        for test in plan["tests"]:
            result = {
                "id": plan["id"],
                "name": test["name"],
                "verdict": "pass",
                "output": "fine\n",
                "seconds": 1.5,
            }
            await self.ask("POST", "test", result)
        bmc = (
            {"address": "192.0.2.200", "mac": "52:54:00:bb:00:01", "username": plan["bmc"]["username"]}
            if plan["bmc"]
            else None
        )
        return {"bmc": bmc} if bmc else {}

    async def _erase(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        kept = {k["path"] for k in plan["keep"]} | {k["serial"] for k in plan["keep"]}
        gone = [d for d in self.gathered["disks"] if d["path"] not in kept and d["serial"] not in kept]
        for disk in gone:
            now = datetime.now(UTC).isoformat()
            told = {key: disk[key] for key in ("name", "path", "model", "serial", "wwn", "size")}
            record = {"method": "discard", "started": now, "ended": now, "verified": True, "message": ""}
            await self.ask("POST", "erased", {"id": plan["id"], "disk": told, **record})
        return {"disks": len(gone)}

    async def _rescue(self, plan: dict[str, Any]) -> dict[str, Any] | None:
        while await self.progress(plan["id"], 50, "rescue: ssh root@192.0.2.99"):
            await asyncio.sleep(self.pause)
        return None
