"""Each format's own checker, run on rendered text: pykickstart, debconf, cloud-init's schema, GRUB, the shells.

A validator gives the problems it found, each a sentence with its line where there is one. When its program or package is not
there the result says ``skipped`` with the name of what is missing: that is never the same as passed.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TIMEOUT = 30


@dataclass(frozen=True)
class Verdict:
    """What a validator says. ``skipped`` names what was missing; then nothing was checked."""

    validator: str
    problems: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def passed(self) -> bool:
        return not self.problems and not self.skipped

    def __str__(self) -> str:
        if self.skipped:
            return f"{self.validator}: skipped: {self.skipped}"
        return f"{self.validator}: " + ("; ".join(self.problems) or "passed")


def kickstart(text: str, version: str = "RHEL9") -> Verdict:
    """Parsed by pykickstart for ``version``; the shell of each script section is checked too."""
    try:
        parser_module = importlib.import_module("pykickstart.parser")
        versions = importlib.import_module("pykickstart.version")
        errors = importlib.import_module("pykickstart.errors")
    except ImportError:
        return Verdict("pykickstart", skipped="the Python package pykickstart is not installed")
    handler = versions.makeVersion(version)
    parser = parser_module.KickstartParser(handler, followIncludes=False, errorsAreFatal=True)
    try:
        parser.readKickstartFromString(text)
    except errors.KickstartError as error:
        return Verdict("pykickstart", (str(error).strip(),))
    problems: list[str] = []
    for script in handler.scripts:
        shell = "bash" if "bash" in script.interp else "sh"
        problems += [
            f"script at line {script.lineno}: {p}" for p in shell_script(script.script, shell).problems
        ]
    return Verdict("pykickstart", tuple(problems))


def preseed(text: str) -> Verdict:
    """Checked by ``debconf-set-selections --checkonly``; shell in early and late commands by ``sh -n``."""
    if not shutil.which("debconf-set-selections"):
        return Verdict(
            "debconf-set-selections", skipped="debconf-set-selections (package debconf) is not installed"
        )
    said = _run(["debconf-set-selections", "--checkonly"], text)
    problems = [line for line in said.splitlines() if line.strip()]
    joined = re.sub(r"\\\n", "", text)
    for name, command in re.findall(r"^\S+ (\S+_command) string (.*)$", joined, re.MULTILINE):
        problems += [f"{name}: {p}" for p in shell_script(command, "sh").problems]
    return Verdict("debconf-set-selections", tuple(problems))


def cloud_config(text: str, package: Path | None) -> Verdict:
    """User-data or vendor-data by the JSON schema in cloud-init's Debian package, unpacked at ``package``."""
    name = "cloud-init schema"
    if not text.startswith("#cloud-config\n"):
        return Verdict(name, ("the first line is not '#cloud-config'",))
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return Verdict(name, (f"not YAML: {error}",))
    schema = _cloud_init(package, "config/schemas/schema-cloud-config-v1.json")
    if schema is None:
        return Verdict(name, skipped="the package cloud-init is not at hand")
    try:
        validator = importlib.import_module("jsonschema").Draft4Validator
    except ImportError:
        return Verdict(name, skipped="the Python package jsonschema is not installed")
    found = validator(json.loads(schema.read_text())).iter_errors(tree)
    return Verdict(
        name, tuple(f"{'.'.join(map(str, e.absolute_path)) or 'top'}: {_shortened(e.message)}" for e in found)
    )


_PARSE_NETWORK = """
import json, sys, yaml
from cloudinit.net import network_state
state = network_state.parse_net_config_data(yaml.safe_load(sys.stdin), skip_broken=False)
print(json.dumps(list(state.iter_interfaces()), default=str))
"""


def network_config(text: str, package: Path | None) -> Verdict:
    """Read by cloud-init's own parser, out of its Debian package unpacked at ``package``, in a process of its own."""
    name = "cloud-init network"
    if _cloud_init(package, "net/network_state.py") is None or package is None:
        return Verdict(name, skipped="the package cloud-init is not at hand")
    done = subprocess.run(
        [sys.executable, "-c", _PARSE_NETWORK],
        input=text, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        env={"PYTHONPATH": f"{package}/usr/lib/python3/dist-packages", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    if "ModuleNotFoundError" in done.stderr:
        return Verdict(name, skipped=done.stderr.strip().splitlines()[-1])
    if done.returncode:
        return Verdict(name, (done.stderr.strip().splitlines()[-1],))
    return Verdict(name, () if json.loads(done.stdout) else ("it configures no interface",))


def grub(text: str) -> Verdict:
    """Checked by ``grub-script-check``."""
    if not shutil.which("grub-script-check"):
        return Verdict(
            "grub-script-check", skipped="grub-script-check (package grub-common) is not installed"
        )
    said = _run(["grub-script-check"], text)
    return Verdict("grub-script-check", tuple(line for line in said.splitlines() if line.strip()))


_IPXE_COMMANDS = frozenset(
    {"autoboot", "boot", "chain", "config", "dhcp", "echo", "exit", "goto", "ifclose", "ifconf", "ifopen", "ifstat", "imgargs",
     "imgfree", "imgload", "imgselect", "imgstat", "imgverify", "inc", "initrd", "isset", "iseq", "item", "kernel", "login", "menu",
     "module", "params", "param", "prompt", "reboot", "poweroff", "route", "sanboot", "sanhook", "sanunhook", "set", "shell", "show",
     "sleep", "sync", "clear", "choose", "cpuid", "nslookup", "ntp", "ping", "time", "colour", "cpair", "console", "imgextract"}
)  # fmt: skip


def ipxe(text: str) -> Verdict:
    """Checked here, as iPXE ships no checker: first line, known commands (ipxe.org/cmd), jumps to labels that are there."""
    lines = text.splitlines()
    problems = [] if lines and lines[0] == "#!ipxe" else ["line 1: not '#!ipxe'"]
    labels = {line[1:].strip() for line in lines if line.startswith(":")}
    for number, line in enumerate(lines[1:], start=2):
        if not line.isprintable() or not line.isascii():
            problems.append(f"line {number}: characters iPXE cannot read")
        if not line.strip() or line.startswith(("#", ":")):
            continue
        for part in re.split(r" (?:\|\||&&|;)(?: |$)", line):
            words = part.split()
            if words and words[0] not in _IPXE_COMMANDS:
                problems.append(f"line {number}: there is no iPXE command {words[0]!r}")
            if words[:1] == ["goto"] and words[1:] and words[1] not in labels:
                problems.append(f"line {number}: there is no label {words[1]!r}")
    return Verdict("ipxe", tuple(problems))


_PXELINUX_WORDS = frozenset(
    {
        "default",
        "prompt",
        "timeout",
        "label",
        "kernel",
        "append",
        "localboot",
        "say",
        "serial",
        "initrd",
        "menu",
        "ui",
    }
)


def pxelinux(text: str) -> Verdict:
    """Checked here, as SYSLINUX ships no checker: known directives, and a default that names a label."""
    problems: list[str] = []
    seen: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] not in _PXELINUX_WORDS:
            problems.append(f"line {number}: there is no directive {words[0]!r}")
        seen.setdefault(words[0], []).append(" ".join(words[1:]))
    if seen.get("default", [""])[0] not in seen.get("label", []):
        problems.append("'default' names no label")
    return Verdict("pxelinux", tuple(problems))


def shell_script(text: str, shell: str = "sh") -> Verdict:
    """Syntax checked by ``sh -n`` or ``bash -n``."""
    if not shutil.which(shell):
        return Verdict(f"{shell} -n", skipped=f"{shell} is not installed")
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(
            [shell, "-n", file.name], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        said = done.stderr.replace(f"{file.name}: ", "")
    return Verdict(f"{shell} -n", tuple(said.splitlines()) if done.returncode else ())


def meta_data(text: str) -> Verdict:
    """YAML with the two keys NoCloud needs."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return Verdict("meta-data", (f"not YAML: {error}",))
    missing = {"instance-id", "local-hostname"} - set(tree if isinstance(tree, dict) else ())
    return Verdict("meta-data", tuple(f"{key} is missing" for key in sorted(missing)))


def validate(kind: str, text: str, *, cloud_init: Path | None = None) -> Verdict:
    """The verdict of the validator for templates of ``kind``; ``cloud_init`` is where that Debian package is unpacked."""
    if kind in {"user-data", "vendor-data"}:
        return cloud_config(text, cloud_init)
    if kind == "network-config":
        return network_config(text, cloud_init)
    checker = _BY_KIND.get(kind) or _BY_KIND.get(kind.partition("-")[0])
    return checker(text) if checker else Verdict(kind, skipped=f"there is no validator for {kind}")


_BY_KIND: dict[str, Callable[[str], Verdict]] = {
    "kickstart": kickstart, "preseed": preseed, "meta-data": meta_data, "grub": grub, "ipxe": ipxe, "pxelinux": pxelinux,
}  # fmt: skip


def _run(command: Sequence[str], text: str) -> str:
    """What ``command`` complains about when ``text`` is its input; empty when it ends well and says nothing."""
    done = subprocess.run(
        list(command), input=text, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    said = done.stderr.strip()
    return said or (f"ended with status {done.returncode}" if done.returncode else "")


def _cloud_init(package: Path | None, path: str) -> Path | None:
    if package is None:
        return None
    found = package / "usr/lib/python3/dist-packages/cloudinit" / path
    return found if found.is_file() else None


def _shortened(message: Any) -> str:
    return str(message)[:300]
