"""Hosts on both databases: created all or nothing, every mistake named at once, read, changed and deleted."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select

from provisiond.errors import Conflict, Invalid, NotFound, PoolExhausted
from provisiond.inventory import catalogue, history
from provisiond.inventory.catalogue import CATALOGUE
from provisiond.inventory.hosts import create_hosts, delete_host, get_host, list_hosts, update_host
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import HostCreate, HostUpdate
from provisiond.inventory.store import EVENTS, HOSTS, Store
from provisiond.inventory.tables import Address, Bmc, Host, table, utcnow
from tests.integration.inventory.test_catalogue import FIRST

_host, _bmc, _address = table(Host), table(Bmc), table(Address)


def spec(**fields: object) -> HostCreate:
    """A request as JSON brings it."""
    return HostCreate.model_validate(fields)


async def make(store: Store, noun: str, **fields: object) -> None:
    """A thing of the catalogue."""
    kind = CATALOGUE[noun]
    await catalogue.create(store, kind, kind.create.model_validate(fields), actor="user:admin")


@pytest.fixture
async def filled(store: Store) -> Store:
    """A subnet with eleven addresses, a domain, a hypervisor, a flavor, an image, and groups that refer to them."""
    await make(store, "domain", name="lab.example.org")
    await make(
        store,
        "subnet",
        name="lan",
        cidr="10.0.0.0/24",
        gateway="10.0.0.1",
        pools=["10.0.0.10-10.0.0.20"],
        dynamic=["10.0.0.200-10.0.0.250"],
    )
    await make(store, "flavor", name="small")
    await make(store, "hypervisor", name="hv1", uri="qemu:///system")
    await make(store, "operating_system", name="debian-12", family="debian", version="12")
    await make(
        store,
        "image",
        name="debian-12",
        operating_system="debian-12",
        path="d.raw",
        format="raw",
        sha256="0" * 64,
        size=1,
    )
    await make(store, "group", name="all", subnet="lan", domain="lab.example.org", image="debian-12")
    await make(store, "group", name="web", parent="all", parameters={"http": {"port": 80}})
    await make(store, "group", name="vms", parent="all", hypervisor="hv1", flavor="small")
    return store


async def test_a_physical_host(filled: Store, box: SecretBox) -> None:
    """It gets an address of its group's subnet, its password is kept encrypted, and it is due at once."""
    hosts, events = filled.subscribe(HOSTS), filled.subscribe(EVENTS)
    (host,) = await create_hosts(
        filled,
        box,
        [spec(name="web01", group="web", mac="52-54-00-AA-BB-01", bmc="ipmi://root:geheim@10.9.0.7")],
        actor="user:ann",
    )
    assert (host.state, host.group, host.on) == ("enrolled", "web", None)
    assert [(i.mac, i.ip, i.subnet, i.primary) for i in host.interfaces] == [
        ("52:54:00:aa:bb:01", "10.0.0.10", "lan", True)
    ]
    assert host.bmc is not None and host.bmc.url == "ipmi://root@10.9.0.7" and host.bmc.has_password
    assert "geheim" not in host.model_dump_json()
    assert hosts.is_set() and events.is_set()
    async with filled.read() as session:
        row = (await session.execute(select(_host))).one()
        secret = (await session.execute(select(_bmc.c.secret))).scalar_one()
    assert row.limit_key == "bmc:10.9.0.7:" and row.due_at <= utcnow()
    assert "geheim" not in secret and box.decrypt(secret) == "geheim"
    (created,) = await history.list_events(filled, "web01")
    assert (created.kind, created.actor, created.host_id) == ("host.created", "user:ann", host.id)


async def test_a_virtual_host(filled: Store, box: SecretBox) -> None:
    """``on`` a hypervisor, its own or its group's, gives it a MAC of its own and the hypervisor's limit."""
    one, two = await create_hosts(
        filled,
        box,
        [spec(name="vm1", on="hv1", flavor="small", subnet="lan"), spec(name="vm2", group="vms")],
        actor="user:ann",
    )
    assert one.on == two.on == "hv1"
    assert one.interfaces[0].mac.startswith("52:54:00:") and one.interfaces[0].mac != two.interfaces[0].mac
    assert {one.interfaces[0].ip, two.interfaces[0].ip} == {"10.0.0.10", "10.0.0.11"}
    async with filled.read() as session:
        assert set((await session.execute(select(_host.c.limit_key))).scalars()) == {"hv:hv1"}


async def test_every_mistake_at_once(filled: Store, box: SecretBox) -> None:
    """Each wrong field of each host is named, with the host that is in the way, and nothing is created."""
    await create_hosts(
        filled,
        box,
        [spec(name="web01", mac="52:54:00:00:00:01", serial="S1", subnet="lan", ip="10.0.0.50")],
        actor="t",
    )
    wrong = [
        spec(name="web01", mac="52:54:00:00:00:01", serial="S1", group="wbe"),
        spec(name="web02", subnet="lan", ip="10.0.0.50", mac="52:54:00:00:00:02"),
        spec(name="web03", subnet="lan", ip="10.0.0.1", mac="52:54:00:00:00:03"),
        spec(name="web04", subnet="lan", ip="10.0.0.201", mac="52:54:00:00:00:03"),
        spec(name="web05", image="debian-13"),
        spec(name="vm1", on="hv1"),
        spec(name="web05", ip="10.0.0.9", mac="52:54:00:00:00:05"),
        spec(
            name="web06",
            interfaces=[{"mac": "52:54:00:00:00:06"}, {"mac": "52:54:00:00:00:07", "subnet": "wan"}],
        ),
    ]
    with pytest.raises(Invalid) as caught:
        await create_hosts(filled, box, wrong, actor="t")
    said = {f.field: f.message for f in caught.value.fields}
    assert set(said) == {
        "hosts.0.name", "hosts.0.mac", "hosts.0.serial", "hosts.0.group", "hosts.1.ip", "hosts.2.ip", "hosts.3.ip", "hosts.3.mac",
        "hosts.4.image", "hosts.4.mac", "hosts.5.flavor", "hosts.6.name", "hosts.6.subnet", "hosts.7.interfaces.1.subnet",
    }  # fmt: skip
    assert (
        "host web01" in said["hosts.0.mac"]
        and "host web01" in said["hosts.0.serial"]
        and "host web01" in said["hosts.1.ip"]
    )
    assert "'web'" in said["hosts.0.group"]
    assert len(await list_hosts(filled)) == 1
    with pytest.raises(Invalid) as caught:
        await create_hosts(filled, box, wrong[:1], actor="t", many=False)
    assert {f.field for f in caught.value.fields} == {"name", "mac", "serial", "group"}


async def test_a_full_pool_creates_none(filled: Store, box: SecretBox) -> None:
    """Twelve hosts do not fit into eleven addresses: none is created and no address is lost."""
    specs = [spec(name=f"web{i:02}", group="web", mac=f"52:54:00:00:00:{i:02x}") for i in range(12)]
    with pytest.raises(PoolExhausted, match="all 11"):
        await create_hosts(filled, box, specs, actor="t")
    assert await list_hosts(filled) == []
    made = await create_hosts(filled, box, specs[:11], actor="t")
    assert [h.name for h in made] == [s.name for s in specs[:11]]
    assert len({h.interfaces[0].ip for h in made}) == 11


async def test_creates_side_by_side(filled: Store, box: SecretBox) -> None:
    """Ten at once, one name twice: one of the two is refused with the reason, the others get different addresses."""
    specs = [spec(name=f"web{min(i, 8):02}", group="web", mac=f"52:54:00:00:00:{i:02x}") for i in range(10)]
    results = await asyncio.gather(
        *(create_hosts(filled, box, [s], actor="t", many=False) for s in specs), return_exceptions=True
    )
    refused = [r for r in results if isinstance(r, BaseException)]
    assert (
        len(refused) == 1
        and isinstance(refused[0], Invalid)
        and "there is a host web08 already" in str(refused[0])
    )
    ips = [r[0].interfaces[0].ip for r in results if not isinstance(r, BaseException)]
    assert len(set(ips)) == 9


async def test_list_filters_and_pages(filled: Store, box: SecretBox) -> None:
    """By state, by group with those below it, by glob, page after page."""
    names = [("web01", "web"), ("web02", "web"), ("db_x".replace("_", "-"), "all"), ("vm1", "vms")]
    specs = [
        spec(name=n, group=g, **({} if g == "vms" else {"mac": f"52:54:00:00:01:{i:02x}"}))
        for i, (n, g) in enumerate(names)
    ]
    await create_hosts(filled, box, specs, actor="t")
    assert [h.name for h in await list_hosts(filled, name="web*")] == ["web01", "web02"]
    assert [h.name for h in await list_hosts(filled, name="web?1")] == ["web01"]
    assert [h.name for h in await list_hosts(filled, name="web%")] == []
    assert len(await list_hosts(filled, group="all")) == 4 and len(await list_hosts(filled, group="web")) == 2
    assert (
        len(await list_hosts(filled, state="ready")) == 0
        and len(await list_hosts(filled, state="ready,enrolled")) == 4
    )
    first = await list_hosts(filled, limit=3)
    rest = await list_hosts(filled, limit=3, cursor=first[-1].name)
    assert sorted(h.name for h in first + rest) == sorted(n for n, _ in names)
    assert first[0].ip and first[0].mac and first[0].group
    with pytest.raises(NotFound):
        await list_hosts(filled, group="nope")


async def test_update(filled: Store, box: SecretBox) -> None:
    """Only what is given changes; a new subnet means a new address; the old one is free again."""
    await make(filled, "subnet", name="dmz", cidr="10.1.0.0/24", pools=["10.1.0.5-10.1.0.6"])
    await create_hosts(
        filled,
        box,
        [spec(name="web01", group="web", mac="52:54:00:00:00:01", bmc="ipmi://root:geheim@10.9.0.7")],
        actor="t",
    )

    async def change(**fields: object) -> object:
        return await update_host(filled, box, "web01", HostUpdate.model_validate(fields), actor="user:ann")

    await change(comment="rack 7", parameters={"a": [1]})
    await change(subnet="dmz", mac="52:54:00:00:00:09")
    host = await get_host(filled, "web01")
    assert (host.comment, host.parameters, host.group) == ("rack 7", {"a": [1]}, "web")
    assert [(i.mac, i.ip, i.subnet) for i in host.interfaces] == [("52:54:00:00:00:09", "10.1.0.5", "dmz")]
    await change(
        interfaces=[
            {"mac": "52:54:00:00:00:09"},
            {"mac": "52:54:00:00:00:0a", "subnet": "lan", "name": "eth1"},
        ]
    )
    host = await get_host(filled, "web01")
    assert [(i.mac, i.ip) for i in host.interfaces] == [
        ("52:54:00:00:00:09", "10.1.0.5"),
        ("52:54:00:00:00:0a", "10.0.0.10"),
    ]
    await change(interfaces=[{"mac": "52:54:00:00:00:09"}])
    async with filled.read() as session:
        assert (await session.execute(select(func.count()).select_from(_address))).scalar() == 1

    await change(bmc="ipmi://admin@10.9.0.7")  # the same controller: the stored password stays
    async with filled.read() as session:
        assert box.decrypt((await session.execute(select(_bmc.c.secret))).scalar_one()) == "geheim"
    with pytest.raises(Invalid, match="give its password again"):
        await change(bmc="ipmi://admin@10.66.6.6")
    with pytest.raises(Invalid) as caught:
        await change(
            name=None, group="nope", mac="52:54:00:00:00:09", ip="10.0.0.300" if False else "10.7.7.7"
        )
    assert {f.field for f in caught.value.fields} == {"name", "group", "ip"}
    assert [e.kind for e in await history.list_events(filled, "web01")].count("host.updated") == 5


async def test_a_failed_host_is_looked_at_again_after_a_change(filled: Store, box: SecretBox) -> None:
    """Whatever was wrong may be mended now, so the engine is woken."""
    await create_hosts(filled, box, [spec(name="web01", group="web", mac="52:54:00:00:00:01")], actor="t")
    async with filled.write() as session:
        await session.execute(_host.update().values(failure="no answer", due_at=None))
    assert (await get_host(filled, "web01")).retry_at is None
    await update_host(
        filled, box, "web01", HostUpdate.model_validate({"bmc": "ipmi://u:p@10.0.0.9"}), actor="t"
    )
    async with filled.read() as session:
        row = (await session.execute(select(_host))).one()
    assert row.due_at is not None and row.wake == 1 and row.limit_key == "bmc:10.0.0.9:"


async def test_at_work_some_things_stay(filled: Store, box: SecretBox) -> None:
    """While a host is built its network stays and it cannot be deleted; the message says what to do."""
    await create_hosts(filled, box, [spec(name="web01", group="web", mac="52:54:00:00:00:01")], actor="t")
    async with filled.write() as session:
        await session.execute(_host.update().values(state="building"))
    with pytest.raises(Conflict, match=r"building.*host cancel web01"):
        await update_host(
            filled, box, "web01", HostUpdate.model_validate({"mac": "52:54:00:00:00:02"}), actor="t"
        )
    await update_host(filled, box, "web01", HostUpdate(comment="soon"), actor="t")
    with pytest.raises(Conflict, match="cannot be deleted"):
        await delete_host(filled, "web01", actor="t")
    async with filled.write() as session:
        await session.execute(_host.update().values(state="active"))
    with pytest.raises(Conflict, match="host release web01"):
        await update_host(filled, box, "web01", HostUpdate.model_validate({"name": "web02"}), actor="t")


async def test_delete_leaves_the_history(filled: Store, box: SecretBox) -> None:
    """Host, cards, BMC and address go; the events stay and are found by its name."""
    await create_hosts(
        filled,
        box,
        [spec(name="web01", group="web", mac="52:54:00:00:00:01", bmc="ipmi://u:p@10.0.0.9")],
        actor="t",
    )
    await delete_host(filled, "web01", actor="user:ann")
    async with filled.read() as session:
        for rows in (_host, _bmc, _address):
            assert (await session.execute(select(func.count()).select_from(rows))).scalar() == 0
    assert [e.kind for e in await history.list_events(filled, "web01")] == ["host.created", "host.deleted"]
    with pytest.raises(NotFound):
        await get_host(filled, "web01")
    with pytest.raises(NotFound):
        await delete_host(filled, "web01", actor="t")


async def test_the_method_is_by_what_a_host_has(store: Store, box: SecretBox) -> None:
    """Its own image or medium first, then its groups'; an image where nothing or both are there."""
    for noun, fields in FIRST.items():
        if noun != "group":
            await make(store, noun, **fields)
    await make(store, "group", name="installed", medium=FIRST["medium"]["name"])
    await make(store, "group", name="written", parent="installed", image=FIRST["image"]["name"])
    wanted = {
        "plain": ({}, "image"), "installed": ({"group": "installed"}, "installer"), "written": ({"group": "written"}, "image"),
        "own-medium": ({"group": "written", "medium": FIRST["medium"]["name"]}, "installer"),
        "own-image": ({"group": "installed", "image": FIRST["image"]["name"]}, "image"),
        "said": ({"group": "installed", "method": "image"}, "image"),
    }  # fmt: skip
    specs = [
        HostCreate.model_validate({"name": name, "mac": f"52:54:00:00:07:{n:02x}", **fields})
        for n, (name, (fields, _)) in enumerate(wanted.items())
    ]
    made = await create_hosts(store, box, specs, actor="t")
    assert {host.name: host.method for host in made} == {name: method for name, (_, method) in wanted.items()}


async def test_a_fake_hypervisor_is_driven_by_the_fake(store: Store) -> None:
    """Its URI says so; a driver that is named counts."""
    spec = CATALOGUE["hypervisor"].create
    assert spec.model_validate({"name": "hv", "uri": "fake://"}).driver == "fake"  # type: ignore[attr-defined]
    assert spec.model_validate({"name": "hv", "uri": "qemu:///system"}).driver == "libvirt"  # type: ignore[attr-defined]
    assert spec.model_validate({"name": "hv", "uri": "fake://", "driver": "libvirt"}).driver == "libvirt"  # type: ignore[attr-defined]
