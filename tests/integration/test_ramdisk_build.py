"""The ramdisk, built from Debian's packages as apt has them: what is in it, that it is the same each time, and that it boots in 512 MiB."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from builder import elf
from provisiond.config import BootSettings, Settings, StateSettings
from provisiond.media.fetch import MediaError
from provisiond.media.ramdisk import FILES, RamdiskRequest, build_ramdisk, folder, install, installed
from tests.integration.doors import open_doors

TOP = Path(__file__).parents[2]
SCRIPT = TOP / "pxe/ramdisk/build"
CACHE = Path(os.environ.get("PROVISIOND_LAB_CACHE", "/var/cache/provisiond-lab"))
LIMIT = 60e6  # bytes of kernel and initramfs together


pytestmark = pytest.mark.timeout(900)  # the first build fetches a hundred megabytes and compresses them


def build(*options: str, script: Path = SCRIPT) -> Path:
    done = subprocess.run(
        [script, *options],
        capture_output=True,
        text=True,
        env={**os.environ, "PROVISIOND_LAB_CACHE": str(CACHE)},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Unpacked:
    """The files of a ramdisk by path: its core, and its tools below tools/."""

    files: dict[str, tuple[int, bytes]]

    def real(self, path: str) -> bytes | None:
        """What lies at a path, links followed; None where nothing does."""
        for _ in range(10):
            parts, at = path.strip("/").split("/"), ""
            for number, part in enumerate(parts):
                at = f"{at}/{part}".lstrip("/")
                mode, data = self.files.get(at, (0, b""))
                if stat.S_ISLNK(mode):
                    target, rest = data.decode(), "/".join(parts[number + 1 :])
                    base = "" if target.startswith("/") else at.rpartition("/")[0]
                    path = os.path.normpath(f"/{base}/{target}/{rest}")
                    break
            else:
                mode, data = self.files.get(at, (0, b""))
                return data if stat.S_ISREG(mode) else None
        return None


def unpack(ramdisk: Path, work: Path) -> Unpacked:
    """Take a ramdisk apart with Debian's programs, not with ours."""
    manifest = json.loads((ramdisk / "manifest.json").read_text())
    image = (ramdisk / "initrd.img").read_bytes()
    core = manifest["parts"]["core"]
    plain = subprocess.run(["zstd", "-qdc"], input=image[:core], capture_output=True, check=True).stdout
    for number, data in enumerate((plain, image[core + -core % 4 :])):
        (work / f"{number}").mkdir()
        subprocess.run(["cpio", "-idm", "--quiet"], cwd=work / f"{number}", input=data, check=True)
    subprocess.run(
        ["unsquashfs", "-q", "-n", "-d", work / "0/tools", "-f", work / "1/tools.squashfs"],
        check=True,
        capture_output=True,
    )
    files = {}
    for path in (work / "0").rglob("*"):
        mode = path.lstat().st_mode
        data = (
            os.readlink(path).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        files[str(path.relative_to(work / "0"))] = (mode, data)
    return Unpacked(files)


@pytest.fixture(scope="module")
def ramdisk() -> Path:
    """The usual ramdisk, from the cache when it is there: everybody's tests use the same."""
    return build()


@pytest.fixture(scope="module")
def manifest(ramdisk: Path) -> dict[str, Any]:
    return json.loads((ramdisk / "manifest.json").read_text())


@pytest.fixture(scope="module")
def inside(ramdisk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unpacked]:
    work = tmp_path_factory.mktemp("unpacked")
    yield unpack(ramdisk, work)
    shutil.rmtree(work)


def test_size(ramdisk: Path, manifest: dict[str, Any]) -> None:
    """Kernel and initramfs are smaller than the 60 MB they may take, and the manifest tells their sizes and digests."""
    together = 0
    for part in ("kernel", "initrd"):
        said, path = manifest[part], ramdisk / manifest[part]["file"]
        assert said["size"] == path.stat().st_size
        assert said["sha256"] == subprocess.check_output(["sha256sum", path], text=True).split()[0]
        together += said["size"]
    print(f"ramdisk: {together / 1e6:.1f} MB")
    assert together < LIMIT


def test_every_program_finds_its_libraries(inside: Unpacked) -> None:
    """No ELF file asks for a library or a loader that is not there."""
    missing, seen = [], 0
    for path, (mode, data) in inside.files.items():
        wanted = elf.wants(data) if stat.S_ISREG(mode) else None
        if wanted is None:
            continue
        seen += 1
        if wanted.interpreter and inside.real(wanted.interpreter) is None:
            missing.append(f"{path}: {wanted.interpreter}")
        missing += [f"{path}: {name}" for name in wanted.libraries if inside.real(f"lib/{name}") is None]
    assert seen > 80
    assert not missing


@pytest.mark.parametrize(
    "programs",
    [
        "mkfs.ext4 e2fsck resize2fs mkfs.xfs xfs_growfs xfs_repair mkfs.btrfs btrfs mkfs.vfat",
        "sfdisk blkid lsblk blkdiscard wipefs partx mount umount mdadm lvm vgcreate cryptsetup zstd tar kexec efibootmgr",
        "ipmitool dmidecode smartctl nvme hdparm dropbear dropbearkey ip bash modprobe sg_sanitize python3",
    ],
)
def test_programs(inside: Unpacked, programs: str) -> None:
    """What the agent calls is there, by its plain name."""
    assert [name for name in programs.split() if inside.real(f"bin/{name}") is None] == []


def test_drivers(inside: Unpacked, manifest: dict[str, Any]) -> None:
    """Drivers of real network cards and disk controllers are there, with all they depend on, and can be found by modprobe."""
    base = f"tools/lib/modules/{manifest['kernel_version']}"
    there = {Path(path).stem for path in inside.files if path.startswith(base) and path.endswith(".ko")}
    wanted = """e1000e igb igc ixgbe i40e ice tg3 bnx2 bnx2x bnxt_en mlx4_en mlx5_core r8169 be2net virtio_net vmxnet3 ena ahci nvme megaraid_sas
        mpt3sas hpsa smartpqi aacraid virtio_blk virtio_scsi sd_mod usb-storage ipmi_si ipmi_devintf raid0 raid1 raid10 raid456 dm-mod dm-crypt
        ext4 xfs btrfs vfat efivarfs bonding 8021q"""
    assert [name for name in wanted.split() if name not in there] == []
    depends = (inside.real(f"{base}/modules.dep") or b"").decode()
    assert depends
    for line in depends.splitlines():
        module, _, needed = line.partition(":")
        assert [path for path in (module, *needed.split()) if inside.real(f"{base}/{path}") is None] == []


def test_agent_runs_on_the_python_inside(inside: Unpacked, tmp_path: Path) -> None:
    """Python starts from the ramdisk's own files, imports every module of the agent, and finds no sources and no package from outside."""
    for path, (mode, data) in sorted(inside.files.items()):
        if path.startswith(("tools/lib/modules", "core/", "dev")):
            continue
        target = tmp_path / path
        if stat.S_ISDIR(mode):
            target.mkdir(parents=True, exist_ok=True)
        elif stat.S_ISLNK(mode):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(data.decode())
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.chmod(mode & 0o777)
    modules = sorted(
        path.split("/", 2)[2].removesuffix(".pyc").replace("/", ".").removesuffix(".__init__")
        for path in inside.files
        if re.match(r"lib/python3\.\d+/ramdisk_agent/.*\.pyc$", path) and "__main__" not in path
    )
    assert "ramdisk_agent.client" in modules
    margin = (
        "json hashlib socket struct threading subprocess re dataclasses pathlib ctypes tempfile ipaddress"
    )
    margin += " urllib.parse http.client secrets"
    code = f"from importlib import import_module\nfor name in {modules + margin.split()!r}: import_module(name)\n"
    code += "import hashlib\nprint(hashlib.sha256(b'').hexdigest())"
    done = subprocess.run(
        ["chroot", tmp_path, "/bin/python3", "-I", "-S", "-B", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("e3b0c442")
    assert not [path for path in inside.files if path.endswith(".py") and path.startswith("lib/python")]


def test_bill_of_materials(ramdisk: Path, inside: Unpacked, manifest: dict[str, Any]) -> None:
    """The SPDX document names version, architecture and source of each package that something in the ramdisk is from."""
    bill = json.loads((ramdisk / "sbom.spdx.json").read_text())
    packages = {package["name"]: package for package in bill["packages"]}
    assert bill["spdxVersion"] == "SPDX-2.3"
    assert {"busybox-static", "kmod", "libc6", "libssl3", "cryptsetup-bin"} <= set(packages)
    assert {"initramfs-tools", "perl-base", "udev"}.isdisjoint(packages)
    assert f"linux-image-{manifest['kernel_version']}" in packages
    libc = packages["libc6"]
    assert libc["sourceInfo"].startswith("built from Debian source glibc ")
    assert re.fullmatch(
        r"pkg:deb/debian/libc6@[^?]+\?arch=amd64", libc["externalRefs"][0]["referenceLocator"]
    )
    assert len(packages) == manifest["packages"] == len(bill["relationships"])


def test_same_inputs_same_digest(tmp_path: Path) -> None:
    """Two builds from the same packages are the same, byte for byte, wherever they are made."""
    sources = shutil.copytree(SCRIPT.parent, tmp_path / "ramdisk")  # nobody changes them meanwhile
    options = ("--level", "1", "--kernel", "linux-image-cloud-amd64")
    first, second = (
        build("--out", str(tmp_path / name), *options, script=sources / "build") for name in ("a", "b/c")
    )
    assert first != second
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_boots_in_512_mib(ramdisk: Path) -> None:
    """QEMU starts it without a network in 512 MiB: init loads drivers, mounts its tools and says on the serial console what it misses."""
    argv = [
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-m",
        "512",
        "-smp",
        "2",
        "-nodefaults",
        "-display",
        "none",
        "-no-reboot",
        "-serial",
        "stdio",
        "-nic",
        "none",
    ]
    argv += ["-kernel", ramdisk / "vmlinuz", "-initrd", ramdisk / "initrd.img"]
    line = "console=ttyS0 quiet panic=-1 provisiond.mac=52:54:00:00:00:01 provisiond.patience=1"
    process = subprocess.Popen(
        [*argv, "-append", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    said = []
    try:
        assert process.stdout is not None
        watchdog = subprocess.Popen(["sh", "-c", f"sleep 200; kill {process.pid}"], start_new_session=True)
        for raw in process.stdout:
            said.append(raw.decode(errors="replace").strip())
            if "no network card with address 52:54:00:00:00:01" in said[-1]:
                break
        else:
            pytest.fail("\n".join(said[-40:]))
        os.killpg(watchdog.pid, 9)
        watchdog.wait()
    finally:
        process.kill()
        process.wait()
    assert not [text for text in said if "panic" in text or "cannot be mounted" in text]


# --- what the daemon does with it --------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        state=StateSettings(dir=tmp_path / "state"), boot=BootSettings(ramdisk_dir=tmp_path / "ramdisk")
    )


def fake_build(place: Path, key: str, architecture: str = "x86_64") -> Path:
    place.mkdir(parents=True)
    for name in FILES:
        (place / name).write_text(key)
    said = {
        "architecture": architecture, "key": key, "kernel_version": "6.1", "kernel": {"size": 1}, "initrd": {"size": 2},
    }  # fmt: skip
    (place / "manifest.json").write_text(json.dumps(said))
    return place


def test_installed_at_once_and_the_one_before_is_kept(settings: Settings, tmp_path: Path) -> None:
    """Kernel and initrd change hands together; the build before the present one stays for machines that are fetching it."""
    for number in range(1, 4):
        install(settings, fake_build(tmp_path / f"made{number}", f"{number}" * 12))
        place = folder(settings, "x86_64")
        assert {(place / name).read_text() for name in ("vmlinuz", "initrd.img")} == {f"{number}" * 12}
    builds = sorted(path.name for path in (settings.boot.ramdisk_dir / "builds").iterdir())
    assert builds == [f"x86_64-{'2' * 12}", f"x86_64-{'3' * 12}"]
    install(settings, fake_build(tmp_path / "arm", "a" * 12, "aarch64"))
    assert [about["architecture"] for about in installed(settings)] == ["x86_64", "aarch64"]
    with pytest.raises(MediaError, match="no whole ramdisk"):
        install(settings, tmp_path)


def test_a_directory_filled_by_hand(settings: Settings) -> None:
    """vmlinuz and initrd.img put straight into boot.ramdisk_dir serve the architecture their manifest names, or x86_64."""
    fake_build(settings.boot.ramdisk_dir, "1" * 12)
    assert folder(settings, "x86_64") == settings.boot.ramdisk_dir
    assert not folder(settings, "aarch64").exists()


async def test_a_build_that_fails_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    """A package that apt does not have ends the build with its name, and what machines are given stays as it was."""
    install(settings, fake_build(tmp_path / "made", "1" * 12))
    said: list[str] = []
    request = RamdiskRequest(packages=("no-such-package",))
    with pytest.raises(MediaError, match="no-such-package"):
        await build_ramdisk(settings, request, lambda text, done, total: said.append(text))
    assert (folder(settings, "x86_64") / "vmlinuz").read_text() == "1" * 12
    assert [path.name for path in settings.boot.ramdisk_dir.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(MediaError, match="no name of a Debian package"):
        replace(request, packages=("a b",)).check()


async def test_built_by_the_daemon(tmp_path: Path) -> None:
    """An admin starts it as a job that says how it ended; an operator may only look; what is in place is shown."""
    async with open_doors(tmp_path / "state") as doors:
        await doors.call("POST", "/users", {"name": "olga", "role": "operator"})
        _, made = await doors.call("POST", "/tokens", {"user": "olga"})
        assert (await doors.call("POST", "/ramdisk", {}, token=made["token"]))[0] == 403
        assert (await doors.call("GET", "/ramdisk", token=made["token"]))[0] == 200
        assert (await doors.call("POST", "/ramdisk", {"architecture": "vax"}))[0] == 422
        status, job = await doors.call("POST", "/ramdisk", {"packages": ["no-such-package"]})
        assert status == 202 and (job["kind"], job["name"]) == ("ramdisk", "x86_64")
        async with asyncio.timeout(120):
            while job["state"] == "running":
                await asyncio.sleep(0.2)
                _, job = await doors.call("GET", f"/imports/{job['id']}")
        assert job["state"] == "failed" and "no package no-such-package" in job["message"]


def test_sources_travel_with_the_package() -> None:
    """Everything the build reads is among the files that are installed below share/provisiond."""
    listed = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]["data-files"]
    globs = {pattern for patterns in listed.values() for pattern in patterns}
    needed = [SCRIPT, *(SCRIPT.parent / name for name in ("contents.toml", "init", "udhcpc"))]
    needed += [*SCRIPT.parent.glob("builder/*.py"), *SCRIPT.parent.glob("ramdisk_agent/**/*.py")]
    forgotten = [str(path.relative_to(TOP)) for path in needed]
    assert [
        path for path in forgotten if not any(PurePosixPath(path).match(pattern) for pattern in globs)
    ] == []
