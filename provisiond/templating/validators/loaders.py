"""GRUB by ``grub-script-check``, PXELINUX by its directives (SYSLINUX ships no checker)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence

from provisiond.templating.validators.verdict import (
    Problem,
    Target,
    Verdict,
    as_files,
    ended_badly,
    number_of,
    run,
)

GRUB = "grub-script-check"
_LOOP = 'for f in "$@"; do grub-script-check "$f" 2>&1 | sed "s|^|$f: |"; if [ "${PIPESTATUS[0]}" != 0 ]; then echo "$f: ended badly"; fi; done; true'
_GRUB_SAID = re.compile(r"^(?P<path>.*?/\d+\.cfg): (?P<text>.*)$")
_SAYS_LITTLE = ("error: syntax error.", "error: Incorrect command.", "ended badly")


def check_grub(texts: Sequence[str], target: Target) -> list[Verdict]:
    """A process for each text, out of one shell."""
    if shutil.which(GRUB) is None:
        return [Verdict(GRUB, skipped=(f"{GRUB}: the package grub-common is not installed",))] * len(texts)
    said: dict[int, list[str]] = {number: [] for number in range(len(texts))}
    with as_files(texts, [".cfg"] * len(texts)) as paths:
        for at in range(0, len(paths), 500):
            done = run(["bash", "-c", _LOOP, "bash", *paths[at : at + 500]])
            if done.returncode:
                for path in paths[at : at + 500]:
                    said[number_of(path)].append(ended_badly(done).message)
            for line in done.stdout.split("\n"):
                if found := _GRUB_SAID.match(line):
                    text = found["text"].replace(found["path"], "it")
                    said[number_of(found["path"])].append(text)
    return [Verdict(GRUB, tuple(_grub(texts[number], lines))) for number, lines in said.items()]


def _grub(text: str, said: Sequence[str]) -> Iterator[Problem]:
    """Its sentences name a line in the last of them, or none when the text ends too early."""
    places = [int(m[1]) for line in said if (m := re.search(r"at line (\d+)", line))]
    sentences = [s for s in said if s not in _SAYS_LITTLE and "at line" not in s]
    if said:
        yield Problem(
            "; ".join(dict.fromkeys(sentences)).removeprefix("error: ") or "syntax error",
            min(places, default=max(1, text.count("\n"))),
        )


_DIRECTIVES = frozenset(
    {"default", "ui", "prompt", "timeout", "totaltimeout", "ontimeout", "onerror", "label", "kernel", "linux", "boot", "bss", "pxe", "fdimage",
     "comboot", "com32", "config", "append", "initrd", "fdt", "fdtdir", "devicetree", "ipappend", "sysappend", "localboot", "include", "say",
     "display", "font", "kbdmap", "serial", "console", "nocomplete", "noescape", "allowoptions", "implicit", "nohalt", "sendcookies", "menu",
     "text", "endtext", *(f"f{n}" for n in range(1, 13))}
)  # fmt: skip
_BOOTS = frozenset({"kernel", "linux", "boot", "bss", "pxe", "fdimage", "comboot", "com32", "config", "localboot"})  # fmt: skip
_NUMBERS = frozenset({"prompt", "timeout", "totaltimeout", "nocomplete", "noescape", "allowoptions", "implicit", "nohalt"})  # fmt: skip
_COMMAND_LINE = 2048


def check_pxelinux(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Each configuration by itself; nothing is run."""
    return [Verdict("PXELINUX syntax", tuple(_pxelinux(text))) for text in texts]


def _pxelinux(text: str) -> Iterator[Problem]:
    """Known directives, labels that boot something, and a default that is there."""
    labels: dict[str, int] = {}
    booting: set[str] = set()
    default, asked, current, in_text = None, 0, "", False
    for number, line in enumerate(text.split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        word, rest = words[0].lower(), words[1:]
        if in_text:
            in_text = word != "endtext"
            continue
        if not line.replace("\t", " ").isprintable():
            yield Problem("characters PXELINUX cannot read", number)
        if word not in _DIRECTIVES:
            yield Problem(f"there is no directive {words[0]!r}", number)
        elif word in _NUMBERS and not re.fullmatch(r"\d+", " ".join(rest)):
            yield Problem(f"{word} takes a number, not {' '.join(rest)!r}", number)
        elif word == "label":
            current = " ".join(rest)
            if not current:
                yield Problem("a label needs a name", number)
            elif current in labels:
                yield Problem(f"the label {current!r} stands in line {labels[current]} too", number)
            labels.setdefault(current, number)
        elif word in ("default", "ontimeout"):
            if word == "default":
                default, asked = " ".join(rest), number
        elif word == "text":
            in_text = True
        elif word == "append" and len(line) > _COMMAND_LINE:
            yield Problem(f"longer than {_COMMAND_LINE} characters, more than a kernel takes", number)
        if word in _BOOTS and current:
            booting.add(current)
            if not rest:
                yield Problem(f"{word} needs an argument", number)
    for label, number in labels.items():
        if label not in booting:
            yield Problem(f"the label {label!r} boots nothing", number)
    if default is None and labels:
        yield Problem("there is no 'default'")
    elif default is not None and default.split(" ")[0] not in {name.split(" ")[0] for name in labels}:
        yield Problem("'default' names no label", asked)
