"""NetworkManager's own reader of keyfiles (libnm), which the system's Python reaches by introspection: gir1.2-nm-1.0, python3-gi."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

SYSTEM_PYTHON = "/usr/bin/python3"


def read_keyfiles(texts: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What libnm makes of each keyfile (by name): ``error`` and ``warnings``, or its settings, as {section: {property: value}}.

    Raises FileNotFoundError or CalledProcessError where libnm's introspection is not installed.
    """
    done = subprocess.run(
        [SYSTEM_PYTHON, __file__], input=json.dumps(dict(texts)), capture_output=True, text=True, check=True, timeout=60
    )  # fmt: skip
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def _addresses(setting: Any) -> dict[str, Any]:
    return {
        "method": setting.get_method(),
        "addresses": [
            f"{a.get_address()}/{a.get_prefix()}"
            for a in (setting.get_address(n) for n in range(setting.get_num_addresses()))
        ],
        "gateway": setting.get_gateway(),
        "dns": [setting.get_dns(n) for n in range(setting.get_num_dns())],
        "search": [setting.get_dns_search(n) for n in range(setting.get_num_dns_searches())],
        "routes": [
            f"{r.get_dest()}/{r.get_prefix()} {r.get_next_hop()} {r.get_metric()}"
            for r in (setting.get_route(n) for n in range(setting.get_num_routes()))
        ],
        "never_default": setting.get_never_default(),
    }


def _main() -> None:
    """Runs in the system's Python."""
    import gi  # type: ignore[import-not-found]

    gi.require_version("NM", "1.0")
    from gi.repository import NM, GLib  # type: ignore[import-not-found]

    found: dict[str, dict[str, Any]] = {}
    for name, text in json.load(sys.stdin).items():
        warnings: list[str] = []

        def note(
            _file: Any, _connection: Any, kind: Any, data: Any, *_: Any, said: list[str] = warnings
        ) -> bool:
            if kind == NM.KeyfileHandlerType.WARN:
                said.append(NM.KeyfileHandlerData.warn_get(data)[0])
            return True

        file = GLib.KeyFile()
        try:
            file.load_from_data(text, len(text.encode()), GLib.KeyFileFlags.NONE)
            connection = NM.keyfile_read(
                file, "/etc/NetworkManager/system-connections", NM.KeyfileHandlerFlags.NONE, note, None
            )
            own = connection.get_setting_connection()
            if own is not None and not own.get_uuid():  # the daemon makes one of the file's name
                own.set_property("uuid", NM.utils_uuid_generate())
            connection.normalize()  # as the daemon does: a port gets the settings of its kind
        except GLib.Error as error:
            found[name] = {"error": error.message, "warnings": warnings}
            continue
        card, bond, vlan = (
            connection.get_setting_wired(), connection.get_setting_bond(), connection.get_setting_vlan()
        )  # fmt: skip
        ipv4, ipv6 = connection.get_setting_ip4_config(), connection.get_setting_ip6_config()
        found[name] = {
            "error": "", "warnings": warnings, "type": connection.get_connection_type(), "interface": connection.get_interface_name(),
            "autoconnect": own.get_autoconnect(), "controller": own.get_master(), "port_type": own.get_slave_type(),
            "mac": card.get_mac_address() if card else None, "mtu": card.get_mtu() if card else 0,
            "bond": {k: bond.get_option_by_name(k) for k in ("mode", "miimon", "lacp_rate", "xmit_hash_policy")} if bond else None,
            "vlan": {"id": vlan.get_id(), "parent": vlan.get_parent()} if vlan else None,
            "ipv4": _addresses(ipv4) if ipv4 else None, "ipv6": _addresses(ipv6) if ipv6 else None,
        }  # fmt: skip
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()
