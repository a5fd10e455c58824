"""A private libvirtd in a namespace of the lab: own configuration, sockets, domains and pool; nothing of the machine's own libvirt is seen.

    with Netns() as ns, Libvirtd(ns, Path("/tmp/x")) as hypervisor:
        libvirt.open(hypervisor.uri)

It has a mount namespace of its own in which libvirt's directories are those below ``root``. The pid file below ``root`` is
enough to stop it from another process: ``Libvirtd.attach(root).stop()``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt

from tests.lab.kit import netns
from tests.lab.kit.netns import Netns, end
from tests.lab.kit.part import Part

CACHE = Path(os.environ.get("PROVISIOND_LAB_CACHE", "/var/cache/provisiond-lab"))
MOUNTS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "run": "/run/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log/libvirt",
}
LIBVIRTD_CONF = """\
unix_sock_dir = "/run/libvirt"
unix_sock_group = "root"
unix_sock_rw_perms = "0700"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""
# no system service around it: qemu runs as root, without security labels, cgroups or a namespace of its own
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
START = """\
set -e
for name in etc:/etc/libvirt lib:/var/lib/libvirt run:/run/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
  mkdir -p "${name#*:}"; mount --bind "$0/${name%%:*}" "${name#*:}"
done
exec libvirtd -p /run/libvirt/libvirtd.pid -f /etc/libvirt/libvirtd.conf
"""


class Libvirtd(Part):
    """libvirtd below ``root`` (made, and removed by stop), which must be short: a socket's path ends after 107 bytes."""

    def __init__(self, ns: Netns | None, root: Path) -> None:
        self.ns, self.root = ns, root
        self.child: subprocess.Popen[bytes] | None = None

    @classmethod
    def attach(cls, root: Path) -> Libvirtd:
        """One that an earlier process started; for ``uri`` and ``stop()``."""
        return cls(None, root)

    @property
    def socket(self) -> Path:
        return self.root / "run/libvirt-sock"

    @property
    def uri(self) -> str:
        """What libvirt.open() takes."""
        return f"qemu+unix:///system?socket={self.socket}"

    @property
    def provisiond_uri(self) -> str:
        """What provisiond's libvirt drivers take here: without KVM when it does not work, and with fast, unsafe disks."""
        return f"{self.uri}&provisiond_type={domain_type()}&provisiond_cache=unsafe"

    @property
    def pool(self) -> Path:
        """Where the storage pool ``default`` keeps its files."""
        return self.root / "pool"

    def start(self, timeout: float = 60.0) -> Libvirtd:
        """Start it and wait until it answers; makes the pool ``default``."""
        if self.ns is None:
            raise RuntimeError("an attached libvirtd cannot be started again")
        if len(os.fspath(self.socket)) > 100:
            raise RuntimeError(f"{self.root} is too long a path for libvirt's sockets; take one below /tmp")
        for name in (
            *MOUNTS,
            "etc/qemu/networks",
            "etc/storage",
            "etc/secrets",
            "pool",
            "cache/qemu/capabilities",
        ):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
        (self.root / "etc/qemu.conf").write_text(QEMU_CONF)
        with _capabilities(self.root / "cache/qemu/capabilities"):
            self._launch()
            self._wait(timeout)
        return self

    def restart(self, timeout: float = 60.0) -> None:
        """End only the daemon (its machines run on) and start it again: a broken connection for whoever is connected."""
        self.kill()
        self._launch()
        self._wait(timeout)

    def kill(self) -> None:
        """End only the daemon; its machines run on."""
        pid = self._pid()
        end(lambda: [pid] if pid in self.pids() else [])
        self._reap()

    def stop(self) -> None:
        """End the daemon and every machine and helper it started, and remove ``root``. Absent is fine."""
        end(self.pids)
        self._reap()
        shutil.rmtree(self.root, ignore_errors=True)

    def pids(self) -> list[int]:
        """The daemon, its machines and its dnsmasqs: the processes that see ``root``/run as /run/libvirt."""
        try:
            mark = (self.root / "run").stat()
        except FileNotFoundError:
            return []
        found = []
        for proc in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.path.samestat((proc / "root/run/libvirt").stat(), mark):
                    found.append(int(proc.name))
        return found

    def _launch(self) -> None:
        assert self.ns is not None
        with (self.root / "libvirtd.out").open("ab") as out:
            self.child = self.ns.exec(
                ["unshare", "-m", "--propagation", "private", "bash", "-c", START, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # a Ctrl-C in the terminal of `make demo` is not for it
            )

    def _wait(self, timeout: float) -> None:
        libvirt.registerErrorHandler(lambda *_: None, None)
        until = time.monotonic() + timeout
        while True:
            try:
                connection = libvirt.open(self.uri)
                break
            except libvirt.libvirtError as error:
                if time.monotonic() > until or (self.child and self.child.poll() is not None):
                    said = (self.root / "libvirtd.out").read_text(errors="replace")[-2000:]
                    raise RuntimeError(
                        f"libvirtd below {self.root} does not answer: {error}\n{said}"
                    ) from error
                time.sleep(0.03)
        try:
            connection.getCapabilities()
            if "default" not in [pool.name() for pool in connection.listAllStoragePools()]:
                pool = connection.storagePoolDefineXML(
                    f"<pool type='dir'><name>default</name><target><path>{self.pool}</path></target></pool>"
                )
                pool.create()
                pool.setAutostart(1)
        finally:
            connection.close()

    def _pid(self) -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return int((self.root / "run/libvirtd.pid").read_text())
        return self.child.pid if self.child else None

    def _reap(self) -> None:
        if self.child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(5)
            self.child = None


def root_for(ns: Netns) -> Path:
    """A directory for the libvirtd of ``ns`` that ``reap()`` finds again."""
    return Path(tempfile.gettempdir()) / f"lv-{ns.name}"


def reap() -> None:
    """Remove the namespaces, daemons, machines and directories of test runs that were killed."""
    netns.reap()
    for root in Path(tempfile.gettempdir()).glob("lv-pvlab-*"):
        if not Netns(root.name.removeprefix("lv-")).exists:
            Libvirtd.attach(root).stop()


def domain_type() -> str:
    """``kvm`` where it works, else ``qemu`` (emulation)."""
    return "kvm" if kvm_works() else "qemu"


def kvm_works() -> bool:
    """Whether a Linux kernel boots under KVM within 10 s. A /dev/kvm that opens proves nothing: guests may hang.

    Asked once per boot of this machine; the answer is kept in the lab's cache.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    CACHE.mkdir(parents=True, exist_ok=True)
    answer = CACHE / "kvm"
    with _lock("kvm.lock"):
        if answer.exists() and (words := answer.read_text().split()) and words[0] == boot:
            return words[1] == "yes"
        works = os.access("/dev/kvm", os.R_OK | os.W_OK) and _boots_under_kvm()
        answer.write_text(f"{boot} {'yes' if works else 'no'}\n")
        return works


def _boots_under_kvm(seconds: float = 10.0) -> bool:
    kernels = [*sorted(CACHE.glob("ramdisk-*/vmlinuz")), *sorted(Path("/boot").glob("vmlinuz-*"))]
    if not kernels:
        return False
    argv = [
        "qemu-system-x86_64",
        "-accel",
        "kvm",
        "-m",
        "256",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
    ]
    argv += ["-serial", "stdio", "-kernel", str(kernels[-1]), "-append", "console=ttyS0 panic=-1"]
    try:  # without a disk the kernel panics and, with panic=-1 and -no-reboot, ends QEMU
        done = subprocess.run(argv, capture_output=True, timeout=seconds, stdin=subprocess.DEVNULL)
    except (subprocess.TimeoutExpired, OSError):
        return False
    return b"Linux version" in done.stdout


@contextlib.contextmanager
def _capabilities(mine: Path) -> Iterator[None]:
    """Bring what libvirt learnt of QEMU in an earlier run (8 s), and keep what it learns in this one.

    The lock makes one worker learn while the others, started at the same time, wait for it.
    """
    shared = CACHE / "capabilities"
    with _lock("capabilities.lock"):
        shared.mkdir(parents=True, exist_ok=True)
        for file in shared.glob("*.xml"):
            shutil.copy2(file, mine)
        yield
        for file in mine.glob("*.xml"):
            old = shared / file.name
            if not old.exists() or old.read_bytes() != file.read_bytes():
                with tempfile.NamedTemporaryFile(dir=shared, delete=False) as new:
                    new.write(file.read_bytes())
                shutil.copystat(file, new.name)
                Path(new.name).replace(old)


@contextlib.contextmanager
def _lock(name: str) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / name).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
