"""The build's command line and order of work. The last line of its standard output is the directory with what it made."""

from __future__ import annotations

import argparse
import fcntl
import gzip
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from builder import archive, contents, elf, record
from builder.archive import Entry, directory, file, link
from builder.errors import BuildError, say
from builder.packages import Apt, Package, native
from builder.python import Library
from builder.tree import Kernel, Shelf, Tree, drivers, skeleton

HERE = Path(__file__).resolve().parents[1]
DESCRIPTION = """Build the ramdisk from Debian packages: vmlinuz, initrd.img, manifest.json, sbom.spdx.json. Installs nothing, needs no root.
Without --out into a cache ($PROVISIOND_LAB_CACHE, or /var/cache/provisiond-lab), by a digest of all that goes into it."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pxe/ramdisk/build", description=DESCRIPTION)
    parser.add_argument(
        "--arch",
        default="",
        choices=["", "amd64", "arm64", "x86_64", "aarch64"],
        help="default: this machine's",
    )
    parser.add_argument("--kernel", default="", metavar="PACKAGE", help="Debian's kernel package; default linux-image-ARCH, with drivers for real "
                        "hardware. linux-image-cloud-ARCH, for virtual machines only, starts sooner on emulated processors")  # fmt: skip
    parser.add_argument(
        "--firmware",
        action="store_true",
        help="firmware of network cards and disk controllers, from Debian's non-free-firmware",
    )
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="one more Debian package, such as fio; repeatable",
    )
    parser.add_argument("--out", type=Path, help="directory to put it into; default: the cache")
    parser.add_argument(
        "--agent",
        type=Path,
        default=HERE / "ramdisk_agent",
        help="the agent's package; default: the one beside this script",
    )
    parser.add_argument(
        "--level",
        type=int,
        default=9,
        choices=range(1, 20),
        metavar="1-19",
        help="of zstd; default 9: 19 saves 4 MB of 56, in four times the time",
    )
    return parser.parse_args(argv)


class Build:
    """One ramdisk: ``options`` as parse() gives them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._cache = Path(os.environ.get("PROVISIOND_LAB_CACHE") or "/var/cache/provisiond-lab")
        names = {kernel: debian for debian, kernel in contents.ARCHITECTURES.items()}
        self._debian = names.get(options.arch, options.arch) or native()
        if self._debian not in contents.ARCHITECTURES:
            raise BuildError(
                f"no ramdisk for {self._debian}: there is one for {', '.join(contents.ARCHITECTURES)}"
            )
        self._kernel_name = options.kernel or f"linux-image-{self._debian}"
        self._mtime = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
        self._extra = sorted(set(options.extra))

    def run(self) -> Path:
        """The directory with the ramdisk. Raises BuildError."""
        started = time.monotonic()
        self._cache.mkdir(parents=True, exist_ok=True)
        with _locked(self._cache / "ramdisk.lock"):
            for left in self._cache.glob("ramdisk-work-*"):  # of a build that was killed
                shutil.rmtree(left, ignore_errors=True)
            apt = Apt(self._cache, self._debian)
            apt.refresh()
            names = [
                self._kernel_name,
                *contents.programs("core"),
                *contents.programs("tools"),
                *contents.words("python", "packages"),
                *contents.words("packages", "libraries_packages"),
                *self._extra,
            ]
            names += [name for name in contents.words("packages", "firmware") if self._options.firmware]
            packages = apt.resolve(names)
            key = self._key(packages)
            out = self._options.out or self._cache / f"ramdisk-{key[:12]}"
            if _is_of(out, key):
                return out
            apt.fetch(names, packages)
            with tempfile.TemporaryDirectory(prefix="ramdisk-work-", dir=self._cache) as work:
                made = Path(work) / "out"
                made.mkdir()
                self._make(packages, key, Path(work), made)
                _install(made, out)
        manifest = json.loads((out / "manifest.json").read_text())
        size = manifest["kernel"]["size"] + manifest["initrd"]["size"]
        say(f"{manifest['architecture']}, kernel {manifest['kernel_version']} {manifest['kernel']['size'] >> 10} KiB, initramfs "
            f"{manifest['initrd']['size'] >> 10} KiB, together {size / 1e6:.1f} MB, in {time.monotonic() - started:.0f} s")  # fmt: skip
        return out

    def _key(self, packages: list[Package]) -> str:
        """A digest of everything the result depends on."""
        sources = [
            *sorted((HERE / "builder").glob("*.py")),
            *(HERE / name for name in ("build", "contents.toml", "init", "udhcpc")),
        ]
        sources += sorted(self._options.agent.rglob("*.py"))
        said = {
            "files": [(path.name, record.digest(path.read_bytes())) for path in sources],
            "packages": [(package.name, package.sha256) for package in packages],
            "options": [
                self._kernel_name,
                self._options.firmware,
                self._extra,
                self._options.level,
                self._mtime,
            ],
            "python": platform.python_version(),
        }
        return record.digest(json.dumps(said).encode())

    def _make(self, packages: list[Package], key: str, work: Path, out: Path) -> None:
        kernel_package = _kernel_of(packages)
        kernel = Kernel(kernel_package, work / "kernel")
        say(f"unpacking {len(packages) - 1} packages")
        shelf = Shelf()
        for package in packages:
            if package is not kernel_package:
                shelf.add(package)
        say("putting it together")
        core, tools = Tree(shelf), None
        core.entries.update(skeleton())
        for paths in contents.programs("core").values():
            for path in paths:
                core.program(path)
        self._agent(shelf, core, work)
        for name in contents.words("packages", "libraries"):
            core.library(name)
        tools = Tree(shelf, core)
        for paths in contents.programs("tools").values():
            for path in paths:
                tools.program(path)
        for name in self._extra:
            tools.whole(name)
        self._drivers(kernel, shelf, core, tools, work)
        tools.put("manifest", file(key.encode() + b"\n"))
        for path in tools.entries:  # found where they always are, though they lie elsewhere
            if not path.startswith(("lib/modules", "lib/firmware", "manifest")):
                core.entries[path] = link(f"/tools/{path}")
        core.entries["lib/modules"] = link("/tools/lib/modules")
        core.entries["lib/firmware"] = link("/tools/lib/firmware")
        core.entries["tools"] = directory()
        say("compressing")
        (work / "squashfs").mkdir()
        packed = archive.squashfs(tools.entries, work / "squashfs", self._mtime, self._options.level)
        self._write(packages, key, kernel, core, tools, packed, out)

    def _agent(self, shelf: Shelf, core: Tree, work: Path) -> None:
        """init, the agent, and Python with what the agent imports."""
        for name, path in (("init", "init"), ("bin/udhcpc.script", "udhcpc")):
            core.put(name, file((HERE / path).read_bytes(), "provisiond", executable=True))
        interpreter = next(
            path for path in shelf.of(contents.words("python", "packages")[0]) if "/bin/python3" in path
        )
        version = interpreter.rpartition("python")[2]
        core.program(interpreter)
        core.put("bin/python3", link(f"python{version}"))
        unpacked = work / "python"
        for package in contents.words("python", "packages"):
            for path in shelf.of(package):
                _, entry = shelf.get(path)
                if (
                    f"lib/python{version}/" in path
                    and entry.mode & 0o170000 == 0o100000
                    and "__pycache__" not in path
                ):
                    target = unpacked / path.partition(f"lib/python{version}/")[2]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(entry.data)
        library = Library(unpacked, version)
        library.collect(self._options.agent)
        for path, entry in library.entries(self._options.agent).items():
            core.put(path, entry)

    def _drivers(self, kernel: Kernel, shelf: Shelf, core: Tree, tools: Tree, work: Path) -> None:
        """The modules of the core below /core, and all of them in the tools; firmware where it is asked for."""
        early, late = drivers(kernel)
        base = f"lib/modules/{kernel.version}"
        for module in early:
            core.put(f"core/{base}/{module}", kernel.read(module))
        for path, entry in kernel.index(early, work / "early").items():
            core.put(f"core/{path}", entry)
        for module in early | late:
            tools.put(f"{base}/{module}", kernel.read(module))
        for path, entry in kernel.index(early | late, work / "late").items():
            tools.put(path, entry)
        tools.put("lib/firmware", directory())
        if self._options.firmware:
            wanted = {
                name for module in early | late for name in elf.modinfo(kernel.read(module).data, "firmware")
            }
            for package in contents.words("packages", "firmware"):
                for path in shelf.of(package):
                    if path.partition("lib/firmware/")[2] in wanted:
                        tools.put(path.removeprefix("usr/"), shelf.real(path))

    def _write(
        self,
        packages: list[Package],
        key: str,
        kernel: Kernel,
        core: Tree,
        tools: Tree,
        packed: bytes,
        out: Path,
    ) -> None:
        first, second = io.BytesIO(), io.BytesIO()
        archive.write(core.entries, first, self._mtime)
        archive.write({"tools.squashfs": Entry(0o100644, packed)}, second, self._mtime)
        image = kernel.image.read_bytes()
        if image[:2] == b"\x1f\x8b":  # arm64: loaders of EFI want it plain
            image = gzip.decompress(image)
        compressed = archive.compress(first.getvalue(), self._options.level)
        initrd = compressed + bytes(-len(compressed) % 4) + second.getvalue()
        (out / "vmlinuz").write_bytes(image)
        (out / "initrd.img").write_bytes(initrd)
        used = {entry.package for tree in (core, tools) for entry in tree.entries.values()} | {
            kernel.package.name
        }
        listed = [package for package in packages if package.name in used]
        architecture = contents.ARCHITECTURES[self._debian]
        record.write_json(
            out / "sbom.spdx.json", record.sbom(listed, f"{architecture}-{key[:12]}", self._mtime)
        )
        manifest: dict[str, Any] = {
            "format": record.FORMAT,
            "key": key,
            "architecture": architecture,
            "kernel_version": kernel.version,
            "kernel_package": f"{kernel.package.name} {kernel.package.version}",
            "agent_version": record.agent_version(self._options.agent),
            "firmware": self._options.firmware,
            "with": self._extra,
            "kernel": {"file": "vmlinuz", "size": len(image), "sha256": record.digest(image)},
            "initrd": {"file": "initrd.img", "size": len(initrd), "sha256": record.digest(initrd)},
            "parts": {"core": len(compressed), "core_unpacked": len(first.getvalue()), "tools": len(packed)},
            "packages": len(listed),
        }
        record.write_json(out / "manifest.json", manifest)


def main(argv: list[str] | None = None) -> int:
    """Ends with status 1 and the reason on standard error when there is nothing to be had."""
    try:
        out = Build(parse(argv)).run()
    except BuildError as error:
        say(str(error))
        return 1
    print(out)
    return 0


def _kernel_of(packages: list[Package]) -> Package:
    """The kernel's package: the largest linux-image; a meta-package has no kernel in it."""
    return max(
        (p for p in packages if p.name.startswith("linux-image")),
        key=lambda package: package.file.stat().st_size,
    )


def _is_of(out: Path, key: str) -> bool:
    try:
        return bool(json.loads((out / "manifest.json").read_text())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False


def _install(made: Path, out: Path) -> None:
    """Into place: a directory that was not there appears whole; in one that was, the manifest comes last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for path in made.iterdir():
        path.chmod(0o644)
    made.chmod(0o755)
    if not out.exists():
        fresh = out.with_name(out.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.move(made, fresh)
        fresh.rename(out)
        return
    for name in ("vmlinuz", "initrd.img", "sbom.spdx.json", "manifest.json"):
        shutil.copy2(made / name, out / f"{name}.new")
        (out / f"{name}.new").rename(out / name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # two builds at once: the second finds the first one's result
        yield


if __name__ == "__main__":
    sys.exit(main())
