"""The real ramdisk in an emulated machine erases real block devices (virtio with discard, NVMe, ATA; a kept one is left alone), and then,
in the same boot, lets an operator in by SSH."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from provisiond.boot import tickets
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import utcnow
from provisiond.lifecycle import erasures, task_signals, tasks
from tests.boot_world import Built, Served, boot_world
from tests.lab.kit.fixtures import need
from tests.lab.kit.lab import build
from tests.lab.kit.libvirtd import kvm_works
from tests.ramdisk_tasks import end_task, open_task

MIB = 1 << 20
TEXT = b"the quick brown fox jumps over the lazy dog. " * 23302  # more than a MiB
GATEWAY = "192.0.2.2"
SIZES = {"virtio": 96, "nvme": 64, "ata": 48, "kept": 16}


@pytest_asyncio.fixture
async def served(store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server on one database: what the other does differently is tested elsewhere."""
    async with boot_world(store, box, tmp_path / "world") as running:
        yield running


def disks(folder: Path) -> dict[str, Path]:
    """Raw files full of text."""
    made = {}
    for name, mib in SIZES.items():
        made[name] = folder / f"{name}.raw"
        with made[name].open("wb") as file:
            for _ in range(mib):
                file.write(TEXT[:MIB])
    return made


def machine(
    ramdisk: Path, files: dict[str, Path], arguments: str, log: Path, host: Built, ssh_port: int
) -> subprocess.Popen[bytes]:
    """QEMU with these disks. Its network is one of its own, in which 192.0.2.2 is this machine's loopback; its SSH is at our ``ssh_port``."""
    network = f"net=192.0.2.0/24,host={GATEWAY},dns=192.0.2.3,dhcpstart=192.0.2.10,ipv6=off,hostfwd=tcp:127.0.0.1:{ssh_port}-{host.ip}:22"
    drive = "if=none,format=raw,cache=unsafe"
    argv = [
        "qemu-system-x86_64", "-accel", "kvm" if kvm_works() else "tcg,thread=multi", "-m", "768", "-smp", "2", "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", f"file:{log}",
        "-kernel", str(ramdisk / "vmlinuz"), "-initrd", str(ramdisk / "initrd.img"), "-append", f"console=ttyS0 quiet mitigations=off {arguments}",
        "-netdev", f"user,id=net,{network}", "-device", f"virtio-net-pci,netdev=net,mac={host.mac},romfile=",
        "-drive", f"{drive},id=virtio,discard=unmap,file={files['virtio']}", "-device", "virtio-blk-pci,drive=virtio,serial=VIRTIO1",
        "-drive", f"{drive},id=nvme,discard=unmap,file={files['nvme']}", "-device", "nvme,drive=nvme,serial=NVME1",
        # a disk that takes a discard and does nothing
        "-drive", f"{drive},id=ata,discard=ignore,file={files['ata']}", "-device", "ide-hd,drive=ata,serial=ATA1",
        "-drive", f"{drive},id=kept,file={files['kept']}", "-device", "virtio-blk-pci,drive=kept,serial=KEEP1",
    ]  # fmt: skip
    return subprocess.Popen(["nice", "-n", "5", *argv], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.timeout(900)
async def test_erase_and_rescue(served: Served, box: SecretBox, tmp_path: Path) -> None:
    """Each by its own means, verified, recorded once it ended; a discard that did nothing is found out; a kept disk is as it was.
    Then the rescue lets in who has the key, shows the host key it told, and ends when it is called off."""
    need("qemu-system-x86_64", "ssh", "ssh-keygen", "ssh-keyscan")
    ramdisk = await asyncio.to_thread(build, "pxe/ramdisk/build", lambda text: print(f"  {text}"))
    storage = {"keep": [{"serial": "KEEP1"}]}
    host = await served.host("web01", state="releasing", step="erase", storage=storage, serial=None)
    task = await open_task(served.world.store, "web01", "erase", {"mode": "auto"}, actor="user:ann")
    files, log, ssh = disks(tmp_path), tmp_path / "console.log", Ssh(tmp_path)
    ticket = tickets.issue(box.derived(tickets.PURPOSE), host.mac, host.id, utcnow())
    port = served.world.boot_url.rpartition(":")[2]
    arguments = f"provisiond.url=http://{GATEWAY}:{port} provisiond.ticket={ticket} provisiond.mac={host.mac}"
    process = machine(ramdisk, files, arguments, log, host, ssh.port)
    watch = Watch(served.world.store, process, log)
    try:
        await watch.until(task, lambda t: t.done_at or t.failed_at)
        await check_erased(served.world.store, task, files)
        await end_task(served.world.store, "web01")
        await host.set(state="rescue", step="login")
        rescue = await open_task(
            served.world.store, "web01", "rescue", {"keys": [ssh.public]}, actor="user:ann"
        )
        up = await watch.until(rescue, lambda t: t.failed_at or task_signals.is_up(t.progress_text))
        assert up.failed_at is None, up.failure
        told = f"rescue: ssh root@{host.ip} (host key SHA256:"  # the rescue gives the host its own address
        assert up.progress_text.startswith(told), up.progress_text
        await asyncio.to_thread(ssh.check, up.progress_text)
        await host.set(state="active", step="")
        await end_task(served.world.store, "web01")
        assert await asyncio.to_thread(process.wait, 300) == 0, "it restarts when the rescue is over"
    finally:
        process.kill()
        process.wait()


async def check_erased(store: Store, task: str, files: dict[str, Path]) -> None:
    async with store.read() as session:
        done = await tasks.find(session, task)
    assert done.failed_at is None, done.failure
    assert done.result["disks"] == 3 and len(done.result["kept"]) == 1
    assert done.done_bytes > 0

    records = await erasures.list_erasures(store, "web01")
    told = [(r["disk_serial"], r["method"], r["verified"], r["category"]) for r in records]
    assert ("VIRTIO1", "discard", True, "Clear") in told
    assert ("NVME1", "nvme-format", True, "Purge") in told
    assert ("ATA1", "discard", False, "none") in told, "a discard without effect must not pass"
    assert ("ATA1", "overwrite", True, "Clear") in told
    assert len(told) == 4, told
    for name in ("virtio", "nvme", "ata"):
        assert not any(files[name].read_bytes()), f"{name} is not blank"
    assert files["kept"].read_bytes() == TEXT[:MIB] * SIZES["kept"]


class Ssh:
    """An operator with a key of their own."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "operator"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f", self.key], check=True
        )
        self.public = self.key.with_suffix(".pub").read_text().strip()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=120",
            "BatchMode=yes",
        ]
        argv = ["ssh", "-F", "/dev/null", "-p", str(self.port), *(w for o in options for w in ("-o", o))]
        return subprocess.run([*argv, *words], capture_output=True, text=True, timeout=300, check=False)

    def check(self, told: str) -> None:
        """Log in by the key, and by nothing else."""
        said = self.run(
            "-i",
            str(self.key),
            "-o",
            "IdentitiesOnly=yes",
            "root@127.0.0.1",
            "id -un; test -x /usr/local/bin/provisiond-chroot && echo helper; hostname",
        )
        assert said.stdout.split() == ["root", "helper", "web01"], (said.stdout, said.stderr)
        shown = subprocess.run(
            ["ssh-keyscan", "-T", "60", "-t", "ed25519", "-p", str(self.port), "127.0.0.1"], capture_output=True, timeout=120, check=True
        )  # fmt: skip
        printed = subprocess.run(
            ["ssh-keygen", "-lf", "-"], input=shown.stdout, capture_output=True, check=True
        )
        assert printed.stdout.decode().split()[1] in told
        refused = self.run(
            "-o", "IdentityFile=none", "-o", "IdentitiesOnly=yes", "-v", "root@127.0.0.1", "true"
        )
        assert refused.returncode == 255 and "(publickey)" in refused.stderr, refused.stderr


class Watch:
    """Looks at tasks while the machine runs."""

    def __init__(self, store: Store, process: subprocess.Popen[bytes], log: Path) -> None:
        self.store, self.process, self.log = store, process, log

    async def until(self, task_id: str, true: Callable[[Any], object]) -> Any:
        """The task, once that is true of it."""
        async with asyncio.timeout(800):
            while True:
                async with self.store.read() as session:
                    task = await tasks.find(session, task_id)
                if true(task):
                    return task
                if self.process.poll() is not None:
                    assert self.process.stderr is not None
                    said = self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""
                    raise AssertionError(f"the machine ended: {self.process.stderr.read().decode()}\n{said}")
                await asyncio.sleep(0.2)
