"""Expressions on facts: what holds, that no facts make them fail, and that what is wrong in any case is found when written."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisiond.discovery.context import values_of
from provisiond.discovery.expressions import Expression, NamePattern
from provisiond.discovery.fact_names import Wrong
from provisiond.discovery.names import host_name_of
from provisiond.inventory.facts import Facts
from provisiond.inventory.fields import HostName
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
    "disks | nofilter": "no filter 'nofilter'",
    "vendor is sometest": "no test 'sometest'",
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
    """Wrong syntax, unknown filters and tests, and what is too long, with the place."""
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
