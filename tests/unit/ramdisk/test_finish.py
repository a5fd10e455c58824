"""Seeds below a mounted root, and kernels found in one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import finish, seed
from ramdisk_agent.work import Failed, Work


class Files:
    """A client that has files."""

    def __init__(self, **files: bytes) -> None:
        self.files, self.said = files, list[str]()
        self.log = self

    def fetch(self, url: str, idle: object = None) -> bytes:
        return self.files[url]

    def fetch_json(self, url: str, idle: object = None) -> Any:
        return json.loads(self.files[url])

    def report(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        self.said.append(text)


def work(plan: dict[str, Any], **files: bytes) -> Work:
    return Work({"id": "d", **plan}, Files(**files))  # type: ignore[arg-type]


def test_seed(tmp_path: Path) -> None:
    """Names and modes: for root alone."""
    seed.write(
        work({"seed": {"user-data": "u", "meta-data": "m"}}, u=b"#cloud-config\n", m=b"{}"), str(tmp_path)
    )
    modes = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777)
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    assert modes == {f"{seed.SEED}/user-data": "0o600", f"{seed.SEED}/meta-data": "0o600"}


def test_names_that_are_no_seed(tmp_path: Path) -> None:
    """A plan cannot write elsewhere."""
    with pytest.raises(Failed, match=r"'\.\./passwd'"):
        seed.write(work({"seed": {"../passwd": "u"}}, u=b""), str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_links_of_the_image_stay_inside(tmp_path: Path) -> None:
    """/var/lib -> /data/lib is followed as the image means it; a link out of it is refused."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "data/lib").mkdir(parents=True)
    (root / "var").mkdir()
    outside.mkdir()
    (root / "var/lib").symlink_to("/data/lib")
    seed.put(str(root), f"{seed.SEED}/user-data", b"x", 0o600)
    assert (root / "data/lib/cloud/seed/nocloud/user-data").read_bytes() == b"x"
    (root / "etc").symlink_to("../outside")
    with pytest.raises(OSError, match="points out of the image"):
        seed.put(str(root), "etc/ssh/ssh_host_ed25519_key", b"x", 0o600)
    assert list(outside.iterdir()) == []


def test_a_file_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    """The target of a link in the image is not written through it."""
    folder = tmp_path / seed.SEED
    folder.mkdir(parents=True)
    (tmp_path / "victim").write_text("safe")
    (folder / "user-data").symlink_to(tmp_path / "victim")
    seed.put(str(tmp_path), f"{seed.SEED}/user-data", b"x", 0o600)
    assert (tmp_path / "victim").read_text() == "safe" and (folder / "user-data").read_text() == "x"


@pytest.fixture
def kexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program kexec that writes down how it was called, and fails as often as the file `fail` says."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "kexec").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >>{tmp_path}/calls\n'
        f'n=$(cat {tmp_path}/fail 2>/dev/null || echo 0)\n[ "$n" = 0 ] && exit 0\necho $((n - 1)) >{tmp_path}/fail\n'
        'echo "kexec_load failed: Operation not permitted" >&2\nexit 1\n'
    )
    (programs / "kexec").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path / "calls"


def root_with(tmp_path: Path, *names: str) -> str:
    boot = tmp_path / "root/boot"
    boot.mkdir(parents=True)
    for name in names:
        (boot / name).write_text("")
    return str(tmp_path / "root")


def test_newest_kernel_is_loaded(tmp_path: Path, kexec: Path) -> None:
    """By version, not by letters; no rescue kernel, none without an initramfs."""
    root = root_with(
        tmp_path, "vmlinuz-6.1.0-9-amd64", "initrd.img-6.1.0-9-amd64", "vmlinuz-6.1.0-18-amd64", "initrd.img-6.1.0-18-amd64",
        "vmlinuz-6.9.0", "vmlinuz-0-rescue-abc", "initramfs-0-rescue-abc.img", "config-7.0.0",
    )  # fmt: skip
    plan = work({"finish": "kexec", "cmdline": "ro quiet", "serial": "ttyS0"})
    assert finish.prepare(plan, root, "root=UUID=1-2") == "kexec"
    [call] = kexec.read_text().splitlines()
    assert call == (
        f"-l -i {root}/boot/vmlinuz-6.1.0-18-amd64 --initrd={root}/boot/initrd.img-6.1.0-18-amd64 "
        "--command-line=root=UUID=1-2 ro quiet"
    )


def test_locked_down_kernel(tmp_path: Path, kexec: Path) -> None:
    """kexec_load is refused under Secure Boot: the other call is tried, then the firmware. What is on the disk says where / is."""
    root = root_with(tmp_path, "vmlinuz-5.14.0-1.el9.x86_64", "initramfs-5.14.0-1.el9.x86_64.img")
    (tmp_path / "fail").write_text("1")
    plan = {"finish": "kexec", "cmdline": "root=LABEL=root ro"}
    assert finish.prepare(work(plan), root, "root=UUID=1") == "kexec"
    assert [line.split()[:2] for line in kexec.read_text().splitlines()] == [["-l", "-i"], ["-s", "-l"]]
    assert "--command-line=root=UUID=1 ro\n" in kexec.read_text()
    (tmp_path / "fail").write_text("9")
    assert finish.prepare(work(plan), root, "root=UUID=1") == "reboot"


def test_reboot_is_wanted_or_all_there_is(tmp_path: Path, kexec: Path) -> None:
    """The plan's reboot loads nothing; a tree without a kernel is started by its own loader."""
    root = root_with(tmp_path)
    assert finish.prepare(work({"finish": "reboot"}), root, "") == "reboot"
    assert finish.prepare(work({"finish": "kexec"}), root, "") == "reboot"
    assert not kexec.exists()
