"""From unpacked packages to the files of the two archives: programs with the libraries they want, drivers with what they depend on."""

from __future__ import annotations

import fnmatch
import lzma
import subprocess
from pathlib import Path, PurePosixPath

from builder import contents, elf
from builder.archive import Entry, directory, file, link
from builder.errors import BuildError, say
from builder.packages import Package, opened

_NEVER = (
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/include/",
)
_NO_DRIVERS = ("drivers/gpu/", "drivers/media/", "drivers/net/wireless/", "drivers/staging/", "drivers/iio/", "drivers/video/",
               "drivers/input/", "drivers/bluetooth/", "drivers/isdn/", "sound/", "net/bluetooth/",
               "drivers/platform/")  # fmt: skip

Stored = tuple[Package, Entry]


class Shelf:
    """Every file of the packages but the kernel's, by its path in them."""

    def __init__(self) -> None:
        self._files: dict[str, Stored] = {}
        self._libraries: dict[str, str] = {}

    def add(self, package: Package) -> None:
        """Unpack a package."""
        with opened(package) as archive:
            for member in archive:
                path = str(PurePosixPath(member.name))
                if path.startswith(_NEVER):
                    continue
                if member.isfile():
                    stream = archive.extractfile(member)
                    assert stream is not None
                    entry = file(stream.read(), package.name, executable=bool(member.mode & 0o111))
                elif member.issym():
                    entry = link(member.linkname, package.name)
                elif member.islnk():
                    entry = self._files[str(PurePosixPath(member.linkname))][1]
                else:
                    continue
                self._files[path] = (package, entry)
                if ".so" in path and "/lib" in "/" + path:
                    self._libraries.setdefault(PurePosixPath(path).name, path)

    def of(self, package: str) -> list[str]:
        """The paths that came from a package."""
        return [path for path, (owner, _) in self._files.items() if owner.name == package]

    def get(self, path: str) -> Stored:
        """A file or link. Raises BuildError."""
        name = path.rpartition("/")[2]
        # Debian moves programs between these from one release to the next
        anywhere = (
            [f"{folder}/{name}" for folder in ("bin", "sbin", "usr/bin", "usr/sbin")]
            if "bin/" in path
            else []
        )
        for candidate in (path, f"usr/{path}", path.removeprefix("usr/"), *anywhere):
            if candidate in self._files:
                return self._files[candidate]
        raise BuildError(f"no package has {path} any more: contents.py must say where it is now")

    def library(self, name: str) -> Entry:
        """A shared library's file, by its soname. Raises BuildError."""
        path = self._libraries.get(name)
        if path is None:
            raise BuildError(f"no package has the library {name}")
        return self.real(path)

    def real(self, path: str) -> Entry:
        """The file at ``path``, where links lead."""
        for _ in range(8):
            _, entry = self.get(path)
            if (entry.mode & 0o170000) != 0o120000:
                return entry
            target = entry.data.decode()
            path = (
                target.lstrip("/")
                if target.startswith("/")
                else _normal(f"{PurePosixPath(path).parent}/{target}")
            )
        raise BuildError(f"{path}: links go round in a circle")


class Tree:
    """The files of one archive; what ``base`` has already is not taken again."""

    def __init__(self, shelf: Shelf, base: Tree | None = None) -> None:
        self._shelf, self._base = shelf, base
        self.entries: dict[str, Entry] = {}

    def put(self, path: str, entry: Entry) -> None:
        """A file, with the libraries it wants when it is a program."""
        if (self._base is not None and path in self._base.entries) or path in self.entries:
            return
        self.entries[path] = entry
        found = elf.wants(entry.data)
        if found is None:
            return
        if found.interpreter:
            name = PurePosixPath(found.interpreter).name
            self.put(f"lib/{name}", self._shelf.library(name))
        for name in found.libraries:
            if not name.startswith("ld-linux"):
                self.put(f"lib/{name}", self._shelf.library(name))

    def program(self, path: str) -> None:
        """A program of a package, into /bin; anything else (a configuration) where it was."""
        _, entry = self._shelf.get(path)
        parts = PurePosixPath(path)
        if parts.parent.name not in {"bin", "sbin"}:
            self.put(path.removeprefix("usr/"), self._shelf.real(path))
            return
        real = self._shelf.real(path)
        if (entry.mode & 0o170000) == 0o120000:
            target = PurePosixPath(entry.data.decode()).name
            self.put(f"bin/{target}", real)
            if target == parts.name:
                return
            entry = link(target, entry.package)
        self.put(f"bin/{parts.name}", entry)

    def library(self, name: str) -> None:
        self.put(f"lib/{name}", self._shelf.library(name))

    def whole(self, package: str) -> None:
        """All of a package but what is said in _NEVER."""
        for path in self._shelf.of(package):
            if "/bin/" in f"/{path}" or "/sbin/" in f"/{path}":
                self.program(path)
            elif not path.startswith(
                ("usr/share/bug", "etc/init.d", "lib/systemd", "usr/share/bash-completion", "var/lib/dpkg")
            ):
                self.put(path.removeprefix("usr/"), self._shelf.get(path)[1])


class Kernel:
    """A kernel package, unpacked below ``work``, with its modules' dependencies known."""

    def __init__(self, package: Package, work: Path) -> None:
        self.package, self._root = package, work
        say(f"unpacking {package.name} {package.version}")
        with opened(package) as archive:
            for member in archive:
                path = str(PurePosixPath(member.name)).removeprefix("usr/")
                if not member.isfile() or not path.startswith(("boot/vmlinu", "lib/modules/", "boot/config")):
                    continue
                below = path.split("/kernel/", 1)[-1]
                if below.startswith(_NO_DRIVERS):
                    continue
                stream = archive.extractfile(member)
                assert stream is not None
                data = stream.read()
                if path.endswith(".ko.xz"):  # the archive is compressed as a whole
                    path, data = path.removesuffix(".xz"), lzma.decompress(data)
                target = work / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
        self.image = next(iter(sorted((work / "boot").glob("vmlinu*"))), None) or next(
            iter((work / "lib/modules").glob("*/vmlinuz"))
        )
        self.version = next((work / "lib/modules").iterdir()).name
        self._modules = work / "lib/modules" / self.version
        self._depends: dict[str, list[str]] = {}
        self.rescan()

    def rescan(self) -> None:
        _depmod(self._root, self.version)
        for line in (self._modules / "modules.dep").read_text().splitlines():
            module, _, rest = line.partition(":")
            self._depends[module] = rest.split()

    def choose(self, globs: list[str], without: list[str]) -> set[str]:
        """Paths (kernel/drivers/...) of the modules that the globs name, and of all they need."""
        chosen: set[str] = set()
        for module in self._depends:
            below = module.removeprefix("kernel/").removesuffix(".ko")
            if any(_matches(below, glob) for glob in globs) and not any(
                _matches(below, glob) for glob in without
            ):
                chosen.update([module, *self._depends[module]])
        return chosen

    def read(self, module: str) -> Entry:
        return file((self._modules / module).read_bytes(), self.package.name)

    def index(self, modules: set[str], work: Path) -> dict[str, Entry]:
        """What modprobe reads, for these modules: path in the ramdisk -> file."""
        target = work / "lib/modules" / self.version
        for module in modules:
            path = target / module
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(self._modules / module)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            if (source := self._modules / name).exists():
                (target / name).write_bytes(source.read_bytes())
        _depmod(work, self.version)
        made = {}
        for name in ("modules.dep.bin", "modules.alias.bin", "modules.softdep", "modules.builtin.bin", "modules.builtin.alias.bin",
                     "modules.symbols.bin",
                     "modules.dep", "modules.alias"):  # fmt: skip
            if (target / name).exists():
                made[f"lib/modules/{self.version}/{name}"] = file(
                    (target / name).read_bytes(), self.package.name
                )
        return made


def _matches(path: str, glob: str) -> bool:
    return path.count("/") == glob.count("/") and fnmatch.fnmatchcase(path, glob)


def _depmod(root: Path, version: str) -> None:
    done = subprocess.run(["depmod", "-b", root, version], capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"depmod failed (package kmod): {done.stderr.strip()[-500:]}")


def _normal(path: str) -> str:
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            parts.pop()
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def skeleton() -> dict[str, Entry]:
    """Directories and the few files of configuration."""
    made = {
        name: directory()
        for name in ("bin", "dev", "etc", "lib", "mnt", "proc", "run", "sys", "var/lib", "var/log")
    }
    made |= {"root": directory(0o700), "tmp": directory(0o1777)}
    made |= {
        "sbin": link("bin"),
        "usr": link("."),
        "lib64": link("lib"),
        "var/run": link("../run"),
    }
    made["etc/passwd"] = file(b"root:x:0:0:root:/root:/bin/bash\n")
    made["etc/group"] = file(b"root:x:0:\ndisk:x:6:\ntty:x:5:\n")
    made["etc/shells"] = file(b"/bin/sh\n/bin/bash\n")
    made["etc/hosts"] = file(b"127.0.0.1 localhost\n")
    made["etc/nsswitch.conf"] = file(b"passwd: files\ngroup: files\nhosts: files dns\n")
    # there is no udev here that LVM could wait for
    made["etc/lvm/lvm.conf"] = file(
        b"activation { udev_sync = 0\n udev_rules = 0\n monitoring = 0 }\ndevices { obtain_device_list_from_udev = 0\n use_devicesfile = 0 }\n"
        b"global { use_lvmpolld = 0 }\n"
    )
    return made


def drivers(kernel: Kernel) -> tuple[set[str], set[str]]:
    """Modules of the first archive, and those of the second."""
    core = kernel.choose(contents.words("drivers", "core"), [])
    every = kernel.choose(contents.words("drivers", "tools"), contents.words("drivers", "without"))
    return core, every - core
