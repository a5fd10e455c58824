"""iPXE scripts, checked here as iPXE ships no checker: commands, their options and arguments, jumps, settings and comments.

Commands are those of https://ipxe.org/cmd. A line is split at blanks only; ``||``, ``&&`` and ``;`` part commands when they stand
alone, and a word that begins with ``#`` ends the line wherever it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from provisiond.templating.validators.verdict import Problem, Target, Verdict

MANY = 10_000
MAX_LINE = 4096


class Command(NamedTuple):
    """Least and greatest number of arguments; options, each long and short; those in ``valued`` take a value."""

    least: int
    most: int
    options: frozenset[str]
    valued: frozenset[str]


def _command(least: int, most: int, options: str = "") -> Command:
    """Options are written as ``name=/n`` when they take a value and ``keep/k`` when not."""
    names: set[str] = set()
    valued: set[str] = set()
    for option in options.split():
        long, short = option.split("/")
        both = {f"--{long.removesuffix('=')}", f"-{short}"}
        names |= both
        valued |= both if long.endswith("=") else set()
    return Command(least, most, frozenset(names), frozenset(valued))


_IMAGE = "name=/n timeout=/t autofree/a quiet/q"
_EXEC = f"{_IMAGE} replace/r"
_CONF = "configurator=/c timeout=/t"
_SAN = "drive=/d no-describe/n"
_CERT = "subject=/s keep/k"
_DIGEST = "set=/s timeout=/t quiet/q"
COMMANDS: dict[str, Command] = {
    "autoboot": _command(0, MANY), "boot": _command(0, MANY, _EXEC), "chain": _command(0, MANY, _EXEC), "imgexec": _command(0, MANY, _EXEC),
    "imgfetch": _command(1, MANY, _IMAGE), "initrd": _command(1, MANY, _IMAGE), "module": _command(1, MANY, _IMAGE),
    "kernel": _command(1, MANY, _IMAGE), "imgselect": _command(1, MANY, _IMAGE), "imgload": _command(1, MANY, _IMAGE),
    "imgargs": _command(1, MANY, _IMAGE), "imgfree": _command(0, MANY), "imgstat": _command(0, MANY),
    "imgtrust": _command(0, 0, "allow/a permanent/p"), "imgverify": _command(2, 2, "signer=/s keep/k timeout=/t quiet/q"),
    "imgdecrypt": _command(2, 2, "name=/n keep/k timeout=/t quiet/q"), "imgextract": _command(1, 1, "name=/n keep/k timeout=/t quiet/q"),
    "imgmem": _command(2, 2, "name=/n"), "imgset": _command(2, 2, "keep/k timeout=/t quiet/q"),
    "shim": _command(0, 1, "timeout=/t quiet/q require-loader/l allow-pxe/p allow-sbat/s"), "fdt": _command(0, 1, "timeout=/t quiet/q"),
    "certstat": _command(0, MANY, _CERT), "certstore": _command(0, MANY, _CERT), "certfree": _command(0, MANY, _CERT),
    "dhcp": _command(0, MANY, _CONF), "ifconf": _command(0, MANY, _CONF), "ifopen": _command(0, MANY), "ifclose": _command(0, MANY),
    "ifstat": _command(0, MANY), "iflinkwait": _command(0, MANY, "timeout=/t"), "iwstat": _command(0, MANY), "iwlist": _command(0, MANY),
    "ibstat": _command(0, 0), "route": _command(0, 0), "nstat": _command(0, 0), "ipstat": _command(0, 0), "pxebs": _command(2, 2),
    "vcreate": _command(1, 1, "tag=/t priority=/p"), "vdestroy": _command(1, 1), "ping": _command(1, 1, "size=/s timeout=/t count=/c quiet/q"),
    "nslookup": _command(2, 2), "ntp": _command(1, 1), "sanboot": _command(0, MANY, f"{_SAN} keep/k filename=/f extra=/e label=/l uuid=/u"),
    "sanhook": _command(1, MANY, _SAN), "sanunhook": _command(0, 0, _SAN), "fcstat": _command(0, 0), "fcels": _command(1, 1, "port=/p id=/i"),
    "config": _command(0, 1), "show": _command(1, 1, "quiet/q"), "set": _command(1, MANY), "clear": _command(1, 1), "read": _command(1, 1),
    "inc": _command(1, 2), "login": _command(0, 0), "isset": _command(1, 1), "iseq": _command(2, 2), "goto": _command(1, 1),
    "exit": _command(0, 1), "echo": _command(0, MANY, "n/n"), "prompt": _command(0, MANY, "key=/k timeout=/t"), "sleep": _command(1, 1),
    "shell": _command(0, 0), "help": _command(0, 0), "reboot": _command(0, 0, "warm/w setup/s"), "poweroff": _command(0, 0),
    "sync": _command(0, 0, "timeout=/t"), "time": _command(1, MANY), "console": _command(
        0, 0, "x=/x y=/y left=/l right=/r top=/t bottom=/b depth=/d picture=/p keep/k"),
    "colour": _command(1, 1, "basic=/b rgb=/r"), "cpair": _command(1, 1, "foreground=/f background=/b"),
    "menu": _command(0, MANY, "name=/n delete/d"), "form": _command(0, MANY, "name=/n delete/d"),
    "item": _command(0, MANY, "menu=/m form=/f key=/k default/d secret/s gap/g"), "present": _command(0, 0, "form=/f keep/k"),
    "choose": _command(1, 1, "menu=/m default=/d timeout=/t retimeout=/r keep/k"), "params": _command(0, 0, "name=/n method=/m delete/d"),
    "param": _command(1, MANY, "params=/p header/H"), "cpuid": _command(1, 1, "ext/e ecx/c"), "lotest": _command(2, 2, "mtu=/m broadcast/b"),
    "gdbstub": _command(1, MANY), "profstat": _command(0, 0), "pciscan": _command(1, 1), "usbscan": _command(1, 1),
    **{f"{name}sum": _command(1, MANY, _DIGEST) for name in ("md4", "md5", "sha1", "sha224", "sha256", "sha384", "sha512")},
}  # fmt: skip
_FREE = frozenset({"echo", "set", "menu", "form", "item", "prompt", "param"})
"""Commands whose last arguments are text for people or values: a dash in them is no option."""


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Each script by itself; nothing is run."""
    return [Verdict("iPXE syntax", tuple(_problems(text))) for text in texts]


def _problems(text: str) -> Iterator[Problem]:
    lines = text.split("\n")
    if lines[0].split() != ["#!ipxe"] or not lines[0].startswith("#!ipxe"):
        yield Problem("the first line is not '#!ipxe'", 1)
    labels: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.startswith(":"):
            name = (line[1:].split() or [""])[0]
            if name in labels:
                yield Problem(f"the label {name!r} stands in line {labels[name]} too", number)
            labels.setdefault(name, number)
    for number, line in enumerate(lines[1:], start=2):
        if not line.replace("\t", " ").isprintable() or not line.isascii():
            yield Problem("characters iPXE cannot read", number)
        if len(line) > MAX_LINE:
            yield Problem(f"longer than {MAX_LINE} characters, more than a kernel takes", number)
        if line.startswith("#"):
            continue
        words = line.split()
        if line.startswith(":"):
            words = words[1:]
        for place, word in enumerate(words):
            if word.startswith("#"):
                yield Problem(f"what follows {word[:20]!r} is a comment, even in arguments", number)
                words = words[:place]
                break
        for problem in (p for part in _parts(words) for p in _one(part, labels)):
            yield Problem(problem, number)


def _parts(words: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in ("||", "&&", ";"):
            yield part
            part = []
        else:
            part.append(word)
    yield part


def _one(words: Sequence[str], labels: dict[str, int]) -> Iterator[str]:
    """What is wrong with one command."""
    if not words:
        return
    if unclosed := _unclosed(" ".join(words)):
        yield f"{unclosed!r} is not closed"
    name, rest = words[0], list(words[1:])
    if "${" in name:
        return
    command = COMMANDS.get(name)
    if command is None:
        yield f"there is no iPXE command {name!r}"
        return
    arguments: list[str] = []
    while rest:
        word = rest.pop(0)
        if word == "--":
            arguments += rest
            break
        option, equals, _ = word.partition("=")
        if option in command.options and (option in command.valued or not equals):
            if option in command.valued and not equals:
                if not rest:
                    yield f"{name}: {option} needs a value"
                else:
                    rest.pop(0)
        elif re.fullmatch(r"--[a-z].*", word) and name not in _FREE:
            yield f"{name}: there is no option {option!r}"
        else:
            arguments += [word, *rest]  # iPXE stops looking for options at the first argument
            break
    if not command.least <= len(arguments) <= command.most:
        wanted = str(command.least) if command.least == command.most else f"{command.least} or more"
        if command.most < MANY and command.least != command.most:
            wanted = f"{command.least} to {command.most}"
        yield f"{name}: takes {wanted} arguments, not {len(arguments)}"
    if name == "goto" and arguments and "${" not in arguments[0] and arguments[0] not in labels:
        yield f"there is no label {arguments[0]!r}"


def _unclosed(text: str) -> str:
    """The first ``${`` without its ``}``; they nest."""
    starts: list[int] = []
    place = 0
    while place < len(text):
        if text.startswith("${", place):
            starts.append(place)
            place += 2
        else:
            if text[place] == "}" and starts:
                starts.pop()
            place += 1
    return text[starts[0] : starts[0] + 20] if starts else ""
