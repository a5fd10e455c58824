"""Made-up hosts for property tests: hostile strings, storage and network descriptions, cards in subnets.

Everything made here is something that the API would take: what is refused at the door is not what templates meet.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from provisiond.inventory.network import Network
from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost, ResolvedInterface
from provisiond.inventory.storage import Storage
from provisiond.inventory.tables import Deployment, Domain, Host, Image, Medium, OperatingSystem, Subnet

HOSTILE = (
    "it's", 'say "hi"', "a b", "#comment", "%end", "%include /etc/shadow", "{{ 7*7 }}", "{% raw %}", "$(reboot)", "`id`", "${net0/mac}",
    "a;b", "a|b&c", "\\", "a\\", "--option", "-x", "é", "日本", "<tag>&amp;", "]]>", "key: value", "- item", "!!python/object", "@file",
    "line\nbreak", "tab\there", "nul\0byte", "\u2028", "'", '"', "''", "\r\n%end\n%post", "yes", "null", "0x10", "1e3", " lead", "trail ",
)  # fmt: skip


def texts(*, one_line: bool = False) -> st.SearchStrategy[str]:
    """Hostile texts; ``one_line`` leaves out those with control characters."""
    made = st.one_of(
        st.sampled_from(HOSTILE),
        st.text(max_size=20),
        st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=3).map("".join),
    )
    return made.filter(lambda t: t.isprintable()) if one_line else made


_SIZES = st.sampled_from(["512MiB", "1GiB", "3GiB", "20GiB"])
_SELECTORS = st.one_of(
    st.sampled_from(
        ["/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/disk/by-id/wwn-0x5000c500a1b2c3d4", "scsi-SATA_disk_1"]
    ),
    st.fixed_dictionaries({"serial": st.sampled_from(["S3RIAL", "WD-WX1"])}),
    st.fixed_dictionaries({"min": st.sampled_from(["100GiB", "1TiB"]), "rotational": st.booleans()}),
)


@st.composite
def storages(draw: st.DrawFn) -> dict[str, Any]:
    """A storage description in its short or long form that Storage takes."""
    if draw(st.booleans()):
        short: dict[str, Any] = {
            "layout": draw(st.sampled_from(["plain", "lvm"])),
            "encrypt": draw(st.booleans()),
            "swap": draw(_SIZES),
            "filesystem": draw(st.sampled_from(["ext4", "xfs"])),
        }
        if draw(st.booleans()):
            short["disk"] = draw(_SELECTORS)
            if draw(st.booleans()):
                short["mirror"] = draw(_SELECTORS.filter(lambda s: s != short["disk"]))
        return short
    return draw(_long())


@st.composite
def _long(draw: st.DrawFn) -> dict[str, Any]:
    """One to four disks with /boot, swap, and / on a partition, a RAID or a volume; perhaps data beside it."""
    count = draw(st.integers(1, 4))
    selectors = draw(st.lists(_SELECTORS, min_size=count, max_size=count, unique_by=str))
    disks: list[dict[str, Any]] = [
        {"name": f"disk{n}", "match": s, "partitions": []} for n, s in enumerate(selectors)
    ]
    raids: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    filesystem = draw(st.sampled_from(["ext4", "xfs"]))
    encrypt = draw(st.booleans())
    root = {"filesystem": filesystem, "mount": "/", "encrypt": encrypt}
    if draw(st.booleans()):
        root["options"] = "noatime"
    disks[0]["partitions"].append({"name": "boot", "size": "1GiB", "filesystem": "ext4", "mount": "/boot"})
    if draw(st.booleans()):
        disks[0]["partitions"].append({"name": "swap", "size": draw(_SIZES), "filesystem": "swap"})
    on = draw(st.sampled_from(["partition", "raid", "volume", "volume on raid"]))
    level = draw(
        st.sampled_from(
            [x for x, least in ((0, 2), (1, 2), (5, 3), (6, 4), (10, 4)) if least <= count] or [None]
        )
    )
    raided = "raid" in on and level is not None
    if raided:
        members = [f"m{n}" for n in range(count)]
        for member, disk in zip(members, disks, strict=True):
            disk["partitions"].append({"name": member, "size": "rest"})
        raid: dict[str, Any] = {"name": "md0", "level": level, "members": members}
        raids.append(raid if "volume" in on else {**raid, **root})
    elif "volume" in on:
        disks[0]["partitions"].append({"name": "pv", "size": "rest"})
    else:
        disks[0]["partitions"].append({"name": "root", "size": "rest", **root})
    if "volume" in on:
        volumes = [{"name": "rootlv", "size": draw(st.sampled_from(["10GiB", "rest"])), **root}]
        if draw(st.booleans()):
            volumes.append(
                {"name": "var", "size": "5GiB", "filesystem": filesystem, "mount": "/var", "encrypt": False}
            )
        groups.append({"name": "system", "members": ["md0" if raided else "pv"], "volumes": volumes})
    for n, disk in enumerate(disks):
        if not disk["partitions"]:
            mount = f"/data/{n}"
            disk["partitions"].append(
                {"name": f"data{n}", "size": "rest", "filesystem": filesystem, "mount": mount}
            )
    return {"disks": disks, "raids": raids, "volume_groups": groups}


V4 = Subnet(id="s4", name="rack1", cidr="10.0.0.0/24", gateway="10.0.0.254", dns=["10.0.0.53", "9.9.9.9"])
STORE = Subnet(id="s5", name="store", cidr="10.9.0.0/22", gateway="10.9.0.1", dns=[])
TAGGED = Subnet(id="s6", name="tagged", cidr="10.20.0.0/24", gateway="10.20.0.1", dns=["10.20.0.53"], vlan=20)
V6 = Subnet(id="s7", name="rack6", cidr="2001:db8::/64", gateway="2001:db8::1", dns=["2001:db8::53"])


@st.composite
def cards(draw: st.DrawFn) -> tuple[ResolvedInterface, ...]:
    """One to four network cards, the first one primary, some with a reserved address."""
    count = draw(st.integers(1, 4))
    made = []
    for n in range(count):
        subnet = draw(st.sampled_from([V4, V6])) if n == 0 else draw(st.sampled_from([STORE, V6, None]))
        ip = (
            None
            if subnet is None
            else f"2001:db8::{n + 21}"
            if subnet is V6
            else f"10.{0 if n == 0 else 9}.0.{21 + n}"
        )
        name = draw(st.sampled_from([f"eth{n}", f"ens{n}", ""])) if n else "eth0"
        made.append(ResolvedInterface(f"n{n}", name, f"52:54:00:aa:bb:{n:02x}", ip, n == 0, subnet))
    return tuple(made)


@st.composite
def networks(draw: st.DrawFn, interfaces: tuple[ResolvedInterface, ...]) -> dict[str, Any]:
    """A network description that fits these cards."""
    names = [i.name or i.mac for i in interfaces]
    mode = draw(st.sampled_from(["static", "dhcp"]))
    described: dict[str, Any] = {"mode": mode, "bonds": [], "vlans": [], "bridges": []}
    if draw(st.booleans()):
        described["search"] = ["example.org", "lab.example.org"]
    if draw(st.booleans()):
        described["mtu"] = 9000
    base = "primary"
    if len(names) > 1 and draw(st.booleans()):
        bond: dict[str, Any] = {
            "name": "bond0",
            "cards": names[:2],
            "mode": draw(st.sampled_from(["active-backup", "802.3ad"])),
        }
        if bond["mode"] == "802.3ad":
            bond |= {"lacp_rate": "fast", "hash_policy": "layer3+4"}
        described["bonds"].append(bond)
        base = "bond0"
    if draw(st.booleans()):
        vlan: dict[str, Any] = {"name": "vlan20", "id": 20, "link": base}
        if draw(st.booleans()):
            vlan |= {
                "addresses": ["10.20.0.21/24"],
                "routes": [{"to": "10.128.0.0/9", "via": "10.20.0.1", "metric": 100}],
            }
        described["vlans"].append(vlan)
    if draw(st.booleans()):
        tagged = bool(described["vlans"]) and "addresses" not in described["vlans"][0] and draw(st.booleans())
        bridge: dict[str, Any] = {
            "name": "br0",
            "links": ["vlan20" if tagged else base],
            "stp": draw(st.booleans()),
        }
        if tagged:
            bridge["addresses"] = draw(st.sampled_from([["none"], ["dhcp"], ["10.20.0.22/24"]]))
        elif described["vlans"]:
            described["vlans"][0]["link"] = "br0"  # a card in a bridge carries tags only through the bridge
        described["bridges"].append(bridge)
    return described


FAMILIES = (
    ("redhat", "8.10"), ("redhat", "9.4"), ("redhat", "10.0"), ("fedora", "43"), ("debian", "11"), ("debian", "12"), ("debian", "13"),
    ("ubuntu", "22.04"), ("ubuntu", "24.04"), ("ubuntu", "26.04"), ("suse", "15.6"), ("suse", "16.0"), ("coreos", "43"), ("flatcar", "4230"),
)  # fmt: skip


@st.composite
def hosts(
    draw: st.DrawFn,
    family: str = "debian",
    version: str = "12",
    *,
    parameters: st.SearchStrategy[dict[str, Any]] | None = None,
    described: bool = True,
    image: bool = False,
) -> ResolvedHost:
    """A resolved host of this system. ``parameters`` are drawn for it; ``described`` gives it storage and network descriptions."""
    interfaces = draw(cards())
    storage = draw(st.one_of(st.none(), storages())) if described else None
    network = draw(st.one_of(st.none(), networks(interfaces))) if described else None
    if storage is not None:
        Storage.model_validate(storage)
    if network is not None:
        Network.model_validate(network)
    name = draw(st.sampled_from(["web01", "db-7", "x"]))
    own: dict[str, Any] = dict(draw(parameters)) if parameters is not None else {}
    own.setdefault("luks_passphrase", "correct horse battery staple")
    return ResolvedHost(
        row=Host(
            id="11111111-2222-3333-4444-555555555555", name=name, firmware=draw(st.sampled_from(["bios", "uefi"])),
            method="image" if image else "installer",
        ),
        interfaces=interfaces,
        bmc=None,
        hypervisor=None,
        flavor=None,
        image=Image(id="i", name="image", path="x", format="raw", sha256="0" * 64, size=1, user="debian") if image else None,
        medium=Medium(id="m", name="medium", operating_system_id="o", source="x", mirror="http://mirror.example.org/dist/"),
        operating_system=OperatingSystem(id="o", name=f"{family}-{version}", family=family, version=version),
        domain=draw(st.sampled_from([None, Domain(id="d", name="example.org")])),
        groups=("all", "web"),
        merged=merge([(f"host {name}", own)]),
        handover=None,
        deployment=Deployment(id="99999999-8888-7777-6666-555555555555", host_id="x", number=3),
        storage=storage,
        network=network,
    )  # fmt: skip
