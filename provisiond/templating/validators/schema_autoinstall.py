"""Our own schema of Ubuntu's autoinstall, after its reference manual and curtin's of storage; no key that is not in them passes."""

from __future__ import annotations

from provisiond.templating.validators.schema_netplan import NETPLAN
from provisiond.templating.validators.schemas import (
    ANY,
    FLAG,
    NUMBER,
    TABLE,
    TEXT,
    either,
    exactly,
    many,
    named,
    one_of,
    table,
)
from provisiond.templating.validators.trees import Schema

_COMMANDS = many(either(TEXT, many(TEXT)))
_URL = {"type": ["string", "null"], "pattern": r"^[a-z]+://"}
_SIZE = either(NUMBER, {"type": "string", "pattern": r"^(-1|[0-9.]+\s*(%|[BKMGTP]i?B?)?)$"})
_ARCHES = many(TEXT)
_MIRROR = table("uri", uri=TEXT, arches=_ARCHES)
_MATCH = exactly(
    model=TEXT, vendor=TEXT, path=TEXT, devpath=TEXT, serial=TEXT, ssd=FLAG, size=one_of("largest", "smallest"),
    id_path=TEXT, **{"install-media": FLAG},
)  # fmt: skip
_ACTION = {
    # what curtin documents for each type; wipe, preserve and grub_device are shared by most
    "type": "object",
    "required": ["type", "id"],
    "properties": {
        "type": one_of(
            "disk", "partition", "format", "mount", "raid", "lvm_volgroup", "lvm_partition", "dm_crypt", "bcache", "zpool", "zfs", "dasd",
            "device", "nofstab", "nvme_controller",
        ),
        "id": TEXT, "preserve": FLAG, "grub_device": FLAG, "size": _SIZE, "match": either(_MATCH, many(_MATCH)),
        "ptable": one_of("gpt", "msdos", "vtoc", "unsupported", None), "path": {"type": ["string", "null"]}, "device": TEXT, "volume": TEXT,
        "volgroup": TEXT, "name": TEXT, "devices": either(many(TEXT), TABLE), "raidlevel": either(NUMBER, TEXT), "fstype": TEXT,
        "number": NUMBER, "flag": one_of("boot", "bios_grub", "lvm", "raid", "swap", "esp", "extended", "logical", "prep", "msftres", "home",
                                         "linux", "", None),
        "wipe": one_of("superblock", "superblock-recursive", "zero", "random", "pvremove", None),
    },
}  # fmt: skip
_LAYOUT = table(
    name=one_of("lvm", "direct", "zfs", "hybrid"), match=either(_MATCH, many(_MATCH)), ptable=one_of("gpt", "msdos"), password=TEXT,
    sizing_policy=one_of("scaled", "all"), reset_partition=either(FLAG, NUMBER, TEXT), reset_partition_only=FLAG, encrypted=FLAG,
    mode=one_of("reformat_disk", "use_gap", "erase_install"), recovery_key=TABLE, keyslots=ANY,
)  # fmt: skip

_TOP = table(
    "version",
    version={"const": 1},
    interactive_sections=many(TEXT),
    early_commands=_COMMANDS,
    late_commands=_COMMANDS,
    error_commands=_COMMANDS,
    locale=TEXT,
    refresh_installer=table(update=FLAG, channel=TEXT),
    keyboard=table("layout", layout=TEXT, variant=TEXT, toggle={"type": ["string", "null"]}),
    source=exactly(search_drivers=FLAG, id=TEXT),
    network=either(NETPLAN, table("network", network=NETPLAN)),
    proxy=_URL,
    apt={
        "type": "object",
        "properties": {
            "preserve_sources_list": FLAG,
            "primary": many(
                table("arches", arches=_ARCHES, uri=TEXT, search=many(TEXT), search_dns=FLAG)
                | {"additionalProperties": True}
            ),
            "security": many(TABLE),
            "mirror-selection": table("primary", primary=many(either({"const": "country-mirror"}, _MIRROR))),
            "fallback": one_of("abort", "offline-install", "continue-anyway"),
            "geoip": FLAG,
            "sources": named(TABLE),
            "sources_list": TEXT,
            "conf": TEXT,
            "proxy": TEXT,
            "http_proxy": TEXT,
            "https_proxy": TEXT,
            "ftp_proxy": TEXT,
            "debconf_selections": TABLE,
            "disable_suites": many(TEXT),
            "disable_components": many(
                one_of("universe", "multiverse", "restricted", "contrib", "non-free", "non-free-firmware")
            ),
            "add_apt_repo_match": TEXT,
            "preferences": many(
                table("package pin pin-priority", package=TEXT, pin=TEXT, pin_priority=NUMBER)
            ),
        },
        "additionalProperties": False,
    },
    storage={
        "type": "object",
        "properties": {
            "layout": _LAYOUT,
            "config": many(_ACTION),
            "version": one_of(1, 2),
            "swap": table(size=either(NUMBER, TEXT), filename=TEXT, maxsize=either(NUMBER, TEXT), force=FLAG),
            "grub": TABLE,
        },
        "additionalProperties": False,
    },
    identity=table(
        "username hostname password",
        username={"type": "string", "pattern": r"^[a-z_][a-z0-9_-]*$"},
        hostname=TEXT,
        password=TEXT,
        realname=TEXT,
        groups=either(many(TEXT), table(override=many(TEXT), append=many(TEXT))),
    ),
    active_directory=table(admin_name=TEXT, domain_name=TEXT),
    ubuntu_pro=table(token={"type": "string", "pattern": r"^C[1-9A-HJ-NP-Za-km-z]{23,29}$"}),
    ubuntu_advantage=TABLE,
    ssh=table(install_server=FLAG, authorized_keys=many(TEXT), allow_pw=FLAG),
    codecs=table(install=FLAG),
    drivers=table(install=FLAG),
    oem=table("install", install=either(FLAG, {"const": "auto"})),
    snaps=many(table("name", name=TEXT, channel=TEXT, classic=FLAG)),
    debconf_selections=TEXT,
    packages=many(TEXT),
    kernel={
        **table(package=TEXT, flavor=TEXT),
        "oneOf": [{"required": ["package"]}, {"required": ["flavor"]}],
    },
    kernel_crash_dumps=table("enabled", enabled={"type": ["boolean", "null"]}),
    timezone=TEXT,
    updates=one_of("security", "all"),
    shutdown=one_of("reboot", "poweroff"),
    reporting=named(table("type", _open=True, type=TEXT)),
    user_data=TABLE,
    zdevs=many(table(id=TEXT, enabled=FLAG)),
)
AUTOINSTALL = Schema("autoinstall", _TOP)
