"""What an operator may say beside a verb: hardware tests of an inspection, how a release erases, keys of a rescue, a build's method."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import FieldError, Invalid
from provisiond.inventory.resolve import ResolvedHost, resolve_host
from provisiond.lifecycle.states.building import what_is_missing
from provisiond.lifecycle.states.ramdisk import why_not
from provisiond.lifecycle.states.releasing import MODES
from provisiond.lifecycle.table import Verb

MAX_KEYS = 32
METHODS = ("image", "installer")
_NEED: Mapping[str, frozenset[Verb]] = {  # option -> the verbs it belongs to
    "tests": frozenset({Verb.INSPECT}),
    "erase": frozenset({Verb.RELEASE, Verb.CANCEL}),
    "keys": frozenset({Verb.RESCUE}),
    "method": frozenset({Verb.BUILD, Verb.REBUILD}),
}
_KINDS = (
    r"(ssh-(ed25519|rsa)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
)
_KEY = re.compile(_KINDS + r" AAAA[A-Za-z0-9+/]{16,8000}={0,3}( [^\r\n\0]{0,200})?")
_TEST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Asked:
    """``tests``: names, or all; ``erase``: auto | quick | full | none; ``keys``: lines of authorized_keys; ``method``: image | installer.

    None: nothing was said of it.
    """

    tests: tuple[str, ...] | None = None
    erase: str | None = None
    keys: tuple[str, ...] = field(default=())
    method: str | None = None

    def check(self, verb: str) -> None:
        """Raises Invalid, which names all that is wrong or does not belong to ``verb``."""
        wrong = [
            FieldError(name, f"belongs to {' and '.join(sorted(verbs))}, not to {verb}")
            for name, verbs in _NEED.items()
            if getattr(self, name) and verb not in verbs
        ]
        wrong += [
            FieldError(f"tests.{number}", f"{name!r} is no name of a hardware test")
            for number, name in enumerate(self.tests or ())
            if not _TEST.fullmatch(name)
        ]
        if self.erase is not None and self.erase not in MODES:
            wrong.append(FieldError("erase", f"{self.erase!r} is not one of {', '.join(MODES)}"))
        if self.method is not None and self.method not in METHODS:
            wrong.append(FieldError("method", f"{self.method!r} is not one of {', '.join(METHODS)}"))
        if len(self.keys) > MAX_KEYS:
            wrong.append(FieldError("keys", f"at most {MAX_KEYS} keys"))
        wrong += [
            FieldError(f"keys.{number}", "is no SSH public key as a line of authorized_keys has it, such as 'ssh-ed25519 AAAA... name'")
            for number, key in enumerate(self.keys)
            if not _KEY.fullmatch(key.strip())
        ]  # fmt: skip
        if wrong:
            raise Invalid(wrong)


NOTHING = Asked()


async def follow(session: AsyncSession, row: Any, verb: Verb, asked: Asked) -> dict[str, Any]:
    """Check ``asked`` against the locked host ``row``; the columns of the host it changes, and under ``task`` the (kind, options) of
    the task that ``verb`` opens. Raises Invalid before anything is written."""
    if verb is Verb.RELEASE or verb is Verb.CANCEL:
        return _erasing(row, asked)
    if verb is Verb.INSPECT:
        host = await resolve_host(session, row.id)
        if why := why_not(host):
            raise Invalid([FieldError("host", f"{why}; there is no ramdisk to inspect it with")])
        return {"task": ("inspect", {"tests": list(asked.tests or ())})}
    if verb is Verb.RESCUE:
        host = await resolve_host(session, row.id)
        return {"task": ("rescue", {"keys": _keys(host, asked)})}
    if asked.method is not None:
        host = (await resolve_host(session, row.id)).with_row(method=asked.method)
        if missing := what_is_missing(host):
            raise Invalid([FieldError("method", missing)])
        return {"method": asked.method}
    return {}


def _erasing(row: Any, asked: Asked) -> dict[str, Any]:
    if asked.erase is None:
        return {}
    if row.hypervisor_id is not None:
        said = f"host {row.name} is a virtual machine: its disks are destroyed with it, so leave this out"
        raise Invalid([FieldError("erase", said)])
    return {"task": ("erase", {"mode": asked.erase})}


def _keys(host: ResolvedHost, asked: Asked) -> list[str]:
    own = host.parameters.get("ssh_authorized_keys", [])
    usual = [str(key).strip() for key in own] if isinstance(own, list | tuple) else []
    keys = list(dict.fromkeys([*usual, *(key.strip() for key in asked.keys)]))
    wrong = []
    if why := why_not(host):
        wrong.append(FieldError("host", f"{why}; there is no ramdisk to rescue it with"))
    if not keys:
        wrong.append(
            FieldError("keys", f"host {host.name} has no parameter ssh_authorized_keys: give a key, or nobody could log in")
        )  # fmt: skip
    if wrong:
        raise Invalid(wrong)
    return keys
