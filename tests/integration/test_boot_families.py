"""What machines of other families than Debian's are served, by a real boot server: unattended files, scripts, kexec."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import pytest_asyncio
import yaml
from sqlalchemy import update
from sqlmodel import col

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import CATALOGUE_CHANGED, Store
from provisiond.inventory.tables import OperatingSystem
from tests.boot_world import INITRD, KERNEL, Built, Served, boot_world

SECRETS = {
    "cluster": {"id": "aWQ=", "secret": "c2VjcmV0"}, "secrets": {"bootstraptoken": "abcdef.0123456789abcdef"},
    "trustdinfo": {"token": "fedcba.fedcba9876543210"}, "certs": {"k8s": {"crt": "Y3J0"}, "os": {"crt": "Y3J0"}},
}  # fmt: skip
TALOS = {"talos_cluster": "lab", "talos_endpoint": "https://k:6443", "talos_secrets": SECRETS}


@pytest_asyncio.fixture
async def served(sqlite_store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server on SQLite."""
    async with boot_world(sqlite_store, box, tmp_path) as running:
        yield running


async def installing(served: Served, family: str, version: str) -> Built:
    """A host that installs this system from the medium that is there."""
    async with served.world.store.write(CATALOGUE_CHANGED) as session:
        await session.execute(
            update(OperatingSystem)
            .where(col(OperatingSystem.id) == served.rows["os"])
            .values(family=family, version=version, name=f"{family}-{version}")
        )
    parameters = TALOS if family == "talos" else {}
    return await served.host("web01", method="installer", parameters=parameters)


@pytest.mark.parametrize(
    ("family", "version", "content_type", "argument"),
    [
        ("suse", "15.6", "application/xml", "autoyast={}"), ("suse", "16.0", "application/json", "inst.auto={}"),
        ("coreos", "stable", "application/json", "ignition.config.url={}"), ("flatcar", "4230", "application/json", "ignition.config.url={}"),
        ("talos", "1.10.5", "application/yaml", "talos.config={}"), ("debian", "12", "text/plain", "url={}"),
    ],
)  # fmt: skip
async def test_unattended(
    served: Served, family: str, version: str, content_type: str, argument: str
) -> None:
    """Every loader names the unattended file, which is served as what it is, and reads as that."""
    host = await installing(served, family, version)
    url = f"{served.world.boot_url}{host.base}/unattended"
    for path in (
        f"/boot/ipxe?mac={host.mac}",
        f"/boot/grub.cfg?mac={host.mac}",
        f"/boot/pxelinux.cfg?mac={host.mac}",
    ):
        status, script = await served.get(path)
        assert status == 200 and argument.format(url) in script, script
    async with served.client.get(url) as answer:
        assert (answer.status, answer.content_type) == (200, content_type)
        text = await answer.text()
    if content_type.endswith("xml"):
        ElementTree.fromstring(text)
    elif content_type.endswith("json"):
        json.loads(text)
    elif content_type.endswith("yaml"):
        yaml.safe_load(text)


def programs(folder: Path, mac: str) -> Path:
    """Programs of root on a machine with that MAC: kexec says what it is given, and nothing is really started."""
    folder.mkdir()
    for name, says in (
        ("id", "echo 0"), ("cat", f"echo {mac}"), ("sync", ":"), ("systemctl", ":"),
        ("kexec", f'[ "$1" = --load ] || exit 0; cp "$2" {folder}/kernel; cp "${{3#--initrd=}}" {folder}/initrd; printf "%s" "$4" > {folder}/line'),
    ):  # fmt: skip
        (folder / name).write_text(f"#!/bin/sh\n{says}\n")
        (folder / name).chmod(0o755)
    return folder


async def test_kexec_by_a_real_shell(served: Served, tmp_path: Path) -> None:
    """Piped into a shell it fetches kernel and initrd and hands them to kexec; on another machine it refuses; elsewhere it starts nothing."""
    host = await installing(served, "suse", "16.0")
    status, script = await served.get(f"/boot/kexec?mac={host.mac}")
    assert status == 200 and script.startswith("#!/bin/sh\n")
    assert (await served.get(f"{host.base}/kexec"))[1] == script

    async def run(mac: str, text: str = script) -> subprocess.CompletedProcess[str]:
        folder = programs(tmp_path / mac.replace(":", ""), mac)
        path = f"{folder}:{os.environ['PATH']}"
        return await asyncio.to_thread(
            subprocess.run, ["sh"], input=text, text=True, capture_output=True, timeout=60, env={"PATH": path}, check=False
        )  # fmt: skip

    done = await run(host.mac)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / host.mac.replace(":", "")
    assert ((folder / "kernel").read_bytes(), (folder / "initrd").read_bytes()) == (KERNEL, INITRD)
    url = f"{served.world.boot_url}{host.base}/unattended"
    assert (folder / "line").read_text().startswith(f"--command-line=inst.auto={url} root=live:http")
    other = await run("52:54:00:ff:ff:ff")
    assert other.returncode == 1 and f"no network card {host.mac}" in other.stderr
    assert not (tmp_path / "525400ffffff/line").exists()
    await served.post(f"{host.base}/built")
    _, local = await served.get(f"/boot/kexec?mac={host.mac}")
    built = await run("52:54:00:ff:ff:fe", local)
    assert built.returncode == 1 and "nothing is started" in built.stderr
    _, stranger = await served.get("/boot/kexec?mac=52:54:00:99:99:99")
    assert "nothing is started" in stranger and host.token not in stranger


async def test_finish_and_first_boot(served: Served) -> None:
    """An unattended file of an operator's own may fetch what the new system is to run."""
    host = await installing(served, "other", "1")
    base = f"{served.world.boot_url}{host.base}"
    status, finish = await served.get(f"{host.base}/finish")
    assert status == 200 and finish.startswith("#!/bin/bash\n") and f"{base}/built" in finish
    status, first_boot = await served.get(f"{host.base}/first-boot")
    assert status == 200 and first_boot.startswith("#!/bin/sh\n") and f"{base}/phone-home" in first_boot
    assert first_boot.strip() in finish
