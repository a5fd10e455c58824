"""Ansible's inventory of one host: its groups as a chain of parents and children, its parameters as variables of the host.

Parameters are data. Ansible would take ``{{ ... }}`` in them for a template and run it on the daemon's machine, so such texts are
written with Ansible's ``!unsafe`` tag (Ansible documentation, "Unsafe or raw strings").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from provisiond.drivers.handover import HandoverTarget

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OURS = re.compile(
    r"(script\Z|ansible\Z|ansible_(?!(python_interpreter|become|become_user|become_method)\Z))"
)


class _Unsafe(str):
    """A text that is no template."""


class _Dumper(yaml.SafeDumper):
    """Writes ``_Unsafe`` with its tag, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    _Unsafe, lambda dumper, value: dumper.represent_scalar("!unsafe", str(value), style='"')
)


def inventory(target: HandoverTarget) -> str:
    """The inventory as YAML. Parameters that name how to connect (``ansible_host`` ...) are left out: that is not theirs to say."""
    variables: dict[str, Any] = {
        str(name): _plain(value)
        for name, value in target.parameters.items()
        if _NAME.match(str(name)) and not _OURS.match(str(name))
    }
    variables |= {
        "provisiond": {
            "host": target.host,
            "groups": list(target.groups),
            "parameters": _plain(_without_drivers(target.parameters)),
        },
        "ansible_host": target.address,
        "ansible_port": target.port,
        "ansible_user": target.user,
        "ansible_connection": "ssh",
    }
    if target.ssh_key:
        variables["ansible_ssh_private_key_file"] = target.ssh_key
    tree: dict[str, Any] = {"hosts": {target.host: variables}}
    for name in reversed(group_names(target.groups)):
        tree = {"children": {name: tree}}
    return yaml.dump(
        {"all": tree}, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False
    )


def group_names(groups: tuple[str, ...]) -> list[str]:
    """The groups as Ansible can name them: other characters than letters, digits and ``_`` become ``_``."""
    names = [re.sub(r"[^A-Za-z0-9_]", "_", g) for g in groups]
    names = [f"_{n}" if n[:1].isdigit() else n for n in names]
    return [n for n in dict.fromkeys(names) if n and n not in {"all", "ungrouped"}]


def _without_drivers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in parameters.items() if k not in {"ansible", "script"}}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, str) and "{" in value:
        return _Unsafe(value)
    return value
