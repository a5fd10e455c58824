"""Storage and network descriptions: what is refused at the door, and the plan that templates see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from provisiond.errors import RenderError
from provisiond.inventory.network import Network, NetworkDescription
from provisiond.inventory.resolve import ResolvedInterface
from provisiond.inventory.storage import Storage, StorageDescription
from provisiond.templating.catalogue import Catalogue
from provisiond.templating.context import BuildUrls, build_context
from provisiond.templating.disks import plan_storage
from provisiond.templating.links import LayoutError, plan_network
from provisiond.templating.render import Renderer
from tests.golden.hosts import make_host
from tests.strategies import STORE, TAGGED, V4, V6, cards, networks, storages

CARDS = (
    ResolvedInterface("n1", "eth0", "52:54:00:aa:bb:01", "10.0.0.21", True, V4),
    ResolvedInterface("n2", "eth1", "52:54:00:aa:bb:02", "10.9.0.21", False, STORE),
    ResolvedInterface("n3", "eth2", "52:54:00:aa:bb:03", None, False, None),
)
ROOT = {"name": "root", "size": "rest", "filesystem": "ext4", "mount": "/"}


def disk(*partitions: dict[str, Any], name: str = "a", match: Any = "first") -> dict[str, Any]:
    """One disk of a long form."""
    return {"name": name, "match": match, "partitions": list(partitions)}


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"layout": "zfs"}, "layout: must be 'plain' or 'lvm'"),
        ({"swap": "1 GB"}, "'1 GB' is not a size such as 512MiB"),
        ({"swap": "rest"}, "swap is a size, not 'rest'"),
        ({"disk": "/dev/../etc"}, "is not a device such as /dev/vda"),
        ({"disk": {"path": "/dev/vda", "serial": "X"}}, "say one of path, id, or serial"),
        ({"raids": [{"name": "md0", "level": 1, "members": ["a", "b"]}]}, "need disks with the partitions"),
        ({"layout": "lvm", "disks": [disk(ROOT)]}, "layout belong to the short form"),
        ({"disks": [disk({**ROOT, "mount": None})]}, "nothing is mounted on /"),
        ({"disks": [disk(ROOT, {**ROOT, "name": "other", "size": "1GiB"})]}, "a: the partition that takes the rest comes last"),
        ({"disks": [disk({**ROOT, "size": "1GiB"}, {**ROOT, "name": "other"})]}, "/ is mounted twice"),
        ({"disks": [disk({"name": "x", "size": "1GiB"}, ROOT)]}, "x has neither a file system nor a place"),
        ({"disks": [disk(ROOT)], "raids": [{"name": "md0", "level": 1, "members": ["root", "no"]}]}, "md0: there is no partition or RAID 'no'"),
        ({"disks": [disk({**ROOT, "encrypt": True})]}, "/ (there is no /boot) is encrypted; put /boot on a plain partition"),
        ({"disks": [disk({**ROOT, "filesystem": "swap"})]}, "root: / needs a file system to mount"),
        ({"disks": [disk(ROOT), disk({**ROOT, "name": "r2", "mount": "/data"}, name="b")]}, "a and b: only one disk can be 'first'"),
    ],
)  # fmt: skip
def test_a_storage_description_that_makes_no_sense_is_refused(described: dict[str, Any], said: str) -> None:
    """With a sentence that names what is wrong."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(StorageDescription).validate_python(described)
    assert said in str(refused.value)


def test_every_contradiction_is_named_at_once() -> None:
    """Two RAIDs with too few members, a name twice and a missing root in one answer."""
    described = {
        "disks": [
            disk({"name": "x", "size": "1GiB"}, {"name": "x", "size": "2GiB"}, {"name": "y", "size": "1GiB"})
        ],
        "raids": [{"name": "md5", "level": 5, "members": ["x", "y"]}],
    }
    with pytest.raises(ValidationError) as refused:
        Storage.model_validate(described)
    for said in ("x is named twice", "md5: RAID 5 needs 3 members", "nothing is mounted on /"):
        assert said in str(refused.value)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"bonds": [{"name": "bond0", "cards": []}]}, "at least 1 item"),
        ({"bonds": [{"name": "bond 0", "cards": ["eth0"]}]}, "'bond 0' is not a name of a link"),
        ({"bonds": [{"name": "b", "cards": ["eth0"], "lacp_rate": "fast"}]}, "lacp_rate is for mode 802.3ad"),
        ({"vlans": [{"name": "v", "id": 4095, "link": "eth0"}]}, "less than or equal to 4094"),
        ({"vlans": [{"name": "v", "id": 1, "link": "v"}]}, "v stands on itself"),
        ({"bridges": [{"name": "a", "links": ["b"]}, {"name": "b", "links": ["a"]}]}, "a stands on itself"),
        ({"bonds": [{"name": "x", "cards": ["eth0"]}], "bridges": [{"name": "y", "links": ["eth0"]}]}, "eth0 is in x and in y"),
        ({"bonds": [{"name": "x", "cards": ["x2"]}, {"name": "x2", "cards": ["eth0"]}]}, "x: x2 is no card"),
        ({"cards": [{"card": "eth0", "addresses": ["10.0.0.1"]}]}, "'10.0.0.1' is not an address such as 10.0.0.5/24"),
        ({"cards": [{"card": "eth0", "addresses": ["none", "dhcp"]}]}, "'none' stands alone"),
        ({"cards": [{"card": "eth0", "routes": [{"to": "10.0.0.0/8", "via": "2001:db8::1"}]}]}, "not of one family"),
    ],
)  # fmt: skip
def test_a_network_description_that_makes_no_sense_is_refused(described: dict[str, Any], said: str) -> None:
    """With a sentence that names what is wrong."""
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(NetworkDescription).validate_python(described)
    assert said in str(refused.value)


def test_without_a_description_cards_have_their_reserved_addresses() -> None:
    """The primary card has the gateway; a card that the inventory knows no address for stays down."""
    plan = plan_network(None, CARDS)
    eth0, eth1, eth2 = plan["links"]
    assert eth0["addresses"] == [{"ip": "10.0.0.21", "prefix": 24, "netmask": "255.255.255.0", "version": 4}]
    assert (eth0["gateway4"], eth0["dns"], eth0["primary"], eth0["boot"]) == (
        "10.0.0.254",
        ["10.0.0.53", "9.9.9.9"],
        True,
        True,
    )
    assert (eth1["addresses"][0]["ip"], eth1["gateway4"], eth1["primary"]) == ("10.9.0.21", None, False)
    assert (eth2["addresses"], eth2["dhcp4"], eth2["up"]) == ([], False, False)
    assert plan["primary"] == "eth0"


def test_a_bond_carries_the_reserved_address_of_its_first_card() -> None:
    """And the default route; its members have none."""
    plan = plan_network(
        Network.model_validate({"bonds": [{"name": "bond0", "cards": ["primary", "eth1"]}]}), CARDS
    )
    eth0, eth1, _, bond = plan["links"]
    assert (eth0["inside"], eth1["inside"], eth0["addresses"], eth1["addresses"]) == (
        "bond0",
        "bond0",
        [],
        [],
    )
    assert (bond["addresses"][0]["ip"], bond["gateway4"], bond["primary"], bond["members"]) == (
        "10.0.0.21", "10.0.0.254", True, ["eth0", "eth1"],
    )  # fmt: skip
    assert eth0["up"]
    assert plan["primary"] == "bond0"


def test_a_vlan_takes_the_reserved_address_of_its_subnet() -> None:
    """The card below it has none of its own then."""
    tagged = (ResolvedInterface("n1", "eth0", "52:54:00:aa:bb:01", "10.20.0.21", True, TAGGED),)
    plan = plan_network(
        Network.model_validate({"vlans": [{"name": "vlan20", "id": 20, "link": "eth0"}]}), tagged
    )
    eth0, vlan = plan["links"]
    assert (eth0["addresses"], eth0["up"]) == ([], True)
    assert vlan["addresses"][0]["ip"] == "10.20.0.21"


def test_links_come_after_what_they_stand_on() -> None:
    """However they were written down."""
    described = Network.model_validate(
        {
            "bridges": [{"name": "br0", "links": ["a-vlan"]}],
            "vlans": [{"name": "a-vlan", "id": 7, "link": "bond0"}],
            "bonds": [{"name": "bond0", "cards": ["eth0", "eth1"]}],
        }
    )
    assert [x["name"] for x in plan_network(described, CARDS)["links"]] == [
        "eth0",
        "eth1",
        "eth2",
        "bond0",
        "a-vlan",
        "br0",
    ]


@pytest.mark.parametrize(
    ("described", "key", "said"),
    [
        ({"bonds": [{"name": "bond0", "cards": ["eth7"]}]}, "network.bonds.bond0", "no network card or link 'eth7'"),
        ({"cards": [{"card": "eth2", "addresses": ["reserved"]}]}, "network.cards.eth2.addresses", "has no reserved address"),
        ({"bridges": [{"name": "eth1", "links": []}]}, "network.bridges.eth1", "is the name of a network card"),
        (
            {"vlans": [{"name": "v", "id": 3, "link": "eth0", "addresses": ["dhcp"]}], "bridges": [{"name": "br", "links": ["v"]}]},
            "network.vlans.v.addresses", "v is a member of br and cannot have addresses",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_host_is_named_with_its_key(
    described: dict[str, Any], key: str, said: str
) -> None:
    """A group's description may name cards that one of its hosts lacks."""
    with pytest.raises(LayoutError, match=said) as refused:
        plan_network(Network.model_validate(described), CARDS)
    assert refused.value.key == key


def test_a_broken_description_fails_only_templates_that_use_it() -> None:
    """The error names host, template, line and key; a template that does not ask is rendered."""
    header = "{#\nkind: plain\nabout: x\n#}\n"
    renderer = Renderer(
        Catalogue.of({"a.j2": header + "{{ network.primary | word }}\n", "b.j2": header + "fine\n"})
    )
    host = replace(make_host(), network={"bonds": [{"name": "bond0", "cards": ["eth7"]}]})
    context = build_context(host, BuildUrls.of("http://10.0.0.1", "t"))
    assert renderer.render("b.j2", context) == "fine\n"
    with pytest.raises(RenderError) as refused:
        renderer.render("a.j2", context)
    assert refused.value.key == "network.bonds.bond0"
    assert "a.j2:5" in str(refused.value)
    assert "eth7" in str(refused.value)
    assert "web01" in str(refused.value)


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
def test_the_firmware_gets_what_it_boots_from(firmware: str) -> None:
    """An EFI system partition or GRUB's core first on the boot disk; on both disks of a mirror."""
    plan = plan_storage(Storage.model_validate({"disk": "/dev/vda", "mirror": "/dev/vdb"}), firmware)
    wanted = "esp" if firmware == "uefi" else "bios_boot"
    assert [d["partitions"][0]["use"] for d in plan["disks"]] == [wanted, wanted]
    assert [d["partitions"][0]["mount"] for d in plan["disks"]] == [
        "/boot/efi" if firmware == "uefi" else None,
        None,
    ]
    assert [p["number"] for p in plan["disks"][0]["partitions"]] == [1, 2, 3]
    assert plan["raids"][1] | {"members": None} == {
        "name": "root", "kind": "raid", "use": "filesystem", "inside": None, "filesystem": "ext4", "mount": "/", "options": None,
        "encrypt": False, "level": 1, "members": None, "spares": [],
    }  # fmt: skip


def test_the_short_form_with_lvm_and_luks() -> None:
    """One encrypted physical volume with everything in it, and a /boot beside it."""
    plan = plan_storage(
        Storage.model_validate({"layout": "lvm", "encrypt": True, "root": "20GiB", "swap": "2GiB"}),
        "bios",
        "xfs",
    )
    boot, pv = plan["disks"][0]["partitions"][1:]
    assert (boot["mount"], boot["encrypt"], pv["use"], pv["encrypt"], pv["size_mib"]) == (
        "/boot",
        False,
        "lvm",
        True,
        None,
    )
    assert [(v["name"], v["size_mib"], v["filesystem"]) for v in plan["volume_groups"][0]["volumes"]] == [
        ("swap", 2048, "swap"), ("root", 20480, "xfs"),
    ]  # fmt: skip
    assert plan["encrypted"]
    assert plan["first"]


@given(storages(), st.sampled_from(["bios", "uefi"]))
@settings(max_examples=150, derandomize=True, deadline=None)
def test_every_block_of_a_plan_is_used_once(described: dict[str, Any], firmware: str) -> None:
    """Each block holds a file system or is a member of exactly one thing, and / and the kernel have a place."""
    plan = plan_storage(Storage.model_validate(described), firmware)
    blocks = [p for d in plan["disks"] for p in d["partitions"]] + plan["raids"]
    blocks += [v for g in plan["volume_groups"] for v in g["volumes"]]
    names = [b["name"] for b in blocks]
    assert len(names) == len(set(names))
    owners = {r["name"]: [*r["members"], *r["spares"]] for r in plan["raids"]} | {
        g["name"]: g["members"] for g in plan["volume_groups"]
    }
    for block in blocks:
        inside = [owner for owner, members in owners.items() if block["name"] in members]
        assert inside == ([block["inside"]] if block["inside"] else [])
        assert bool(inside) != (block["use"] in ("filesystem", "swap", "esp", "bios_boot"))
    assert plan["root"]["mount"] == "/"
    assert plan["boot"]["mount"] in ("/boot", "/")
    assert plan["disks"][0]["partitions"][0]["use"] == ("esp" if firmware == "uefi" else "bios_boot")


@given(st.data())
@settings(max_examples=150, derandomize=True, deadline=None)
def test_every_link_of_a_plan_stands_on_earlier_ones(data: st.DataObject) -> None:
    """One link has the default route; members have no addresses; what is made comes after what it is made of."""
    interfaces = data.draw(cards())
    described = data.draw(networks(interfaces))
    plan = plan_network(Network.model_validate(described), interfaces)
    seen: set[str] = set()
    for link in plan["links"]:
        below = [*link["members"], *([link["link"]] if link["link"] else [])]
        assert set(below) <= seen
        assert not (link["inside"] and (link["addresses"] or link["dhcp4"] or link["dhcp6"]))
        assert "said_dns" not in link
        seen.add(link["name"])
    assert [x["name"] for x in plan["links"] if x["primary"]] == [plan["primary"]]
    if described["mode"] == "static" and interfaces[0].subnet in (V4, V6):
        primary = next(x for x in plan["links"] if x["primary"])
        assert primary["addresses"][0]["ip"] == interfaces[0].ip
