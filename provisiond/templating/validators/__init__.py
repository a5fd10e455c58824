"""Each format's own checker, run on rendered text. One module a family; here is the table of kinds.

A validator gives the problems it found, each with its line where there is one. When its program or package is not there the
verdict says ``skipped`` with the name of what is missing: that is never the same as passed. Many texts of one kind go through
one process where the program can do that: shadow runs ask for thousands.
"""

from __future__ import annotations

from collections.abc import Sequence

from provisiond.templating.validators import (
    agama,
    autoinstall,
    autoyast,
    cloud_init,
    esxi,
    ignition,
    ipxe,
    kickstart,
    loaders,
    preseed,
    shell,
    talos,
)
from provisiond.templating.validators.verdict import Checker, Problem, Target, Verdict

__all__ = ["KINDS", "Problem", "Verdict", "validate", "validate_many"]


def _script_or_user_data(texts: Sequence[str], target: Target) -> list[Verdict]:
    """A kind that is a shell script for one family and a cloud-config for another: the first line says which."""
    verdicts: list[Verdict | None] = [None] * len(texts)
    for checker, mine in (
        (cloud_init.check_user_data, [n for n, t in enumerate(texts) if t.startswith("#cloud-config")]),
        (shell.check, [n for n, t in enumerate(texts) if not t.startswith("#cloud-config")]),
    ):
        for number, verdict in zip(mine, checker([texts[n] for n in mine], target), strict=True):
            verdicts[number] = verdict
    return [v for v in verdicts if v is not None]


KINDS: dict[str, Checker] = {
    "agama": agama.check, "autoinstall": autoinstall.check, "autoyast": autoyast.check, "esxi-kickstart": esxi.check,
    "finish": _script_or_user_data, "first-boot": _script_or_user_data, "grub": loaders.check_grub, "ignition": ignition.check,
    "ipxe": ipxe.check, "kexec": shell.check, "kickstart": kickstart.check, "meta-data": cloud_init.check_meta_data,
    "network-config": cloud_init.check_network, "preseed": preseed.check, "pxelinux": loaders.check_pxelinux, "rescue": _script_or_user_data,
    "script": shell.check, "talos": talos.check, "user-data": cloud_init.check_user_data, "vendor-data": cloud_init.check_user_data,
}  # fmt: skip
"""Kind -> who looks; a kind that is not here is looked up by what stands before its first dash (ipxe-installer: ipxe)."""


def validate(kind: str, text: str, *, family: str = "", version: str = "") -> Verdict:
    """The verdict on one text. ``family`` and ``version`` are the host's operating system's, such as redhat and 9.4."""
    return validate_many(kind, [text], family=family, version=version)[0]


def validate_many(kind: str, texts: Sequence[str], *, family: str = "", version: str = "") -> list[Verdict]:
    """A verdict for each text, in their order (blocking; seconds for thousands).

    Pure: the same text, kind, family and version have the same verdict as long as the same validators are installed.
    """
    checker = KINDS.get(kind) or KINDS.get(kind.partition("-")[0])
    if checker is None:
        return [Verdict(kind, skipped=(f"there is no validator for {kind}",))] * len(texts)
    return [v.with_more([]) for v in checker(texts, Target(kind, family, version))] if texts else []
