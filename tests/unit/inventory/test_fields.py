"""The kinds of values: what is taken, how it is written afterwards, and what is refused with which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from provisiond.inventory.fields import check_parameters, described, is_placeholder_serial, parse_mac
from provisiond.inventory.shapes import HostCreate, HostUpdate, bmc_url, parse_bmc_url
from provisiond.inventory.storage import Storage

_macs = st.binary(min_size=6, max_size=6).filter(lambda b: any(b) and not b[0] & 1)


@given(_macs, st.sampled_from(["colon", "dash", "dots", "plain"]), st.booleans())
def test_every_way_to_write_a_mac(raw: bytes, form: str, upper: bool) -> None:
    """Colons, dashes, Cisco's dots or plain digits, in any case, give the same MAC, and that one gives itself."""
    digits = raw.hex()
    pairs = [digits[i : i + 2] for i in range(0, 12, 2)]
    text = {
        "colon": ":".join(pairs),
        "dash": "-".join(pairs),
        "dots": ".".join(re.findall("....", digits)),
        "plain": digits,
    }[form]
    assert parse_mac(text.upper() if upper else text) == ":".join(pairs) == parse_mac(":".join(pairs))


@given(st.text(max_size=20))
def test_other_text_is_refused_or_a_mac(text: str) -> None:
    """No text makes the parser do anything but answer with a MAC or ValueError."""
    try:
        assert re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", parse_mac(text))
    except ValueError as error:
        assert "MAC" in str(error) or "network card" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "52:54:00:12:34",
        "52:54:00:12:34:5g",
        "52-54:00-12:34-56",
        "00:00:00:00:00:00",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
    ],
)
def test_macs_that_are_none(text: str) -> None:
    """Too short, mixed, zero, broadcast and multicast."""
    with pytest.raises(ValueError, match=r"MAC|network card"):
        parse_mac(text)


@pytest.mark.parametrize(
    "text",
    [
        "To be filled by O.E.M.",
        "Default string",
        "0",
        "00000000-0000-0000-0000-000000000000",
        "N/A",
        "System Serial Number",
        "0123456789",
        "Not Specified",
        "xxxxxx",
        "...",
    ],
)
def test_placeholder_serials(text: str) -> None:
    """What boards say when nobody wrote a serial number in."""
    assert is_placeholder_serial(text)


@pytest.mark.parametrize("text", ["CZJ1234ABC", "0123456780", "VMware-56 4d", "S1"])
def test_real_serials(text: str) -> None:
    """Those pass."""
    assert not is_placeholder_serial(text)


@pytest.mark.parametrize(
    "name", ["Web01", "web_01", "-web", "web-", "a" * 64, "web.lab", "", "123", "web\n01", "wéb"]
)
def test_wrong_host_names(name: str) -> None:
    """Not an RFC 1123 label, or one that reads as a number."""
    with pytest.raises(ValidationError, match="name"):
        HostCreate(name=name)


def test_all_wrong_fields_at_once() -> None:
    """One answer names every field, an unknown one too."""
    with pytest.raises(ValidationError) as caught:
        HostCreate.model_validate(
            {
                "name": "A",
                "mac": "x",
                "firmware": "y",
                "method": "z",
                "ip": "1",
                "nonsense": 1,
                "serial": "N/A",
                "bmc": "10.0.0.1",
            }
        )
    assert {e["loc"][0] for e in caught.value.errors()} == {
        "name",
        "mac",
        "firmware",
        "method",
        "ip",
        "nonsense",
        "serial",
        "bmc",
    }


@pytest.mark.parametrize(
    "value",
    [
        {"a": "\0"},
        {"\0": 1},
        {"a": "\ud800"},
        {"a": float("nan")},
        {"a": [float("inf")]},
        {"a": 1 << 64},
        {"": 1},
        {"a": {1}},
        {"a": b"x"},
    ],
)
def test_parameters_no_database_takes(value: dict[str, Any]) -> None:
    """PostgreSQL refuses these, so nobody may store them."""
    with pytest.raises(ValueError):
        check_parameters(value)


def test_deep_and_large_parameters() -> None:
    """Too deep and too many are refused before anything walks them."""
    deep: Any = 1
    for _ in range(50):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="deeper"):
        check_parameters(deep)
    with pytest.raises(ValueError, match="more than"):
        check_parameters({"a": list(range(6000))})


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("ipmi://root@10.0.0.7", {"driver": "ipmi", "address": "10.0.0.7", "username": "root", "port": None}),
        ("ipmi://root@10.0.0.7:6230", {"port": 6230}),
        (
            "redfish://ad%40min:p%3Aw@bmc.example.org/System-1",
            {"username": "ad@min", "password": "p:w", "system": "System-1"},
        ),
        ("ipmi://[2001:db8::7]:623", {"address": "2001:db8::7", "port": 623}),
        (
            "libvirt+qemu+unix:///system?socket=/run/x#abc",
            {"driver": "libvirt", "address": "qemu+unix:///system?socket=/run/x", "system": "abc"},
        ),
    ],
)
def test_bmc_urls(url: str, fields: dict[str, Any]) -> None:
    """A URL is split into its fields; shown again it has no password and means the same."""
    found = parse_bmc_url(url)
    assert fields.items() <= found.items()
    shown = bmc_url(
        found["driver"], found["address"], found.get("port"), found.get("username", ""), found["system"]
    )
    assert parse_bmc_url(shown).items() <= found.items()
    assert "p%3Aw" not in shown


@pytest.mark.parametrize(
    "url", ["10.0.0.7", "ipmi://", "ipmi://h:99999", "ipmi://[::1", "redfish://h/x?y=geheim"]
)
def test_wrong_bmc_urls_do_not_repeat_themselves(url: str) -> None:
    """The message holds nothing of the URL, which may hold a password."""
    with pytest.raises(ValueError) as caught:
        parse_bmc_url(url)
    assert "geheim" not in str(caught.value)


def test_a_password_is_never_shown() -> None:
    """Not in repr, not in JSON, not in a validation error."""
    spec = HostCreate.model_validate({"name": "web01", "bmc": "ipmi://u:geheim@10.0.0.1"})
    assert "geheim" not in repr(spec) and "geheim" not in spec.model_dump_json()


def test_an_update_knows_what_was_given() -> None:
    """Left out and null are different things."""
    assert HostUpdate.model_validate({}).model_fields_set == set()
    assert HostUpdate.model_validate({"group": None}).model_fields_set == {"group"}


def test_one_card_or_several() -> None:
    """mac beside interfaces is refused, two primaries too."""
    with pytest.raises(ValidationError, match="not both"):
        HostCreate.model_validate({"name": "a1", "mac": "52:54:00:00:00:01", "interfaces": []})
    with pytest.raises(ValidationError, match="only one"):
        HostCreate.model_validate({"name": "a1", "interfaces": [{"primary": True}, {"primary": True}]})


def test_every_wrong_place_of_a_description_in_plain_words() -> None:
    """Unknown keys and wrong shapes are said in the words of a YAML file, not of a Python library."""
    wrong = {"layout": "lvmm", "disk": 7, "keep": "/dev/sda", "colour": "red"}
    with pytest.raises(ValueError, match="unknown key") as caught:
        described(Storage)(wrong)
    said = str(caught.value)
    assert "disk: must be a mapping" in said
    assert "layout: must be 'plain' or 'lvm'" in said and "keep: must be a list" in said
    assert "Input should" not in said and "instance of" not in said
