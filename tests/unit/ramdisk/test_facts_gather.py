"""The facts of the machine that runs the tests: whatever it is, the report is whole and the daemon takes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.inventory.facts import Facts
from ramdisk_agent import facts
from ramdisk_agent.facts import dmi


def test_a_real_machine_is_told_of() -> None:
    """Processors, memory, firmware and cards of this machine are in the report, and nothing of it is lost on the way."""
    told = facts.gather()
    assert told["cpu"]["threads"] >= 1 and told["memory"]["mib"] > 100 and told["architecture"]
    assert told["firmware"]["mode"] == ("uefi" if Path("/sys/firmware/efi").is_dir() else "bios")
    cards = [p.name for p in Path("/sys/class/net").iterdir() if (p / "device").exists()]
    assert {n["name"] for n in told["nics"]} <= set(cards)
    taken = Facts.model_validate(told).model_dump()
    for key, value in told.items():
        assert taken[key] == value, key


def test_a_source_that_fails_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When firmware cannot be read, the rest of the report stands."""

    def broken() -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(dmi, "gather", broken)
    told = facts.gather()
    assert told["cpu"]["threads"] >= 1 and told["memory"]["dimms"] == []


def test_nothing_new_is_not_worth_a_report() -> None:
    """After a report, another is due only when something came up."""
    facts.gather()
    assert not facts.stale()
    facts._reported["lldp"] = {"eth9": {"chassis": "gone"}}
    assert facts.stale()
