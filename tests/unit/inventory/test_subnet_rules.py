"""Rules of subnets and the search's arithmetic."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from provisiond.inventory.addresses import Pools, address_at, position
from provisiond.inventory.shapes_catalogue import Subnet, partial
from provisiond.inventory.subnet_rules import check_subnet


def wrong(**fields: Any) -> set[str]:
    """The wrong fields of a subnet."""
    return {
        e.field for e in check_subnet(Subnet.model_validate({"name": "lan", "cidr": "10.0.0.0/24", **fields}))
    }


def test_a_good_one() -> None:
    """Pools, a dynamic range and a gateway, written in all three ways."""
    assert (
        wrong(
            gateway="10.0.0.1",
            pools=["10.0.0.10 - 10.0.0.20", "10.0.0.30"],
            dynamic=[["10.0.0.200", "10.0.0.250"]],
        )
        == set()
    )


def test_every_wrong_field() -> None:
    """Outside, turned round, overlapping, a gateway that is none: each is named."""
    assert wrong(
        gateway="10.0.1.1",
        pools=["10.0.0.10-10.0.0.20", "10.0.0.20-10.0.0.30", "10.0.0.9-10.0.0.5", "10.0.1.1-10.0.1.2"],
        dynamic=["10.0.0.15-10.0.0.16"],
    ) == {"gateway", "pools.1", "pools.2", "pools.3", "dynamic.0"}
    assert wrong(gateway="10.0.0.255") == {"gateway"}
    assert wrong(gateway="10.0.0.5", dynamic=["10.0.0.1-10.0.0.9"]) == {"dynamic.0"}
    assert wrong(pools=["2001:db8::1-2001:db8::5"]) == {"pools.0"}


@pytest.mark.parametrize("cidr", ["10.0.0.1/24", "10.0.0.0/33", "x", "2001:db8::/48"])
def test_wrong_networks(cidr: str) -> None:
    """Host bits set, no network at all, or an IPv6 network that is no link."""
    with pytest.raises(ValidationError, match="cidr"):
        Subnet(name="lan", cidr=cidr)


@given(st.integers(0, 2**64 - 1))
def test_positions_of_ipv6_fit_64_bits_and_go_back(offset: int) -> None:
    """Every address of a /64 has a position in 64 signed bits, and the order is kept."""
    network = ipaddress.ip_network("2001:db8:1:2::/64")
    ip = str(network[offset])
    at = position(network, ip)
    assert -(2**63) <= at < 2**63 and address_at(network, at) == ip and at == offset - 2**63


@given(st.integers(0, 255), st.integers(0, 255), st.sampled_from([None, 1, 77]))
def test_the_size_of_a_pool_is_what_may_be_taken(a: int, b: int, gateway: int | None) -> None:
    """Counted one by one: all of the range but network, broadcast and gateway."""
    first, last = sorted((a, b))
    row = SimpleNamespace(
        id="s",
        name="lan",
        cidr="10.0.0.0/24",
        gateway=gateway and f"10.0.0.{gateway}",
        pools=[[f"10.0.0.{first}", f"10.0.0.{last}"]],
        dynamic=[],
    )
    pools = Pools.of(row)
    assert pools.size == sum(pools.why_not(f"10.0.0.{n}") is None for n in range(first, last + 1))


def test_small_networks_have_no_edges() -> None:
    """Both addresses of a /31 can be used (RFC 3021)."""
    row = SimpleNamespace(
        id="s",
        name="p2p",
        cidr="10.0.0.0/31",
        gateway="10.0.0.0",
        pools=[["10.0.0.0", "10.0.0.1"]],
        dynamic=[],
    )
    assert Pools.of(row).size == 1


def test_a_partial_shape_checks_and_remembers() -> None:
    """The update of a shape has the same checks and knows what was given."""
    update = partial(Subnet)
    assert update.model_validate({"vlan": 7}).model_fields_set == {"vlan"}
    with pytest.raises(ValidationError):
        update.model_validate({"vlan": 5000})
    with pytest.raises(ValidationError):
        update.model_validate({"nonsense": 1})
