"""AutoYaST profiles: well-formed by ``xmllint`` (Debian package libxml2-utils), sections and types by a check of our own, scripts by the shells.

Sections are those of the AutoYaST guide for SLE 15. Only what is known is checked: below the first two levels any element passes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.parsers import expat

from provisiond.templating.validators.shell import Script, check_scripts, shell_of
from provisiond.templating.validators.verdict import (
    Problem,
    Target,
    Verdict,
    as_files,
    ended_badly,
    number_of,
    run,
)

XMLLINT = "xmllint"
NAME = "xmllint, AutoYaST structure"
_SAID = re.compile(r"^(?P<path>.*?/\d+\.xml):(?P<line>\d+): (?P<text>.*)$")
NAMESPACE = "http://www.suse.com/1.0/yast2ns"
CONFIG = "http://www.suse.com/1.0/configns"
SECTIONS = frozenset({
    "add-on", "audit-laf", "auth-client", "bootloader", "configuration_management", "deploy_image", "dhcp-server", "dns-server",
    "fcoe-client", "files", "firewall", "firstboot", "ftp-server", "general", "groups", "host", "http-server", "inetd", "iscsi-client",
    "kdump", "keyboard", "language", "login_settings", "mail", "networking", "nfs", "nfs_server", "nis", "ntp-client", "partitioning",
    "partitioning_advanced", "printer", "proxy", "report", "samba-client", "scripts", "security", "services-manager", "software", "sound",
    "squid", "ssh_import", "suse_register", "sysconfig", "tftp-server", "timezone", "upgrade", "user_defaults", "users", "zfcp", "dasd",
    "rmt", "scc", "unsupported",
})  # fmt: skip
_LISTS = {  # section or path -> the only children it may have
    "users": {"user"},
    "groups": {"group"},
    "partitioning": {"drive"},
    "files": {"file"},
    "scripts": {"pre-scripts", "postpartitioning-scripts", "chroot-scripts", "post-scripts", "init-scripts"},
    "networking": {"dhcp_options", "dns", "interfaces", "ipv6", "keep_install_network", "managed", "virt_bridge_proposal", "modules", "net-udev",
                   "routing", "s390-devices", "setup_before_proposal", "start_immediately", "strict_IP_check_timeout", "wireless", "backend"},
    "software": {"products", "patterns", "packages", "remove-patterns", "remove-packages", "post-packages", "post-patterns", "do_online_update",
                 "install_recommended", "instsource", "kernel", "image"},
    "general": {"mode", "mouse", "proposals", "ask-list", "signature-handling", "storage", "self_update", "self_update_url", "semi-automatic",
                "wait", "cio_ignore", "minimal-configuration", "report"},
}  # fmt: skip
_TYPES = frozenset({"boolean", "integer", "list", "map", "string", "symbol", "disksize"})
_SCRIPTS = ("pre-scripts", "postpartitioning-scripts", "chroot-scripts", "post-scripts", "init-scripts")


@dataclass
class Element:
    """An element with the line it begins in; ``kind`` is its config:type."""

    name: str
    line: int
    kind: str = ""
    text: str = ""
    text_line: int = 0
    children: list[Element] = field(default_factory=list)

    def child(self, name: str) -> Element | None:
        return next((c for c in self.children if c.name == name), None)


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """One xmllint for all texts; without it the structure is still looked at, and the verdict says what was skipped."""
    problems: list[list[Problem]] = [[] for _ in texts]
    skipped: tuple[str, ...] = ()
    if shutil.which(XMLLINT) is None:
        skipped = (f"{XMLLINT}: the package libxml2-utils is not installed",)
    else:
        with as_files(texts, [".xml"] * len(texts)) as paths:
            for at in range(0, len(paths), 500):
                _xmllint(paths[at : at + 500], problems)
    scripts: list[list[Script]] = []
    for text, found in zip(texts, problems, strict=True):
        root = _read(text, found) if not found else None
        found += _structure(root) if root else []
        scripts.append(list(_scripts(root)) if root else [])
    return [
        Verdict(NAME, tuple(found), skipped).with_more(*more)
        for found, more in zip(problems, check_scripts(scripts), strict=True)
    ]


def _xmllint(paths: Sequence[str], problems: list[list[Problem]]) -> None:
    done = run([XMLLINT, "--noout", "--nonet", *paths])
    found = [said for line in done.stderr.split("\n") if (said := _SAID.match(line))]
    for said in found:
        text = said["text"].replace("parser error : ", "")
        problems[number_of(said["path"])].append(Problem(text, int(said["line"])))
    if done.returncode and not found:
        for path in paths:
            problems[number_of(path)].append(ended_badly(done))


def _read(text: str, problems: list[Problem]) -> Element | None:
    """The elements. A document type with entities is refused: a profile needs none, and they can grow without end."""
    parser = expat.ParserCreate(namespace_separator=" ")
    root = Element("", 0)
    path = [root]

    def start(name: str, attributes: dict[str, str]) -> None:
        space, _, local = name.rpartition(" ")
        kind = attributes.get(f"{CONFIG} type") or attributes.get("t") or attributes.get("type") or ""
        element = Element(local, parser.CurrentLineNumber, kind)
        if space not in ("", NAMESPACE):
            problems.append(Problem(f"<{local}>: of another namespace than {NAMESPACE}", element.line))
        path[-1].children.append(element)
        path.append(element)

    def characters(data: str) -> None:
        if not path[-1].text:
            path[-1].text_line = parser.CurrentLineNumber
        path[-1].text += data

    def entity(name: str, *_: object) -> None:
        problems.append(Problem(f"it declares an entity, {name}", parser.CurrentLineNumber))

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda name: path.pop()
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        problems.append(Problem(expat.ErrorString(error.code), error.lineno))
        return None
    return root.children[0] if root.children and not problems else None


def _structure(root: Element) -> Iterator[Problem]:
    if root.name != "profile":
        yield Problem(f"the root is <{root.name}>, not <profile>", root.line)
        return
    seen: set[str] = set()
    for section in root.children:
        if section.name not in SECTIONS:
            yield Problem(f"there is no section <{section.name}>", section.line)
        if section.name in seen:
            yield Problem(f"<{section.name}> stands twice", section.line)
        seen.add(section.name)
        allowed = _LISTS.get(section.name)
        for child in section.children:
            if allowed and child.name not in allowed and child.name != "listentry":
                yield Problem(f"<{section.name}>: there is no <{child.name}> in it", child.line)
    waiting = [root]
    while waiting:
        element = waiting.pop()
        yield from _typed(element)
        waiting += element.children
    partitioning = root.child("partitioning")
    for drive in partitioning.children if partitioning else []:
        use = drive.child("use")
        if use and use.text.strip() not in ("all", "linux", "free") and not re.fullmatch(r"[\d,]+", use.text.strip()):  # fmt: skip
            yield Problem("<use> is all, linux, free or numbers", use.line)


def _typed(element: Element) -> Iterator[Problem]:
    said = element.text.strip()
    if element.kind and element.kind not in _TYPES:
        yield Problem(f"<{element.name}>: there is no type {element.kind!r}", element.line)
    elif element.kind == "boolean" and said not in ("true", "false"):
        yield Problem(f"<{element.name}>: a boolean is true or false, not {said[:20]!r}", element.line)
    elif element.kind == "integer" and not re.fullmatch(r"-?\d+", said):
        yield Problem(f"<{element.name}>: {said[:20]!r} is no integer", element.line)
    elif element.kind == "list" and said:
        yield Problem(f"<{element.name}>: a list holds elements, not text", element.line)
    elif element.kind != "list" and len(element.children) > 1:
        names = [c.name for c in element.children]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            yield Problem(
                f'<{element.name}>: <{twice[0]}> stands twice, but it is no config:type="list"', element.line
            )
    if element.children and said:
        yield Problem(f"<{element.name}>: text {said[:20]!r} between its elements", element.line)


def _scripts(root: Element) -> Iterator[Script]:
    section = root.child("scripts")
    for name in _SCRIPTS:
        group = section.child(name) if section else None
        for script in group.children if group else []:
            source, interpreter = script.child("source"), script.child("interpreter")
            named = (interpreter.text.strip() if interpreter else "") or "shell"
            if source and source.text.strip() and named in ("shell", "/bin/bash", "/bin/sh", "bash"):
                text = source.text
                title = script.child("filename")
                # the first text is often a line break before the shell's first line: it counts as one of its lines
                yield Script(
                    text.lstrip("\n") if text.startswith("\n#!") else text,
                    shell_of(text.lstrip()) if text.lstrip().startswith("#!") else "bash",
                    source.text_line - 1 + (1 if text.startswith("\n#!") else 0),
                    f"{name} {title.text.strip() if title else ''}".strip(),
                )
