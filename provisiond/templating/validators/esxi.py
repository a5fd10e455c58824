"""VMware ESXi's ks.cfg, checked here: it is not pykickstart's language and VMware ships no checker.

Commands and options are those of "About Installation and Upgrade Scripts" in VMware's ESXi 8.0 installation guide.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

from provisiond.templating.validators.shell import Script, check_scripts
from provisiond.templating.validators.verdict import Problem, Target, Verdict

NAME = "ESXi kickstart"
_DISKS = {"disk": True, "drive": True, "firstdisk": None, "overwritevmfs": False}
_INSTALL = {**_DISKS, "overwritevsan": False, "preservevmfs": False, "novmfsondisk": False, "forceunsupportedinstall": False, "forcemigrate": False,
            "savebootbank": True, "ignoressd": False, "ignoreprereqwarnings": False, "ignoreprereqerrors": False, "dpupcislots": True,
            "dpuPciSlots": True, "systemdisk": True, "systemDisk": True}  # fmt: skip
_NETWORK = {"bootproto": True, "device": True, "ip": True, "gateway": True, "nameserver": True, "netmask": True, "hostname": True, "vlanid": True,
            "addvmportgroup": True, "portgroup": True}  # fmt: skip
COMMANDS: dict[str, dict[str, bool | None]] = {
    "accepteula": {}, "vmaccepteula": {}, "dryrun": {}, "paranoid": {}, "reboot": {"noeject": False}, "install": {**_INSTALL},
    "installorupgrade": {**_INSTALL}, "upgrade": {**_INSTALL}, "network": {**_NETWORK},
    "clearpart": {"drives": True, "alldrives": False, "ignoredrives": True, "overwritevmfs": False, "firstdisk": None},
    "keyboard": {}, "serialnum": {"esx": True}, "vmserialnum": {"esx": True}, "rootpw": {"iscrypted": False},
    "part": {"ondisk": True, "ondrive": True, "onfirstdisk": None}, "partition": {"ondisk": True, "ondrive": True, "onfirstdisk": None},
    "include": {}, "%include": {},
}  # fmt: skip
"""Command -> its options: True takes a value, False none, None may."""
_SECTIONS = {
    "%pre": {"interpreter": True},
    "%post": {"interpreter": True, "timeout": True, "ignorefailure": True},
    "%firstboot": {"interpreter": True},
}
_SYSTEM = ("install", "installorupgrade", "upgrade")


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Commands before sections, each known with its options; the shell of busybox sections by the shells."""
    looked = [(list(_problems(text)), list(_scripts(text))) for text in texts]
    found = check_scripts([scripts for _, scripts in looked])
    return [
        Verdict(NAME, tuple(problems)).with_more(*more)
        for (problems, _), more in zip(looked, found, strict=True)
    ]


def _problems(text: str) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.split("\n"), start=1):
        first = (line.split() or [""])[0]
        if first.startswith("%") and first not in ("%include", "%end"):
            section = first
            if first not in _SECTIONS:
                yield Problem(f"there is no section {first!r}", number)
            else:
                yield from _options(first, _words(line)[1:], _SECTIONS[first], number)
            continue
        if section or not first or first.startswith("#"):
            continue
        try:
            words = shlex.split(line)
        except ValueError as error:
            yield Problem(str(error), number)
            continue
        name = words[0]
        if name not in COMMANDS:
            yield Problem(f"there is no ESXi command {name!r}", number)
            continue
        if name in seen and name not in ("include", "%include", "part", "partition"):
            yield Problem(f"{name} stands in line {seen[name]} too", number)
        seen.setdefault(name, number)
        yield from _options(name, words[1:], COMMANDS[name], number)
        arguments = [w for w in words[1:] if not w.startswith("--")]
        if name in ("rootpw", "keyboard", "include", "%include") and not arguments:
            yield Problem(f"{name} needs an argument", number)
        if name == "network":
            given = dict(w[2:].partition("=")[::2] for w in words[1:] if w.startswith("--"))
            if given.get("bootproto", "dhcp") not in ("dhcp", "static"):
                yield Problem("network: --bootproto is dhcp or static", number)
            if given.get("bootproto") == "static":
                for option in ("ip", "netmask", "gateway"):
                    if not given.get(option):
                        yield Problem(f"network: --bootproto=static needs --{option}", number)
    if not seen.keys() & set(_SYSTEM):
        yield Problem(f"one of {', '.join(_SYSTEM)} is needed")
    if len(seen.keys() & set(_SYSTEM)) > 1:
        yield Problem(
            f"only one of {', '.join(_SYSTEM)} may stand", max(seen[n] for n in _SYSTEM if n in seen)
        )
    if not seen.keys() & {"accepteula", "vmaccepteula"}:
        yield Problem("accepteula is needed")
    if "rootpw" not in seen and "upgrade" not in seen:
        yield Problem("rootpw is needed")


def _options(
    name: str, words: Sequence[str], known: Mapping[str, bool | None], number: int
) -> Iterator[Problem]:
    for word in words:
        if not word.startswith("--"):
            continue
        option, equals, _ = word[2:].partition("=")
        if option not in known:
            yield Problem(f"{name}: there is no option '--{option}'", number)
        elif known[option] is True and not equals:
            yield Problem(f"{name}: --{option} needs a value, written --{option}=VALUE", number)
        elif known[option] is False and equals:
            yield Problem(f"{name}: --{option} takes no value", number)


def _scripts(text: str) -> Iterator[Script]:
    """Sections for busybox, which is the default; a section ends where the next begins."""
    lines = text.split("\n")
    starts = [n for n, line in enumerate(lines) if re.match(r"%(pre|post|firstboot)\b", line)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        words = _words(lines[start])
        if not any(w.startswith("--interpreter=") and w != "--interpreter=busybox" for w in words):
            body = ["" if line.strip() == "%end" else line for line in lines[start + 1 : end]]
            yield Script("\n".join(body), "sh", start + 1, words[0])


def _words(line: str) -> list[str]:
    return line.split()
