"""Errors as problem documents: each wrong place is a field of its own."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from provisiond.api.problems import field_errors
from provisiond.inventory.shapes import HostCreate


def wrong(**fields: object) -> list[tuple[str, str]]:
    """Field and message of everything that is wrong with a host."""
    with pytest.raises(ValidationError) as refused:
        HostCreate.model_validate({"name": "web01", **fields})
    return [(e.field, e.message) for e in field_errors(refused.value)]


def test_places_within_a_description_are_fields() -> None:
    """Beside the other wrong fields of the same request."""
    found = wrong(
        mac="x",
        storage={"swap": "1 GB", "colour": "red"},
        network={"bonds": [{"name": "b", "cards": ["eth0"], "lacp_rate": "fast"}]},
    )
    assert [field for field, _ in found] == ["storage.swap", "storage.colour", "network.bonds.0", "mac"]
    assert dict(found)["storage.colour"] == "unknown key"
    assert dict(found)["network.bonds.0"] == "b: lacp_rate is for mode 802.3ad"


def test_contradictions_within_a_description_are_told_one_by_one() -> None:
    """What does not fit together has no place but the description."""
    disks = [{"name": "a", "partitions": [{"name": "x", "size": "1GiB"}, {"name": "x", "size": "2GiB"}]}]
    assert wrong(storage={"disks": disks}) == [
        ("storage", "x is named twice"),
        ("storage", "x has neither a file system nor a place in a RAID or volume group"),
        ("storage", "x has neither a file system nor a place in a RAID or volume group"),
        ("storage", "nothing is mounted on /"),
    ]
