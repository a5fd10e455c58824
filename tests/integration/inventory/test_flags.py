"""Feature flags: where they are on, what a change leaves in the history, and that a build keeps those it began with."""

from __future__ import annotations

import pytest
from sqlalchemy import insert, select

from provisiond.errors import Conflict, Invalid, NotFound
from provisiond.inventory import flags, history
from provisiond.inventory.flags import FlagCreate, FlagUpdate
from provisiond.inventory.resolve import resolve_hosts
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, HostGroup, new_id, new_row, table


async def furnish(store: Store) -> dict[str, str]:
    """Groups all > web > front, and a host in each; ids by the host's name."""
    ids: dict[str, str] = {}
    parent = None
    async with store.write() as session:
        for group in ("all", "web", "front"):
            row = new_row(HostGroup, id=new_id(), name=group, parent_id=parent)
            await session.execute(insert(table(HostGroup)), row)
            parent = row["id"]
            host = new_row(Host, id=new_id(), name=f"of-{group}", group_id=parent)
            await session.execute(insert(table(Host)), host)
            ids[host["name"]] = host["id"]
    return ids


async def on(store: Store, flag: str) -> set[str]:
    """The hosts a flag is on for, as the engine would see them."""
    async with store.read() as session:
        ids = list((await session.execute(select(Host.id))).scalars())
        return {host.name for host in await resolve_hosts(session, ids, store.known) if host.flags.get(flag)}


async def test_where_a_flag_is_on(store: Store) -> None:
    """Groups take in those below; named hosts are on, others off whatever else says; a change is seen at once."""
    await furnish(store)
    assert await on(store, "disk") == set()
    await flags.create(store, FlagCreate(name="disk"), actor="user:eva")
    assert await on(store, "disk") == set()
    await flags.change(store, "disk", FlagUpdate(groups=["web"]), actor="user:eva")
    assert await on(store, "disk") == {"of-web", "of-front"}
    await flags.change(store, "disk", FlagUpdate(hosts=["of-all"], off_hosts=["of-front"]), actor="user:eva")
    assert await on(store, "disk") == {"of-all", "of-web"}
    await flags.change(store, "disk", FlagUpdate(percent=100, hosts=[], groups=[]), actor="user:eva")
    assert await on(store, "disk") == {"of-all", "of-web"}
    await flags.remove(store, "disk", actor="user:eva")
    assert await on(store, "disk") == set()


async def test_changes_are_events_and_wake_nobody(store: Store) -> None:
    """Each tells what was before and what is after; no host becomes due."""
    await furnish(store)
    await flags.create(store, FlagCreate(name="disk", percent=5), actor="user:eva")
    woken = store.subscribe("hosts")
    await flags.change(store, "disk", FlagUpdate(percent=10, groups=["web"]), actor="user:eva")
    await flags.remove(store, "disk", actor="user:eva")
    told = {event.kind: event.data for event in await history.list_events(store)}
    assert told["flag.created"]["after"]["percent"] == 5
    assert told["flag.changed"] == {
        "before": {"percent": 5.0, "groups": []},
        "after": {"percent": 10.0, "groups": ["web"]},
    }
    assert told["flag.deleted"]["before"]["groups"] == ["web"]
    assert not woken.is_set()


async def test_what_is_wrong_is_named(store: Store) -> None:
    """Every unknown host and group at once, a name taken, a flag that is not there; nothing is changed."""
    await furnish(store)
    with pytest.raises(Invalid) as caught:
        await flags.create(store, FlagCreate(name="disk", groups=["web", "no"], hosts=["nobody"]), actor="a")
    assert {wrong.field for wrong in caught.value.fields} == {"groups.1", "hosts.0"}
    assert await flags.list_all(store) == []
    await flags.create(store, FlagCreate(name="disk"), actor="a")
    with pytest.raises(Conflict, match="flag disk already"):
        await flags.create(store, FlagCreate(name="disk"), actor="a")
    with pytest.raises(NotFound):
        await flags.change(store, "disc", FlagUpdate(percent=1), actor="a")
