"""Expressions on facts: what they see, that no facts make them fail, and that what is wrong in any case is found when written."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisiond.discovery.context import real_cards, subnet_of, values_of
from provisiond.discovery.expressions import Expression, NamePattern, Wrong, gib, like, pad, within
from provisiond.discovery.names import host_name_of
from provisiond.inventory.facts import Facts
from provisiond.inventory.fields import HostName
from provisiond.inventory.tables import Subnet
from tests.machines import server, whitebox

SEEN = {"mac": "e4:43:4b:00:01:01", "address": "10.0.0.200", "subnet": "rack1"}
HOLD = (
    "vendor == 'Dell Inc.' and memory.mib >= 65536",
    "like(model, 'poweredge r6?0')",
    "disks | selectattr('rotational', 'false') | count == 2",
    "disks | selectattr('size', 'gt', 900 * 10**9) | count >= 2",
    "disks | map(attribute='size') | select | sum > 10**12",
    "gib(disks[0]) > 890 and gib(memory) == 64",
    "cpu.cores / cpu.sockets == 16",
    "lldp.system == 'rack1-sw1' and lldp.port.startswith('Ethernet')",
    "subnet == 'rack1' and within(address, '10.0.0.0/16')",
    "serial in ['7XK0001', '7XK0002']",
    "nics | selectattr('lldp.vlan', 'eq', 100) | count == 1",
    "not (gpus | selectattr('vendor', 'eq', 'NVIDIA'))",
    "bmc and bmc.address is string",
    "firmware.mode == 'uefi' and tpm == '2.0'",
)
NOT = (
    "memory.mib > 65536", "chassis.asset == 'A1'", "chassis.asset > 5", "disks[7].size > 1", "virtual", "disks[2].serial",
    "gpus | selectattr('vendor', 'eq', 'NVIDIA')", "disks | selectattr('size', 'lt', 5)", "gib(chassis.asset) > 1", "1 / 0",
    "vendor.lower().nothing", "within(1, 2)", "pad(1, 99)", "nics[1].lldp.system == 'rack1-sw1'", "nics[1].lldp",
)  # fmt: skip
REFUSED = {
    "": "is empty",
    "vendor ==": "syntax is wrong",
    "vendor = 'x'": "syntax is wrong",
    "a b": "syntax is wrong",
    "vendro == 'x'": "no 'vendro'",
    "memory.mb > 1": "no 'mb' in memory",
    "nics[0].lldp.sytem": "no 'sytem' in nics.lldp",
    "disks.size > 1": "a list has no 'size'",
    "disks | selectattr('siz') | count": "no 'siz' in each of disks",
    "disks | map(attribute='siz') | list": "no 'siz' in each of disks",
    "disks | nofilter": "no filter 'nofilter'",
    "vendor is sometest": "no test 'sometest'",
    "vendor.__class__": "no '__class__'",
    "''.__class__.__mro__": "no '__",
    "range(10)": "no function 'range'",
    "vendor()": "no function 'vendor'",
    "n > 1": "no 'n'",
    "x" * 3000: "more than 2000 characters",
    "(" * 900 + "1" + ")" * 900: "nested too deeply",
}


def values(facts: dict[str, Any] | None = None) -> dict[str, Any]:
    return values_of(Facts.model_validate(facts or server()), **SEEN)


@pytest.mark.parametrize("source", HOLD)
def test_what_holds(source: str) -> None:
    """For a real server's facts."""
    assert Expression(source).holds(values()) == (True, "")


@pytest.mark.parametrize("source", NOT)
def test_what_does_not_hold(source: str) -> None:
    """Also for what is unknown, null, of another kind, or an error of its own."""
    assert not Expression(source).holds(values())[0]


@pytest.mark.parametrize("source", REFUSED)
def test_what_is_refused(source: str) -> None:
    """Names that facts do not have, wrong syntax, and ways out of the sandbox, with the place."""
    with pytest.raises(Wrong, match=REFUSED[source]):
        Expression(source)


def test_an_expression_ends() -> None:
    """What would take for ever is ended by the meter; nothing is read or written on the way."""
    began = time.monotonic()
    for source in ("'x' * 10**9", "10**64**64**64", "('a' * 60000) ~ ('b' * 60000) ~ ('c' * 60000)"):
        assert not Expression(source).holds(values())[0]
    assert time.monotonic() - began < 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(sorted(server())), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
ANY_FACTS = st.dictionaries(st.sampled_from(sorted(server())), JSON, max_size=12)


@settings(max_examples=40)
@given(ANY_FACTS)
def test_no_facts_make_a_rule_fail(told: dict[str, Any]) -> None:
    """Whatever a machine says, each expression holds or not, with no error."""
    seen = values_of(Facts.model_validate(told), mac="", address="nowhere")
    for source in (*HOLD, *NOT):
        holds, why = _compiled(source).holds(seen)
        assert isinstance(holds, bool) and isinstance(why, str)


_KEPT: dict[str, Expression] = {}


def _compiled(source: str) -> Expression:
    return _KEPT.setdefault(source, Expression(source)) if source not in _KEPT else _KEPT[source]


@given(st.text(max_size=60))
def test_no_source_makes_the_check_fail(source: str) -> None:
    """Any text is an expression or is refused as Wrong; so is any name pattern."""
    for make in (Expression, NamePattern):
        try:
            make(source)
        except Wrong:
            continue


@given(st.text(max_size=120))
def test_names_are_valid_whatever_comes_in(text: str) -> None:
    """What is made of any text is a host name, or nothing."""
    from pydantic import TypeAdapter

    name = host_name_of(text)
    assert not name or TypeAdapter(HostName).validate_python(name) == name


@pytest.mark.parametrize(
    ("pattern", "name", "counts"),
    [
        ("node-{{ serial | lower }}", "node-7xk0001", False),
        ("{{ lldp.system }}-{{ lldp.port }}", "rack1-sw1-ethernet1", False),
        ("r1-{{ pad(n, 3) }}", "r1-007", True),
        ("{{ model }} / {{ serial }}", "poweredge-r640-7xk0001", False),
        ("{{ cpu.cores }}", "host-32", False),
        ("{{ chassis.asset }}", "", False),
        ("{{ 'n' if n is odd else 'm' }}{{ uuid[-4:] }}", "n0001", True),
    ],
)
def test_name_patterns(pattern: str, name: str, counts: bool) -> None:
    """Texts and numbers of the facts; what is unknown makes no name, and says so."""
    made = NamePattern(pattern)
    text, why = made.text(values(), 7)
    assert (host_name_of(text), made.counts, bool(why)) == (name, counts, not name)


@pytest.mark.parametrize(
    "pattern",
    ["{% for x in nics %}a{% endfor %}", "{{ nothing }}", "{{ serial", "{% set a = 1 %}", "{{ memory.x }}"],
)
def test_wrong_name_patterns(pattern: str) -> None:
    """No blocks, no unknown names."""
    with pytest.raises(Wrong):
        NamePattern(pattern)


def test_a_placeholder_is_no_name() -> None:
    """ "Default string" is null for expressions and patterns."""
    seen = values(whitebox())
    assert seen["serial"] is None and seen["uuid"] is None
    assert NamePattern("node-{{ serial }}").text(seen, 1) == ("", "unknown")


def test_what_expressions_call() -> None:
    """GiB of bytes, of a disk, of memory; patterns in any case; networks; zeros in front."""
    assert (gib(1 << 30), gib({"size": 3 << 29}), gib({"mib": 512}), gib({"mib": None}), gib("x"), gib(True)) == (
        1, 1.5, 0.5, None, None, None,
    )  # fmt: skip
    assert like("Dell Inc.", "DELL*") and not like(None, "*") and not like("x", None)
    assert within("10.1.2.3", "10.1.0.0/16") and not within("10.1.2.3", "10.1.0.0/33")
    assert (pad(7, 3), pad("a", 3)) == ("007", "00a")


def test_the_subnet_a_machine_was_seen_in() -> None:
    """The narrowest; IPv4 within IPv6 is IPv4."""
    rows = [
        Subnet(name=name, cidr=cidr)
        for name, cidr in (("a", "10.0.0.0/8"), ("b", "10.1.0.0/16"), ("c", "2001:db8::/64"))
    ]
    assert [getattr(subnet_of(a, rows), "name", None) for a in ("10.1.2.3", "10.2.0.1", "::ffff:10.1.0.1", "fe80::1%eth0", "2001:db8::5", "x")] == [
        "b", "a", "b", None, "c", None,
    ]  # fmt: skip


def test_cards_that_identify() -> None:
    """The card that booted comes first; doubles of it and cards over USB are none, but where the machine booted from it."""
    facts = Facts.model_validate({"nics": [
        {"name": "bond0", "mac": "02:00:00:00:00:01", "driver": "bonding"}, {"name": "a", "mac": "02:00:00:00:00:01", "driver": "igb"},
        {"name": "b", "mac": "02:00:00:00:00:02", "driver": "igb"}, {"name": "usb0", "mac": "02:00:00:00:00:03", "driver": "cdc_ether"},
        {"name": "ib0", "mac": None, "driver": "ib_ipoib"}, {"name": "c", "mac": "02:00:00:00:00:02", "driver": "igb"}]})  # fmt: skip
    assert [nic.name for nic in real_cards(facts, "02:00:00:00:00:02")] == ["c", "a"]
    assert [nic.name for nic in real_cards(facts, "02:00:00:00:00:03")] == ["usb0", "a", "b"]
