"""A host resolved with all it refers to, its boot token, the rotation of keys, and the history, on both databases."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, insert, select, update

from provisiond.errors import NotFound
from provisiond.inventory import catalogue, history
from provisiond.inventory.hosts import create_hosts, get_host, update_host
from provisiond.inventory.release_tables import Release
from provisiond.inventory.resolve import host_by_mac, host_by_token, resolve_host, resolve_hosts
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.shapes import HostCreate, HostUpdate
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Bmc, Deployment, Host, new_row, table, utcnow
from tests.integration.inventory.test_catalogue import FIRST, make

_host, _bmc, _deployment, _release = table(Host), table(Bmc), table(Deployment), table(Release)


@pytest.fixture
async def host_id(store: Store, box: SecretBox) -> str:
    """A host deep in the tree, with a parameter at every place."""
    for noun, fields in FIRST.items():
        place = (
            {"parameters": {"who": noun, noun: 1}}
            if noun in {"domain", "subnet", "operating_system", "group"}
            else {}
        )
        await make(store, noun, **{**fields, **place})
    await catalogue.set_parameters(store, {"who": "global", "global": 1}, actor="t")
    await make(
        store, "group", name="web", parent="all", handover="ansible", parameters={"who": "web", "web": 1}
    )
    await make(store, "group", name="web-eu", parent="web", flavor="small")
    spec = {
        "name": "web01",
        "group": "web-eu",
        "mac": "52:54:00:00:00:01",
        "bmc": "ipmi://u:geheim@10.9.0.1",
        "parameters": {"own": 1},
    }
    (host,) = await create_hosts(store, box, [HostCreate.model_validate(spec)], actor="t")
    return host.id


async def test_everything_is_there(store: Store, host_id: str) -> None:
    """Inherited settings, the path of groups, parameters by precedence with their origins, in 12 statements at most."""
    statements: list[str] = []
    engine = store._reader.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    async with store.read() as session:
        host = await resolve_host(session, host_id)
    assert len(statements) <= 12
    assert (host.name, host.fqdn, host.mac, host.ip) == (
        "web01",
        "web01.lab.example.org",
        "52:54:00:00:00:01",
        "10.0.0.10",
    )
    assert host.groups == ("all", "web", "web-eu") and host.handover == "ansible"
    assert host.image and host.image.format == "raw" and host.flavor and host.flavor.name == "small"
    assert host.operating_system and host.operating_system.name == "debian-12"
    assert (
        host.subnet
        and host.subnet.gateway == "10.0.0.1"
        and host.domain
        and host.domain.name == "lab.example.org"
    )
    assert (
        host.bmc
        and host.bmc.username == "u"
        and host.hypervisor is None
        and host.deployment is None
        and host.release_id is None
    )
    assert host.parameters == {
        "who": "web",
        "global": 1,
        "domain": 1,
        "subnet": 1,
        "operating_system": 1,
        "group": 1,
        "web": 1,
        "own": 1,
    }
    assert host.merged.origins == {
        "who": "group web", "global": "global", "domain": "domain lab.example.org", "subnet": "subnet lan",
        "operating_system": "operating system debian-12", "group": "group all", "web": "group web", "own": "host web01",
    }  # fmt: skip
    assert host.with_row(version=9).row.version == 9 and host.row.version == 1


async def test_descriptions_are_inherited_whole(store: Store, box: SecretBox, host_id: str) -> None:
    """The nearest group's counts as a whole, the host's own before all; one emptied again inherits."""

    async def descriptions() -> tuple[object, object]:
        async with store.read() as session:
            host = await resolve_host(session, host_id)
        return host.storage, host.network

    group = catalogue.CATALOGUE["group"]
    assert await descriptions() == (None, None)
    for name, change in (
        ("all", {"storage": {"layout": "lvm", "encrypt": True}, "network": {"mtu": 9000}}),
        ("web", {"storage": {"swap": "2GiB"}}),
    ):
        await catalogue.change(store, group, name, group.update.model_validate(change), actor="t")
    assert await descriptions() == ({"swap": "2GiB"}, {"mtu": 9000})
    own = {"network": {"mode": "dhcp"}}
    assert (await update_host(store, box, "web01", HostUpdate.model_validate(own), actor="t")).network == {
        "mode": "dhcp"
    }
    assert await descriptions() == ({"swap": "2GiB"}, {"mode": "dhcp"})
    await update_host(store, box, "web01", HostUpdate.model_validate({"network": None}), actor="t")
    assert await descriptions() == ({"swap": "2GiB"}, {"mtu": 9000})


async def test_many_in_order_and_those_gone(store: Store, host_id: str) -> None:
    """The order asked for is kept and a host that is gone is left out."""
    async with store.read() as session:
        assert [h.id for h in await resolve_hosts(session, ["gone", host_id])] == [host_id]
        with pytest.raises(NotFound):
            await resolve_host(session, "gone")


async def test_by_mac_and_by_token(store: Store, box: SecretBox, host_id: str) -> None:
    """A boot token finds its build until it expires; the newest build is shown with its release."""
    release = new_row(Release, number=1, digest="a" * 64)
    build = new_row(
        Deployment,
        host_id=host_id,
        release_id=release["id"],
        token_hash=hashlib.sha256(b"token").hexdigest(),
        token_expires=utcnow() + timedelta(hours=1),
        progress=40,
    )
    async with store.write() as session:
        await session.execute(insert(_release).values(release))
        await session.execute(insert(_deployment).values(build))
        await session.execute(update(_host).values(deployment_id=build["id"]))
    async with store.read() as session:
        assert await host_by_mac(session, "52:54:00:00:00:01") == host_id
        assert await host_by_mac(session, "52:54:00:00:00:02") is None
        assert await host_by_token(session, "token") == (host_id, build["id"])
        assert await host_by_token(session, "other") is None
        assert (await resolve_host(session, host_id)).release_id == release["id"]
    shown = (await get_host(store, "web01")).deployment
    assert shown and (shown.progress, shown.release) == (40, "a" * 64)
    async with store.write() as session:
        await session.execute(update(_deployment).values(token_expires=utcnow() - timedelta(seconds=1)))
    async with store.read() as session:
        assert await host_by_token(session, "token") is None


class Crash(Exception):
    """Stands for a kill at this point."""


@pytest.mark.parametrize("at", ["never", "before the database", "after the database"])
async def test_rotation(
    store: Store, box: SecretBox, host_id: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every secret is under the new key afterwards and the old key is gone; killed at any point, all stays readable."""
    old = box.path.read_text().strip()
    if at == "before the database":

        async def crash(*_: object) -> None:
            raise Crash

        monkeypatch.setattr(store, "transact", crash)
    elif at == "after the database":
        import provisiond.inventory.secrets as module

        write = module._write

        def crash_second(path: Path, keys: list[bytes], *, replace: bool) -> None:
            if len(keys) == 1:
                raise Crash
            write(path, keys, replace=replace)

        monkeypatch.setattr(module, "_write", crash_second)
    if at == "never":
        assert await box.rotate(store) == 1
        assert old not in box.path.read_text() and len(box.path.read_text().split()) == 1
    else:
        with pytest.raises(Crash):
            await box.rotate(store)
        monkeypatch.undo()
    again = SecretBox.open(box.path)
    async with store.read() as session:
        assert again.decrypt((await session.execute(select(_bmc.c.secret))).scalar_one()) == "geheim"
    if at != "never":
        await again.rotate(store)
        assert len(box.path.read_text().split()) == 1 and old not in box.path.read_text()


async def test_history(store: Store, host_id: str) -> None:
    """A key is stored once, long messages are cut in the middle, events come in order and by pages."""
    async with store.write() as session:
        row = (await session.execute(select(_host))).one()
        first = await history.add(
            session, host=row, kind="callback.built", key="d1:built", actor="machine", data={"a": 1}
        )
        assert await history.add(session, host=row, kind="callback.built", key="d1:built") is None
        await history.add(session, kind="x", message="a" * 20_000 + "\0end")
        await history.add_many(session, [history.line(kind="y", host=row, step=str(i)) for i in range(5)])
    events = await history.list_events(store, "web01", kind="callback.built")
    assert (
        [e.id for e in events] == [first] and events[0].host_id == host_id and events[0].state == "enrolled"
    )
    (long,) = await history.list_events(store, kind="x")
    assert len(long.message) < 17_000 and long.message.endswith("end") and "left out" in long.message
    page = await history.list_events(store, host_id, kind="y", limit=3)
    rest = await history.list_events(store, host_id, page[-1].id, kind="y")
    assert [e.step for e in page + rest] == list("01234")
    assert [e.step for e in await history.list_events(store, kind="y", limit=2, newest=True)] == ["3", "4"]


async def test_what_is_known_is_forgotten_when_it_changes(store: Store, host_id: str) -> None:
    """A change of the catalogue is seen by the very next look; until then nothing is read twice."""

    async def who() -> str:
        async with store.read() as session:
            return (await resolve_host(session, host_id, store.known)).parameters["global"]

    assert await who() == 1
    known = store.known
    assert await who() == 1
    assert store.known is known and known.paths and known.rows
    await catalogue.set_parameters(store, {"who": "global", "global": 2}, actor="t")
    assert await who() == 2
