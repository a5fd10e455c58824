"""What a host would be given, and where its values come from, over the API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from provisiond.inventory.tables import Event
from tests.fleet import TEMPLATES, add_release, populate
from tests.integration.doors import Doors, open_doors

HASH = "$6$salt$verysecret"


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    """An API with a fleet of three: node00000 installs AlmaLinux, node00001 Debian, node00002 is an image."""
    async with open_doors(tmp_path) as doors:
        store = doors.deps.store
        await add_release(store, TEMPLATES, current=True)
        await populate(
            store, 3, every=lambda n: {"parameters": {"root_password_hash": HASH, "limits": {"building": 5}}}
        )
        yield doors


async def render(doors: Doors, status: int = 200, **body: Any) -> Any:
    answered, answer = await doors.call(
        "POST", "/templates/render", {"host": "node00000", "kind": "kickstart", **body}
    )
    assert answered == status, answer
    return answer


async def test_the_exact_text_with_secrets_masked_or_shown(doors: Doors) -> None:
    """Masked for an operator; shown to an admin who asks, which is an event; no operator may ask."""
    masked = await render(doors)
    assert "rootpw --iscrypted '$6$masked$masked'" in masked["text"]
    assert "curl http://192.0.2.1:8421/boot/MASKED/built" in masked["text"]
    assert masked["size"] == len(masked["text"].encode())
    shown = await render(doors, secrets=True)
    assert f"rootpw --iscrypted '{HASH}'" in shown["text"]
    async with doors.deps.store.read() as session:
        (event,) = (await session.execute(select(Event).where(Event.kind == "secrets.shown"))).scalars()
    assert (event.host_name, event.actor) == ("node00000", "user:admin")
    await doors.call("POST", "/users", {"name": "op", "role": "operator"})
    token = (await doors.call("POST", "/tokens", {"user": "op"}))[1]["token"]
    asked = {"host": "node00000", "kind": "kickstart", "secrets": True}
    assert (await doors.call("POST", "/templates/render", asked, token=token))[0] == 403
    assert (await doors.call("POST", "/templates/render", asked | {"secrets": False}, token=token))[0] == 200


async def test_another_release_and_other_parameters_can_be_tried(doors: Doors) -> None:
    """By number; what is given is laid over the host's own and stays nowhere."""
    changed = {
        **TEMPLATES,
        "kickstart.ks.j2": TEMPLATES["kickstart.ks.j2"] + "# {{ parameters.site | ks }}\n",
    }
    await add_release(doors.deps.store, changed)
    tried = await render(doors, release="3", parameters={"site": "two words", "timezone": "Asia/Tokyo"})
    assert tried["text"].endswith("# 'two words'\n")
    assert "timezone Asia/Tokyo" in tried["text"]
    assert "Asia/Tokyo" not in (await render(doors))["text"]
    await render(doors, 404, release="77")


async def test_an_error_names_template_line_and_key(doors: Doors) -> None:
    """As fields of the problem, not only in its sentence."""
    broken = {**TEMPLATES, "kickstart.ks.j2": TEMPLATES["kickstart.ks.j2"] + "{{ host.colour }}\n"}
    await add_release(doors.deps.store, broken)
    problem = await render(doors, 422, release="3")
    assert (problem["template"], problem["line"], problem["key"]) == ("kickstart.ks.j2", 21, "host.colour")
    assert "web01" not in problem["detail"] and "node00000" in problem["detail"]
    wrong = await render(doors, 422, parameters={"site": 7})
    assert wrong["key"] == "parameters.site"


async def test_where_a_value_comes_from(doors: Doors) -> None:
    """Each place that sets it, the weakest first, and which wins; defaults come from the header; tables from several places."""
    await doors.call("PUT", "/parameters", {"parameters": {"timezone": "UTC", "limits": {"ready": 1}}})
    await doors.call("PATCH", "/groups/redhat", {"parameters": {"timezone": "Asia/Tokyo"}})
    status, told = await doors.call("GET", "/hosts/node00000/parameters/timezone")
    assert (status, told["value"], told["origin"]) == (200, "Asia/Tokyo", "group redhat")
    assert told["places"] == [
        {"place": "global", "value": "UTC", "wins": False},
        {"place": "group all", "value": "Europe/Berlin", "wins": False},
        {"place": "group redhat", "value": "Asia/Tokyo", "wins": True},
    ]
    default = (await doors.call("GET", "/hosts/node00000/parameters/site"))[1]
    assert (default["value"], default["origin"], default["places"]) == ("hq", "default", [])
    assert default["declared"][0]["template"] == "kickstart.ks.j2"
    table = (await doors.call("GET", "/hosts/node00000/parameters/limits"))[1]
    assert (table["origin"], table["value"]) == ("several", {"ready": 1, "building": 5})
    assert all(place["wins"] for place in table["places"])
    inner = (await doors.call("GET", "/hosts/node00000/parameters/limits.building"))[1]
    assert (inner["value"], inner["origin"]) == (5, "host node00000")
    secret = (await doors.call("GET", "/hosts/node00000/parameters/root_password_hash"))[1]
    assert "verysecret" not in str(secret)
    assert secret["origin"] == "host node00000"
    assert (await doors.call("GET", "/hosts/node00000/parameters/colour"))[0] == 404


async def test_who_describes_storage(doors: Doors) -> None:
    """The nearest description counts whole; the others are told too."""
    one = {
        "disks": [
            {
                "name": "a",
                "match": "/dev/sda",
                "partitions": [{"name": "root", "mount": "/", "filesystem": "ext4", "size": "rest"}],
            }
        ]
    }
    two = {
        "disks": [
            {
                "name": "b",
                "match": "/dev/sdb",
                "partitions": [{"name": "root", "mount": "/", "filesystem": "ext4", "size": "rest"}],
            }
        ]
    }
    for group, description in (("all", one), ("redhat", two)):
        status, answer = await doors.call("PATCH", f"/groups/{group}", {"storage": description})
        assert status == 200, answer
    told = (await doors.call("GET", "/hosts/node00000/parameters/storage"))[1]
    assert told["origin"] == "group redhat"
    assert [(p["place"], p["wins"]) for p in told["places"]] == [("group all", False), ("group redhat", True)]
    assert told["value"]["disks"][0]["name"] == "b"
