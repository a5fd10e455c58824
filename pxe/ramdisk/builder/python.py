"""Python in the ramdisk: the modules that the agent imports and no others, compiled, without their sources."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

from builder.archive import Entry, file
from builder.contents import words
from builder.errors import BuildError

# Compiles what it is told on its standard input ([[path, name in the ramdisk], ...]). A process of its own, because marshal writes
# references by how often an object is in use: what else happens in a process would show in the result.
_COMPILE = """
import importlib.util, json, marshal, sys
out = sys.stdout.buffer
for path, name in json.load(sys.stdin):
    with open(path, "rb") as source:
        text = source.read()
    code = marshal.dumps(compile(text, name, "exec", dont_inherit=True, optimize=1))
    data = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(text) + code
    out.write(len(data).to_bytes(4, "little") + data)
"""


class Library:
    """The standard library below ``root`` (a directory such as usr/lib/python3.11, unpacked) of Python ``version``, such as 3.11."""

    def __init__(self, root: Path, version: str) -> None:
        self._root, self._version = root, version
        self._found: dict[str, Path] = {}  # module -> source or extension
        self._dynload = {path.name.split(".")[0]: path for path in (root / "lib-dynload").glob("*.so")}

    def collect(self, agent: Path) -> None:
        """Find everything that the package ``agent`` and the margin import. Raises BuildError for what is nowhere."""
        asked = set(words("python", "margin"))
        for source in sorted(agent.rglob("*.py")):
            for name in _imports(
                source, f"{agent.name}.{source.relative_to(agent).with_suffix('')}".replace("/", ".")
            ):
                if name.split(".")[0] == agent.name:
                    continue
                if name.split(".")[0] not in sys.stdlib_module_names:
                    raise BuildError(
                        f"{source} imports {name}, which is no part of Python's standard library"
                    )
                asked.add(name)
        asked.update(f"encodings.{name}" for name in words("python", "encodings"))
        queue = sorted(
            asked | {"os", "encodings", "codecs", "io", "abc", "site", "runpy", "importlib", "importlib.util"}
        )
        seen, without = set(queue), words("python", "without")
        while queue:
            name = queue.pop()
            path = self._find(name)
            if path is None:
                continue
            self._found[name] = path
            wanted = _imports(path, name) if path.suffix == ".py" else set()
            wanted |= {name.rpartition(".")[0]} - {""}
            for new in sorted(wanted - seen):
                if any(new == w or new.startswith(w + ".") for w in without) and new not in asked:
                    continue
                if new.startswith("encodings."):
                    continue
                seen.add(new)
                queue.append(new)

    def entries(self, agent: Path) -> dict[str, Entry]:
        """Path in the ramdisk -> file: the modules found, and the agent itself."""
        base = f"lib/python{self._version}"
        made: dict[str, Entry] = {}
        jobs: list[tuple[str, str]] = []
        for path in self._found.values():
            if path.suffix == ".so":
                made[f"{base}/lib-dynload/{path.name}"] = file(path.read_bytes(), "libpython")
            else:
                jobs.append((str(path), f"{base}/{path.relative_to(self._root)}"))
        for path in sorted(agent.rglob("*.py")):
            jobs.append((str(path), f"{base}/{agent.name}/{path.relative_to(agent)}"))
        jobs.sort(key=lambda job: job[1])
        for (_, name), data in zip(jobs, self._compile(jobs), strict=True):
            made[name + "c"] = file(data, "libpython" if agent.name not in name else "provisiond")
        return made

    def _find(self, name: str) -> Path | None:
        below = self._root / name.replace(".", "/")
        for path in (below / "__init__.py", below.with_suffix(".py")):
            if path.is_file():
                return path
        return self._dynload.get(name)

    def _compile(self, jobs: list[tuple[str, str]]) -> list[bytes]:
        program = sys.executable
        if f"{sys.version_info.major}.{sys.version_info.minor}" != self._version:
            program = shutil.which(f"python{self._version}") or ""
        if not program:
            raise BuildError(
                f"Python {self._version} is needed to compile the agent: apt-get install python{self._version}-minimal"
            )
        done = subprocess.run(
            [program, "-S", "-s", "-B", "-c", _COMPILE], input=json.dumps([[path, "/" + name] for path, name in jobs]).encode(),
            capture_output=True, env={"PYTHONHASHSEED": "0"},
        )  # fmt: skip
        if done.returncode:
            raise BuildError(f"the agent does not compile: {done.stderr.decode()[-1000:]}")
        parts, at = [], 0
        while at < len(done.stdout):
            size = int.from_bytes(done.stdout[at : at + 4], "little")
            parts.append(done.stdout[at + 4 : at + 4 + size])
            at += 4 + size
        return parts


def _imports(source: Path, module: str) -> set[str]:
    """Every module that ``source`` (module ``module``) may import, wherever in it; a name imported from a package counts as a module too."""
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(source.read_bytes(), str(source))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found
