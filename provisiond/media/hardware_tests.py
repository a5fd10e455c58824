"""The hardware tests that a ramdisk can run: the shipped ones and the operator's own, each a script with a header.

A header is comment lines among the first 20 lines of the script::

    # provisiond: about=Writes patterns to memory and reads them back, timeout=600, destructive=no

``about`` says in a sentence what it tests, ``timeout`` how many seconds it may take (DEFAULT_TIMEOUT without one), ``destructive``
whether it writes to disks (yes, no). The name of the file is the name of the test. docs/hardware.md tells what a script may expect.
"""

from __future__ import annotations

import hashlib
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provisiond.config import Settings
from provisiond.errors import FieldError, Invalid, ProvisiondError

DEFAULT_TIMEOUT = 600
MAX_TIMEOUT = 7 * 24 * 3600
MAX_BYTES = 1 << 20  # of one script
ALL = "all"

_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,62}[a-z0-9])?")
_HEADER = re.compile(r"#+\s*provisiond:\s*(.*)")
_FIELD = re.compile(r"(about|timeout|destructive)\s*=\s*")


class BadTest(ProvisiondError):
    """A script cannot be used; the message says why and what to write instead."""


@dataclass(frozen=True)
class TestScript:
    """One test. ``timeout`` in seconds; ``sha256`` of the script in hex; ``own``: from ``inspection.tests_dir``."""

    __test__ = False  # it is no class of tests for pytest

    name: str
    about: str
    timeout: int
    destructive: bool
    sha256: str
    path: Path
    own: bool = False


def list_tests(settings: Settings) -> list[TestScript]:
    """All tests by name (blocking). One's own takes the place of a shipped one. Scripts that cannot be used are left out."""
    return sorted((t for t in _read_all(settings) if isinstance(t, TestScript)), key=lambda t: t.name)


def bad_tests(settings: Settings) -> list[BadTest]:
    """Why scripts in ``inspection.tests_dir`` cannot be used (blocking)."""
    return [t for t in _read_all(settings) if isinstance(t, BadTest)]


def find_test(settings: Settings, name: str) -> TestScript | None:
    """The test of that name (blocking)."""
    return next((t for t in list_tests(settings) if t.name == name), None)


def choose_tests(
    settings: Settings, wanted: Sequence[str] | str, field: str = "tests", *, erasing: bool = False
) -> list[TestScript]:
    """The tests to run (blocking): by name, in the order asked for, or every harmless one for "all" (alone or in a list).

    Raises Invalid with every name that is none, and, but for ``erasing``, every one that writes to disks: those run at release only.
    """
    names = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    known = {t.name: t for t in list_tests(settings)}
    if ALL in names:
        harmless = [name for name, test in known.items() if not test.destructive]
        names = list(dict.fromkeys([*(n for n in names if n != ALL), *harmless]))
    wrong = [
        FieldError(f"{field}.{i}", _why_not(name, known))
        for i, name in enumerate(names)
        if name not in known or (known[name].destructive and not erasing)
    ]
    if wrong:
        raise Invalid(wrong)
    return [known[name] for name in names]


def script(test: TestScript) -> bytes:
    """The text of a test (blocking). Raises BadTest when the file changed since it was listed: its digest is promised to the machine."""
    text = _bytes(test.path)
    if hashlib.sha256(text).hexdigest() != test.sha256:
        raise BadTest(f"{test.path} was changed just now; start the hardware test {test.name!r} again")
    return text


def parse_test(name: str, text: bytes, path: Path, own: bool = False) -> TestScript:
    """A test out of its script. Raises BadTest."""
    if not _NAME.fullmatch(name):
        raise BadTest(
            f"{path}: the name of a test is 1 to 64 of lower-case letters, digits, '-' and '_'; rename the file"
        )
    if not text.startswith(b"#!"):
        raise BadTest(
            f"{path}: a test begins with the line of its interpreter, such as #!/bin/sh or #!/usr/bin/python3"
        )
    fields: dict[str, str] = {}
    for line in text.decode(errors="replace").splitlines()[:20]:
        if header := _HEADER.match(line):
            fields |= _fields(header[1])
    if not fields.get("about"):
        raise BadTest(
            f"{path}: a comment line '# provisiond: about=..., timeout=600, destructive=no' must say what it tests"
        )
    timeout = fields.get("timeout", str(DEFAULT_TIMEOUT))
    if not re.fullmatch(r"[0-9]{1,9}", timeout) or not 0 < int(timeout) <= MAX_TIMEOUT:
        raise BadTest(f"{path}: timeout={timeout} is not a number of seconds from 1 to {MAX_TIMEOUT}")
    destructive = fields.get("destructive", "no")
    if destructive not in ("yes", "no"):
        raise BadTest(f"{path}: destructive={destructive} must be yes or no")
    digest = hashlib.sha256(text).hexdigest()
    return TestScript(name, fields["about"][:256], int(timeout), destructive == "yes", digest, path, own)


def shipped_directory() -> Path:
    """The tests that come with provisiond: beside the package in a checkout, below share/ when installed."""
    checkout = Path(__file__).parents[2] / "pxe" / "ramdisk" / "checks"
    installed = Path(sysconfig.get_path("data")) / "share" / "provisiond" / "pxe" / "ramdisk" / "checks"
    return checkout if checkout.is_dir() else installed


def _fields(header: str) -> dict[str, str]:
    """``about=Some, words, timeout=5`` by field; a comma within about is part of it."""
    begins = list(_FIELD.finditer(header))
    ends = [b.start() for b in begins[1:]] + [len(header)]
    return {
        b[1]: header[b.end() : end].strip().rstrip(",").strip() for b, end in zip(begins, ends, strict=True)
    }


def _read_all(settings: Settings) -> list[TestScript | BadTest]:
    found: dict[str, TestScript | BadTest] = {}
    for directory, own in ((shipped_directory(), False), (settings.inspection.tests_dir, True)):
        if directory is None:
            continue
        try:
            files = sorted(
                f for f in directory.iterdir() if f.is_file() and not f.name.startswith((".", "README"))
            )
        except OSError as error:
            found[str(directory)] = BadTest(
                f"the directory of hardware tests {directory} cannot be read: {error.strerror}"
            )
            continue
        for file in files:
            try:
                found[file.name] = parse_test(file.name, _bytes(file), file, own)
            except BadTest as bad:
                found[str(file)] = bad  # a broken one of one's own leaves the shipped one in place
    return list(found.values())


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadTest(f"{path} cannot be read: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise BadTest(f"{path} is larger than {MAX_BYTES >> 20} MiB; a test fetches what else it needs")
    return text


def _why_not(name: str, known: dict[str, TestScript]) -> str:
    if name in known:
        return f"the hardware test {name!r} writes to disks; it runs when a host is released"
    return f"there is no hardware test {name!r}; there are {', '.join(known)}, and {ALL}"
