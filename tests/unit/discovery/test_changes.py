"""Changes of hardware in words; the digest does not move for what comes and goes by itself."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings

from provisiond.discovery.changes import changes, digest_of, told
from provisiond.inventory.facts import Facts
from tests.machines import server
from tests.unit.discovery.test_expressions import ANY_FACTS


def facts(told: dict[str, Any]) -> dict[str, Any]:
    return Facts.model_validate(told).model_dump()


def test_what_comes_and_goes_is_no_change() -> None:
    """Link, speed, boot card, names and order of disks, clock of the CPU; keys in another order, as a database may give them."""
    other = server()
    other["nics"] = [{**n, "link": False, "mbps": 10, "boot": False} for n in reversed(other["nics"])]
    other["disks"] = [
        {**d, "name": f"sd{x}", "path": f"/dev/sd{x}"} for d, x in zip(other["disks"], "ba", strict=False)
    ] + other["disks"][2:]
    other["cpu"] = dict(reversed({**other["cpu"], "mhz": 1}.items()))
    one = facts(server())
    assert digest_of(one) == digest_of(facts(other)) == digest_of(json.loads(json.dumps(one, sort_keys=True)))
    assert changes(one, facts(other)) == []


def test_sentences() -> None:
    """Of each kind of part: gone, new, replaced in its place, altered."""
    other = server(bmc=None, tpm=None)
    other["memory"] = {
        "mib": 65536,
        "dimms": [{**d, "serial": f"N{d['slot']}"} for d in other["memory"]["dimms"]],
    }
    other["disks"] = [
        other["disks"][0],
        {"name": "nvme0n1", "serial": "PHLJ1", "model": "INTEL", "size": 4 * 10**12},
    ]
    other["nics"][1] |= {"mac": "e4:43:4b:aa:aa:aa"}
    other["firmware"] |= {"version": "2.13.0"}
    other["gpus"] = []
    said = [c.text for c in changes(facts(server()), facts(other))]
    assert said == [
        "firmware version is 2.13.0, was 2.12.2",
        "bmc is unknown, was {'address': '10.99.0.2', 'mac': 'e4:43:4b:01:01:00', 'version': '4.40'}",
        "tpm is unknown, was 2.0",
        "DIMM A1 (32768 MiB, serial 36F0001A1) is replaced by DIMM A1 (32768 MiB, serial NA1)",
        "DIMM B1 (32768 MiB, serial 36F0001B1) is replaced by DIMM B1 (32768 MiB, serial NB1)",
        "disk S45N0001b (SAMSUNG MZ7LH960, 960 GB) is gone",
        "disk sr0 (DVD-ROM) is gone",
        "disk PHLJ1 (INTEL, 4 TB) is new",
        "network card e4:43:4b:00:01:02 (tg3) is replaced by network card e4:43:4b:aa:aa:aa (tg3)",
        "GPU 0000:03:00.0 (G200eW3) is gone",
    ]
    line = told(changes(facts(server()), facts(other)))
    assert line.endswith("; and 4 more") and line.count("; ") == 6


def test_parts_that_nothing_tells_apart() -> None:
    """Four DIMMs without slots and serial numbers: one fewer is one that is gone."""
    four = {"memory": {"mib": 4, "dimms": [{"mib": 1}] * 4}}
    three = {"memory": {"mib": 3, "dimms": [{"mib": 1}] * 3}}
    assert [c.text for c in changes(facts(four), facts(three))] == [
        "memory is 3 MiB, was 4 MiB", "DIMM ?#4 (1 MiB) is gone",
    ]  # fmt: skip


@settings(max_examples=40)
@given(ANY_FACTS, ANY_FACTS)
def test_no_facts_make_it_fail(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Nothing is different from itself; two digests that differ have a change, and a change has words."""
    first, second = facts(one), facts(other)
    assert changes(first, first) == []
    found = changes(first, second)
    assert bool(found) == (digest_of(first) != digest_of(second))
    assert all(change.text and change.data["place"] for change in found)
