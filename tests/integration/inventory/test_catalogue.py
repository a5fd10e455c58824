"""The catalogue on both databases: the tree of groups, references, ranges in use, and refusals that name the users."""

from __future__ import annotations

from typing import Any

import pytest

from provisiond.errors import Conflict, Invalid, NotFound
from provisiond.inventory import catalogue, history
from provisiond.inventory.catalogue import CATALOGUE
from provisiond.inventory.hosts import create_hosts
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import HostCreate
from provisiond.inventory.store import Store

FIRST: dict[str, dict[str, Any]] = {
    "domain": {"name": "lab.example.org"},
    "subnet": {
        "name": "lan",
        "cidr": "10.0.0.0/24",
        "gateway": "10.0.0.1",
        "pools": ["10.0.0.10-10.0.0.20"],
        "domain": "lab.example.org",
    },
    "operating_system": {"name": "debian-12", "family": "debian", "version": "12"},
    "medium": {
        "name": "debian-12",
        "operating_system": "debian-12",
        "source": "https://deb.debian.org/debian",
    },
    "image": {
        "name": "debian-12",
        "operating_system": "debian-12",
        "path": "d.raw",
        "format": "raw",
        "sha256": "0" * 64,
        "size": 1,
    },
    "hypervisor": {"name": "hv1", "uri": "qemu:///system"},
    "flavor": {"name": "small"},
    "group": {"name": "all", "subnet": "lan", "image": "debian-12", "parameters": {"a": 1}},
}


async def make(store: Store, noun: str, **fields: Any) -> Any:
    kind = CATALOGUE[noun]
    return await catalogue.create(store, kind, kind.create.model_validate(fields), actor="user:ann")


async def change(store: Store, noun: str, at: str, /, **fields: Any) -> Any:
    kind = CATALOGUE[noun]
    return await catalogue.change(store, kind, at, kind.update.model_validate(fields), actor="user:ann")


@pytest.fixture
async def filled(store: Store) -> Store:
    """One of everything."""
    for noun, fields in FIRST.items():
        await make(store, noun, **fields)
    return store


async def test_one_of_everything(filled: Store) -> None:
    """Each noun is created, read, listed, renamed and, in the right order, deleted; each change is in the history."""
    for noun, fields in FIRST.items():
        kind = CATALOGUE[noun]
        one = await catalogue.get(filled, kind, fields["name"])
        shown = kind.create.model_validate(one.model_dump(include=set(kind.create.model_fields)))
        assert shown == kind.create.model_validate(fields)
        assert await catalogue.list_all(filled, kind) == [one]
    for noun, fields in FIRST.items():
        kind = CATALOGUE[noun]
        name = "new.example.org" if noun == "domain" else "new"
        assert (await change(filled, noun, fields["name"], name=name)).name == name
        with pytest.raises(NotFound, match=kind.command):
            await catalogue.get(filled, kind, fields["name"])
    for noun in reversed(FIRST):
        name = "new.example.org" if noun == "domain" else "new"
        await catalogue.remove(filled, CATALOGUE[noun], name, actor="user:ann")
    kinds = [e.kind for e in await history.list_events(filled)]
    assert kinds == [f"{n}.created" for n in FIRST] + [f"{n}.updated" for n in FIRST] + [
        f"{n}.deleted" for n in reversed(FIRST)
    ]


async def test_deletion_names_the_users(filled: Store, box: SecretBox) -> None:
    """What is in use stays, and the message says who uses it."""
    await create_hosts(
        filled,
        box,
        [HostCreate.model_validate({"name": "web01", "group": "all", "mac": "52:54:00:00:00:01"})],
        actor="t",
    )
    for noun, name, users in (
        ("group", "all", "host web01"),
        ("subnet", "lan", "group all, host web01"),
        ("image", "debian-12", "group all"),
        ("operating_system", "debian-12", "image debian-12, medium debian-12"),
        ("domain", "lab.example.org", "subnet lan"),
    ):
        with pytest.raises(Conflict, match=users):
            await catalogue.remove(filled, CATALOGUE[noun], name, actor="t")


async def test_the_tree_has_no_circles(filled: Store) -> None:
    """Neither itself nor one below can be a group's parent."""
    await make(filled, "group", name="web", parent="all")
    await make(filled, "group", name="web-eu", parent="web")
    for parent in ("all", "web", "web-eu"):
        with pytest.raises(Invalid, match=r"parent: .* no circles"):
            await change(filled, "group", "all", parent=parent)
    assert (await change(filled, "group", "web-eu", parent=None)).parent is None


async def test_every_wrong_field(filled: Store) -> None:
    """References, names and ranges, in one answer, and nothing changes."""
    with pytest.raises(Invalid) as caught:
        await make(filled, "group", name="all", parent="nope", image="debian-13", flavor="smal")
    assert {f.field for f in caught.value.fields} == {"name", "parent", "image", "flavor"}
    assert "'debian-12'" in str(caught.value) and "'small'" in str(caught.value)
    with pytest.raises(Invalid) as caught:
        await make(
            filled, "subnet", name="dmz", cidr="10.0.0.128/25", pools=["10.0.1.1-10.0.1.5"], domain="nope.org"
        )
    assert {f.field for f in caught.value.fields} == {"cidr", "pools.0", "domain"}
    before = await catalogue.get(filled, CATALOGUE["subnet"], "lan")
    with pytest.raises(Invalid) as caught:
        await change(filled, "subnet", "lan", cidr=None, pools=None)
    assert {f.field for f in caught.value.fields} == {"cidr", "pools"}
    assert await catalogue.get(filled, CATALOGUE["subnet"], "lan") == before


async def test_a_subnet_in_use(filled: Store, box: SecretBox) -> None:
    """Its network stays, and no address of a host may become the gateway's or a stranger's; pools may move."""
    await create_hosts(
        filled,
        box,
        [HostCreate.model_validate({"name": "web01", "group": "all", "mac": "52:54:00:00:00:01"})],
        actor="t",
    )
    with pytest.raises(Invalid, match=r"cidr: cannot change.*web01"):
        await change(filled, "subnet", "lan", cidr="10.0.0.0/23")
    with pytest.raises(Invalid, match=r"gateway: .*web01 has 10\.0\.0\.10"):
        await change(filled, "subnet", "lan", gateway="10.0.0.10")
    with pytest.raises(Invalid, match=r"dynamic: .*web01"):
        await change(filled, "subnet", "lan", pools=[], dynamic=["10.0.0.5-10.0.0.15"])
    moved = await change(filled, "subnet", "lan", pools=["10.0.0.100-10.0.0.200"])
    assert moved.pools == [["10.0.0.100", "10.0.0.200"]]


async def test_global_parameters(store: Store) -> None:
    """Set, read and replaced; what no database can hold is refused."""
    assert await catalogue.get_parameters(store) == {}
    await catalogue.set_parameters(store, {"ntp": "a"}, actor="t")
    await catalogue.set_parameters(store, {"dns": ["b"]}, actor="t")
    assert await catalogue.get_parameters(store) == {"dns": ["b"]}
    with pytest.raises(Invalid, match="parameters"):
        await catalogue.set_parameters(store, {"a": "\0"}, actor="t")
