"""Hosts from a YAML file, each entry with the line it stands on, so that an error can be found."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from provisiond.ctl import yaml12
from provisiond.ctl.common import usage


@dataclass(frozen=True)
class Entry:
    """One host of the file; ``label`` says where it stands, for people."""

    body: dict[str, Any]
    label: str


def read(file: Path) -> list[Entry]:
    """The entries of ``file``: a list of hosts, or a table with ``hosts`` and, if wanted, ``defaults`` for all of them.

    ``bmc.password_env`` names an environment variable that holds the password, so that the file needs to hold none.
    """
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        root, data = yaml.compose(text, Loader=yaml12.Loader), yaml12.load(text)
    except OSError as error:
        raise usage(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise usage(f"{file} is not valid YAML: {error}") from None
    defaults: dict[str, Any] = {}
    node = root
    if isinstance(data, dict):
        if stray := set(data) - {"hosts", "defaults"}:
            raise usage(
                f"{file}: unknown key {', '.join(map(str, sorted(stray, key=str)))}; a rack has 'hosts' and 'defaults'"
            )
        defaults = data.get("defaults") or {}
        data = data.get("hosts")
        assert isinstance(root, yaml.MappingNode)
        node = next((value for key, value in root.value if key.value == "hosts"), None)
    if not isinstance(data, list) or not data or not isinstance(node, yaml.SequenceNode):
        raise usage(f"{file}: write a list of hosts, or 'hosts:' with a list below it")
    entries = []
    for number, (item, place) in enumerate(zip(data, node.value, strict=True)):
        where = f"{file}:{place.start_mark.line + 1}"
        if not isinstance(item, dict):
            raise usage(f"{where}: entry {number + 1} is no table of settings")
        body = {**defaults, **item}
        _fill_password(body, where)
        entries.append(Entry(body, f"{where} ({body.get('name', f'entry {number + 1}')})"))
    return entries


def bmc_fields(url: str) -> dict[str, Any]:
    """A BMC URL as the fields the API takes. Wrong ones are left to the API, whose answer names what is wrong."""
    scheme, separator, rest = url.partition("://")
    driver, plus, _ = scheme.partition("+")
    if not separator:
        raise usage(f"--bmc {_without_password(url)!r}: write it as ipmi://USER@ADDRESS")
    if driver == "libvirt" and plus:
        address, _, system = url.partition("+")[2].partition("#")
        return {"driver": "libvirt", "address": address, "system": system}
    authority, _, system = rest.partition("/")
    user, at, place = authority.rpartition("@")
    username, colon, password = user.partition(":")
    fields: dict[str, Any] = {"driver": driver, **_place(place), "system": _unquote(system)}
    if at:
        fields["username"] = _unquote(username)
    if colon:
        fields["password"] = _unquote(password)
    return fields


def _place(text: str) -> dict[str, Any]:
    """``address`` or ``address:port``, an IPv6 address in brackets."""
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        address, _, port = text.partition(":")
    if not port:
        return {"address": address}
    return {"address": address, "port": int(port) if port.isdigit() else port}


def _unquote(text: str) -> str:
    from urllib.parse import unquote

    return unquote(text)


def _without_password(url: str) -> str:
    head, at, tail = url.rpartition("@")
    return f"{head.partition(':')[0]}@{tail}" if at else url


def _fill_password(body: dict[str, Any], where: str) -> None:
    bmc = body.get("bmc")
    if isinstance(bmc, dict) and "password_env" in bmc:
        name = str(bmc["password_env"])
        if name not in os.environ:
            raise usage(f"{where}: bmc.password_env names {name}, which is not set")
        body["bmc"] = {**{k: v for k, v in bmc.items() if k != "password_env"}, "password": os.environ[name]}
