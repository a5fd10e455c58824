"""Hardware profiles: comparisons, counts of kinds, and that a machine is as a profile made from it expects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings

from provisiond.discovery.profiles import Profile, check_expected, differences, of_machine, summary
from provisiond.inventory.facts import Facts
from tests.machines import server, whitebox
from tests.unit.discovery.test_expressions import ANY_FACTS


def facts(told: dict[str, Any] | None = None) -> dict[str, Any]:
    return Facts.model_validate(told or server()).model_dump()


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"memory.mib": 65536, "model": "PowerEdge R640", "tpm": "2.0", "firmware.secure_boot": False}, []),
        ({"memory.mib": ">= 131072"}, ["memory 64 GiB, expected >= 128 GiB"]),
        ({"memory.mib": 131072}, ["memory 64 GiB, expected 128 GiB"]),
        ({"cpu.model": "~ *Gold 61??*", "cpu.sockets": "> 1", "model": "!= PowerEdge R650"}, []),
        ({"cpu.model": "~ *Epyc*"}, ["cpu model Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz, expected ~ *Epyc*"]),
        ({"disks": [{"count": 2, "size": ">= 900 GB", "rotational": False}]}, []),
        ({"disks": [{"count": 2, "size": ">= 1.9 TB"}]}, ["disks with size >= 1.9 TB: 0, expected 2"]),
        ({"disks": [{"count": ">= 4", "transport": "sata"}]}, ["disks with transport sata: 2, expected >= 4"]),
        ({"nics": 2, "gpus": [{"model": "G200eW3"}], "memory.dimms": "<= 4"}, []),
        ({"nics": 4}, ["nics: 2, expected 4"]),
        ({"nics": [{"count": 1, "lldp.system": "rack1-sw1"}]}, []),
        ({"chassis.asset": None, "virtual": None, "tpm": 2.0}, []),
        ({"tpm": None}, ["tpm 2.0, expected nothing known"]),
        ({"chassis.asset": "A1"}, ["chassis asset unknown, expected A1"]),
    ],
)  # fmt: skip
def test_what_differs(expected: dict[str, Any], said: list[str]) -> None:
    """In words with units."""
    assert differences(check_expected(expected), facts()) == said


@pytest.mark.parametrize("told", [server(), whitebox(), {}])
def test_a_machine_is_as_its_own_profile_expects(told: dict[str, Any]) -> None:
    """Made from a host, by the host it was made from; the profile is one that can be written."""
    expected = Profile(name="x", expected=of_machine(facts(told))).expected
    assert differences(expected, facts(told)) == []


def test_another_machine_of_the_same_kind_is_no_different() -> None:
    """Serial numbers, ports and addresses are not of the kind."""
    assert differences(of_machine(facts(server(1))), facts(server(2))) == []


@settings(max_examples=40)
@given(ANY_FACTS, ANY_FACTS)
def test_no_facts_make_a_comparison_fail(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Whatever two machines say, one compares with a profile of the other."""
    expected = of_machine(facts(one))
    assert differences(expected, facts(one)) == []
    assert isinstance(differences(expected, facts(other)), list)
    summary(facts(one))


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"memory.gib": 1}, "no such place"),
        ({"memory": 1}, "has parts; give one of: memory.dimms, memory.mib"),
        ({"model": ["a"]}, "no list"),
        ({"disks": [{"count": 2, "siz": 1}]}, "0.siz: there is none"),
        ({"disks": [7]}, "0: is a mapping"),
        ({"memory.mib": ">= lots"}, "compares with a number"),
        ({"memory.mib": {"a": 1}}, "is a value"),
        ({"disks.size": 1}, "no such place"),
    ],
)
def test_wrong_profiles(expected: dict[str, Any], said: str) -> None:
    """Places and comparisons that make no sense are refused with their place."""
    with pytest.raises(ValueError, match=said):
        check_expected(expected)
