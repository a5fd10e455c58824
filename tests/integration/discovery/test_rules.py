"""Rules take machines in: the first that holds counts, with its settings, its names, an address, the controller's user and the verbs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from provisiond.discovery import again, controllers, views
from provisiond.discovery.profiles import PROFILES, Profile
from provisiond.discovery.rules import RULES, Rule
from provisiond.errors import Conflict, Invalid, NotFound
from provisiond.inventory import catalogue, hosts
from provisiond.inventory.catalogue import CATALOGUE
from provisiond.inventory.hardware_tables import Task
from provisiond.inventory.shapes import HostUpdate
from provisiond.inventory.shapes_catalogue import Group
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Bmc, Host, table
from provisiond.lifecycle import intents, task_signals
from tests.machines import Lobby, open_lobby, server


@pytest.fixture
async def lobby(store: Store, tmp_path: Path) -> Lobby:
    """On each kind of database, with group servers (subnet rack1)."""
    opened = await open_lobby(store, tmp_path)
    await catalogue.create(store, CATALOGUE["group"], Group(name="servers", subnet="rack1"), actor="user:eva")
    return opened


async def rule(lobby: Lobby, name: str, expression: str, **fields: Any) -> None:
    spec = Rule(name=name, expression=expression, **fields)
    await catalogue.create(lobby.store, RULES, spec, actor="user:eva")


async def test_the_first_rule_that_holds_counts(lobby: Lobby) -> None:
    """By priority, then by name; one that is off, or whose facts are unknown, is passed over."""
    await rule(lobby, "off", "true", priority=99, enabled=False)
    await rule(lobby, "unknown", "chassis.asset == 'x' or gpus[7].model == 'H100'", priority=50)
    await rule(lobby, "b", "memory.mib >= 65536", priority=10, name_pattern="b-{{ serial }}")
    await rule(lobby, "a", "like(model, 'poweredge*')", priority=10, name_pattern="a-{{ serial }}")
    await rule(lobby, "rest", "true", name_pattern="rest")
    assert await lobby.report(server(1)) == "a-7xk0001"
    assert await lobby.report(server(2, model=None)) == "b-7xk0002"
    assert await lobby.report(server(3, model=None, memory={})) == "rest"
    assert await lobby.report(server(4, model=None, memory={})) == "rest-2"
    (told, *_) = await lobby.events("discovery.ruled")
    assert (told.host_name, told.actor, told.cause) == ("a-7xk0001", "rule a", "like(model, 'poweredge*')")
    assert "waits for approval" in told.message
    assert (await catalogue.get(lobby.store, RULES, "rest")).taken == 2  # type: ignore[attr-defined]


async def test_what_a_rule_gives(lobby: Lobby) -> None:
    """Group, profile, descriptions, parameters, an address of the group's subnet; approved, and built when it is ready."""
    await catalogue.create(
        lobby.store, PROFILES, Profile(name="r640", expected={"memory.mib": 131072}), actor="eva"
    )
    await rule(
        lobby, "dell", "vendor == 'Dell Inc.' and subnet == 'rack1' and lldp.system == 'rack1-sw1'", group="servers", profile="r640",
        name_pattern="node-{{ serial | lower }}", storage={"layout": "lvm"}, parameters={"rack": 1}, approve=True, build=True,
    )  # fmt: skip
    assert await lobby.report(server()) == "node-7xk0001"
    host = await hosts.get_host(lobby.store, "node-7xk0001")
    assert (host.state, host.wanted, host.group, host.profile) == ("enrolled", "build", "servers", "r640")
    assert (host.storage, host.parameters) == ({"layout": "lvm"}, {"rack": 1})
    assert host.interfaces[0].ip == "10.0.0.10" and host.interfaces[0].subnet == "rack1"
    (differs,) = await lobby.events("hardware.differs")
    assert differs.message == "differs from r640: memory 64 GiB, expected 128 GiB"
    shown = await views.summary_of(lobby.store, "node-7xk0001")
    assert (
        shown is not None and shown.differs == ["memory 64 GiB, expected 128 GiB"] and shown.profile == "r640"
    )
    await lobby.report(server())  # approved already: nothing happens a second time
    assert len(await lobby.events("discovery.ruled")) == len(await lobby.events("intent.approve")) == 1


async def test_names_count_and_are_each_given_once(lobby: Lobby) -> None:
    """Thirty machines at once under a counting pattern; a name that an operator gave already is passed over."""
    await rule(lobby, "rack", "true", name_pattern="r1-{{ pad(n, 2) }}")
    first = await lobby.report(server(99))
    assert first == "r1-01"
    await hosts.update_host(lobby.store, lobby.box, first, HostUpdate(name="r1-05"), actor="user:eva")
    names = await asyncio.gather(*(lobby.report(server(n)) for n in range(1, 31)))
    assert sorted(names) == [f"r1-{n:02}" for n in range(2, 33) if n != 5]


async def test_a_full_pool_keeps_a_machine_waiting(lobby: Lobby) -> None:
    """The rule has four addresses to give; the fifth machine is named, and waits with the reason."""
    await rule(lobby, "all", "true", group="servers", approve=True, name_pattern="n{{ n }}")
    for n in range(1, 6):
        await lobby.report(server(n))
    states = {name: host.state for name, host in (await lobby.hosts()).items()}
    assert states == {
        "n1": "enrolled",
        "n2": "enrolled",
        "n3": "enrolled",
        "n4": "enrolled",
        "n5": "discovered",
    }
    assert (
        "it waits on: subnet rack1 has no free address" in (await lobby.events("discovery.ruled"))[-1].message
    )


async def test_a_dry_run_changes_nothing(lobby: Lobby) -> None:
    """It tells who would be taken, by which names, who not and why, and which rule wins now."""
    for n in (1, 2, 3):
        await lobby.report(server(n, **({"memory": {"mib": None, "dimms": []}} if n == 3 else {})))
    await rule(lobby, "big", "memory.mib >= 65536", name_pattern="big-{{ n }}", approve=True)
    before = [tuple(h) for h in (await lobby.hosts()).values()], len(await lobby.events("discovery.ruled"))
    found = {t.host: t for t in await views.try_rule(lobby.store, rule="big")}
    assert [(t.holds, t.name, t.winner) for t in found.values()] == [
        (True, "big-1", "big"), (True, "big-2", "big"), (False, None, None),
    ]  # fmt: skip
    assert found["new-e4434b000301"].why == "something in it is unknown"
    tried = await views.try_rule(lobby.store, expression="like(serial, '*2')", name_pattern="x")
    assert [t.name for t in tried if t.holds] == ["x"]
    assert (
        [tuple(h) for h in (await lobby.hosts()).values()],
        len(await lobby.events("discovery.ruled")),
    ) == before
    with pytest.raises(NotFound):
        await views.try_rule(lobby.store, rule="none")
    waiting = await views.list_waiting(lobby.store)
    assert [(m.serial, m.memory_mib, m.rule, m.switch_port) for m in waiting] == [
        ("7XK0001", 65536, "big", "rack1-sw1 Ethernet1"), ("7XK0002", 65536, "big", "rack1-sw1 Ethernet2"),
        ("7XK0003", None, None, "rack1-sw1 Ethernet3"),
    ]  # fmt: skip


async def test_rules_are_asked_again(lobby: Lobby) -> None:
    """About machines that wait, once for each version of a rule: what an operator changed since is not undone."""
    name = await lobby.report(server(1))
    assert await again.apply_rules(lobby) == []
    await rule(lobby, "named", "true", name_pattern="named-{{ serial }}")
    (taken,) = await again.apply_rules(lobby)
    assert (taken.host, taken.name, taken.state) == (name, "named-7xk0001", "discovered")
    await hosts.update_host(lobby.store, lobby.box, taken.name, HostUpdate(name="mine"), actor="user:eva")
    assert await again.apply_rules(lobby) == []
    assert await lobby.report(server(1)) == "mine"
    await catalogue.change(
        lobby.store, RULES, "named", RULES.update.model_validate({"approve": True}), actor="user:eva"
    )
    (taken,) = await again.apply_rules(lobby)
    assert (taken.host, taken.state) == ("mine", "enrolled")
    assert await again.apply_rules(lobby) == []


async def test_a_machine_that_waited_is_ruled_at_its_next_report(lobby: Lobby) -> None:
    """A restart is enough to have a new rule asked."""
    await lobby.report(server(1))
    await rule(lobby, "late", "true", name_pattern="late-{{ serial }}", approve=True)
    assert await lobby.report(server(1)) == "late-7xk0001"
    assert (await lobby.hosts())["late-7xk0001"].state == "enrolled"


async def test_a_locked_machine_is_not_approved_by_a_rule(lobby: Lobby) -> None:
    """Maintenance is an operator's word against it."""
    await lobby.report(server(1))
    async with lobby.store.write() as session:
        await session.execute(update(table(Host)).values(maintenance="being cabled"))
    await rule(lobby, "all", "true", approve=True)
    await lobby.report(server(1))
    assert [h.state for h in (await lobby.hosts()).values()] == ["discovered"]
    assert "maintenance" in (await lobby.events("discovery.waits"))[0].message


async def test_a_user_on_the_controller(lobby: Lobby) -> None:
    """Its password is kept encrypted before the machine is told it, shown nowhere, and the host has a BMC once the machine says done."""
    await rule(
        lobby,
        "bmc",
        "true",
        approve=True,
        bmc_username="provisiond",
        name_pattern="n{{ n }}",
    )
    await lobby.report(server(1))
    async with lobby.store.read() as session:
        (task,) = (await session.execute(select(table(Task)))).all()
    secret = json.loads(lobby.box.decrypt(task.secret))["bmc"]
    assert secret["username"] == "provisiond" and len(secret["password"]) == 16
    assert (task.kind, task.options) == ("inspect", {"bmc": "provisiond"})
    host = (await lobby.hosts())["n1"]
    assert (host.state, host.task_id) == ("enrolled", task.id)
    async with lobby.store.read() as session:
        assert (await session.execute(select(table(Bmc)))).first() is None
    told = {"bmc": {"address": "10.99.0.2", "mac": "e4:43:4b:01:01:00", "username": "root"}}
    for _ in range(2):
        await controllers.keep(lobby, host.id, task, told)
    await task_signals.done(lobby.store, task.id, told)
    await controllers.keep(lobby, host.id, task, told)
    async with lobby.store.read() as session:
        (bmc,) = (await session.execute(select(table(Bmc)))).all()
    assert (bmc.driver, bmc.address, bmc.username) == ("ipmi", "10.99.0.2", "provisiond")
    assert lobby.box.decrypt(bmc.secret) == secret["password"]
    assert (await lobby.hosts())["n1"].limit_key == "bmc:10.99.0.2:"
    assert len(await lobby.events("bmc.set_up")) == 1, "told again as its answer was lost"
    for kind in ("discovery.ruled", "task.opened", "bmc.set_up", "task.done"):
        for line in await lobby.events(kind):
            assert secret["password"] not in f"{line.message}{line.data}"
    await lobby.report(server(2, bmc=None))
    assert "found none" in (await lobby.events("discovery.no_bmc"))[0].message
    assert (await lobby.hosts())["n2"].state == "enrolled"


async def test_a_user_on_the_controller_of_a_machine_that_an_operator_takes_in(lobby: Lobby) -> None:
    """The rule only says so; the inspection that makes the user waits with the machine, and is kept when it is approved."""
    await rule(lobby, "bmc", "true", bmc_username="provisiond")
    name = await lobby.report(server(1))
    asked = (await lobby.hosts())[name].task_id
    assert asked is not None
    await intents.request(lobby.store, name, intents.Verb.APPROVE, actor="user:eva")
    host = (await lobby.hosts())[name]
    assert (host.state, host.task_id) == ("enrolled", asked)
    async with lobby.store.read() as session:
        (task,) = (await session.execute(select(table(Task)))).all()
    assert task.secret and task.ended_at is None


async def test_wrong_rules_and_profiles_are_refused(lobby: Lobby) -> None:
    """With the place of each mistake, and nothing written; what a rule refers to is not deleted under it."""
    for expression, said in (
        ("memory.mb > 1", "no 'mb' in memory"), ("vendor ==", "syntax is wrong"), ("nonsense", "no 'nonsense'"), ("", "is empty"),
        ("disks | selectattr('siz') | count", "no 'siz' in each of disks"), ("disks.size > 1", "a list has no 'size'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Rule(name="x", expression=expression)
    with pytest.raises(ValueError, match="no 'serail'"):
        Rule(name="x", expression="true", name_pattern="n-{{ serail }}")
    with pytest.raises(ValueError, match="build needs approve"):
        Rule(name="x", expression="true", build=True)
    with pytest.raises(ValueError, match=r"no such place"):
        Profile(name="x", expected={"memory.gib": 4})
    with pytest.raises(Invalid) as refused:
        await rule(lobby, "x", "true", group="nobody", profile="nothing")
    assert {field.field for field in refused.value.fields} == {"group", "profile"}
    await rule(lobby, "x", "true", group="servers")
    with pytest.raises(Conflict, match="discovery-rule x"):
        await catalogue.remove(lobby.store, CATALOGUE["group"], "servers", actor="user:eva")
