"""Reports of machines: read forgivingly, bounded, safe to keep."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from provisiond.inventory.facts import (
    LIST_LENGTH,
    TEXT_LENGTH,
    Facts,
    real_mac,
    real_serial,
    real_uuid,
)

_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*Facts.model_fields, "mac", "size"]), inner),
    max_leaves=25,
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "To be filled by O.E.M.", "To Be Filled By O.E.M. by O.E.M.", "Default string", "System Serial Number", "0123456789",
        "None", "Not Specified", "XXXX", "00000000", "", "  ", "\x00\x00", "N/A", "<BAD INDEX>", "..........", None, 3.5j,
        "$(DEFAULT_STRING)", "01234567890123456789AB"[:11], "MB-1234567890", "System Serial Numb",
    ],
)  # fmt: skip
def test_placeholders_are_no_serial_number(text: object) -> None:
    """What a board says when nobody wrote its serial number in is none."""
    assert real_serial(text) is None


@pytest.mark.parametrize("text", ["J4RMKQ2", "CZJ7130X9K", "S268432X8901234", "VMware-42 1d 5e"])
def test_serial_numbers_are_kept(text: str) -> None:
    """Real serial numbers come back without blanks and control characters around them."""
    assert real_serial(f" {text}\x00 ") == text


@pytest.mark.parametrize(
    "text",
    [
        "00000000-0000-0000-0000-000000000000", "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF", "03000200-0400-0500-0006-000700080009",
        "00020003-0004-0005-0006-000700080009", "FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE", "12345678-1234-5678-90AB-CDDEEFAABBCC",
        "Not Settable", "J4RMKQ2", "", None, 7,
    ],
)  # fmt: skip
def test_shared_uuids_are_none(text: object) -> None:
    """UUIDs that many boards share, and what is no UUID, name no machine."""
    assert real_uuid(text) is None


def test_uuids_and_macs_come_in_one_form() -> None:
    """However it is written, one UUID or MAC compares equal to itself."""
    assert real_uuid("4C4C4544-0051-3810-8057-B5C04F4C4D32") == "4c4c4544-0051-3810-8057-b5c04f4c4d32"
    assert real_mac("52-54-00-AA-BB-CC") == "52:54:00:aa:bb:cc"
    for wrong in (
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "a0:00:02:20" + ":00" * 16,
        "",
        None,
        "x" * 10_000,
    ):
        assert real_mac(wrong) is None


def test_a_wrong_value_hides_no_others() -> None:
    """Values of the wrong kind are dropped one by one, the rest of the report stands."""
    report: dict[str, Any] = {
        "vendor": "Dell\x00Inc.\n",
        "serial": 1234567,
        "cpu": {"cores": "8", "threads": 16, "mhz": float("nan")},
        "memory": [],
        "disks": [3, {"name": "sda", "size": -1, "rotational": "yes", "by_id": ["a", 3, None]}],
        "nics": [
            {"name": "eth0", "mac": "nonsense", "mbps": -1, "lldp": {"vlan": 10**30, "port": "Gi1/0/1"}}
        ],
        "bmc": {},
        "unheard_of": {"a": 1},
    }
    facts = Facts.model_validate(report)
    assert (facts.vendor, facts.serial, facts.memory.mib) == ("Dell Inc.", "1234567", None)
    assert (facts.cpu.cores, facts.cpu.threads, facts.cpu.mhz) == (None, 16, None)
    assert [(d.name, d.size, d.rotational, d.by_id) for d in facts.disks] == [("sda", None, None, ["a", "3"])]
    [nic] = facts.nics
    assert nic.mac is None and nic.mbps is None and nic.lldp is not None
    assert (nic.lldp.vlan, nic.lldp.port) == (None, "Gi1/0/1")
    assert facts.bmc is None


def test_a_report_is_bounded() -> None:
    """Long texts are cut and long lists end."""
    facts = Facts.model_validate({"model": "m" * 10**6, "nics": [{"name": "x"}] * 5000})
    assert len(facts.model or "") == TEXT_LENGTH and len(facts.nics) == LIST_LENGTH


def test_only_an_object_is_a_report() -> None:
    """A list or a text is no report."""
    for wrong in ([], "text", 3, None):
        with pytest.raises(ValidationError):
            Facts.model_validate(wrong)


@given(st.dictionaries(st.sampled_from([*Facts.model_fields]), _ANYTHING))
def test_any_object_is_read_and_can_be_kept(report: dict[str, Any]) -> None:
    """Whatever a machine sends becomes facts that are JSON in UTF-8 without NUL, and reading them again changes nothing."""
    kept = Facts.model_validate(report).model_dump()
    written = json.dumps(kept, allow_nan=False, ensure_ascii=False).encode()
    assert b"\\u0000" not in written
    assert Facts.model_validate(json.loads(written)).model_dump() == kept
