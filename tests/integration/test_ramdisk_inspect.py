"""The action inspect as the agent runs it: facts, a user of the controller, hardware tests, facts again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from provisiond.inventory.facts import Facts
from ramdisk_agent import bmc_setup, checks, facts
from ramdisk_agent import inspect as inspecting
from ramdisk_agent.client import Client
from ramdisk_agent.facts import bmc
from ramdisk_agent.log import LOG
from ramdisk_agent.work import ACTIONS, Failed, Work
from tests.integration.agent_world import Door

PASSWORD = "never-to-be-seen-77"


@pytest.fixture
def door() -> Iterator[Door]:
    """A server that remembers what the agent said."""
    with Door() as running:
        yield running


def inspection(door: Door, scripts: dict[str, bytes], wanted: dict[str, str] | None = None) -> Work:
    """The work of a plan with these tests, in a session."""
    client = Client(door.url)
    client.claim("ticket-of-this-boot", "ab" * 32, {"macs": [], "serial": None, "uuid": None}, 30)
    door.files = {f"agent/test/{name}": text for name, text in scripts.items()}
    tests = [{"name": n, "timeout": 30, "sha256": hashlib.sha256(t).hexdigest()} for n, t in scripts.items()]
    return Work({"id": "task-1", "action": "inspect", "tests": tests, "bmc": wanted}, client)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No waiting for switches; scripts run below the test's directory."""
    monkeypatch.setattr(inspecting, "LLDP_SECONDS", 0.1)
    defaults = checks.run_tests.__defaults__
    assert defaults
    monkeypatch.setattr(checks.run_tests, "__defaults__", (defaults[0], str(tmp_path), *defaults[2:]))


def test_facts_then_tests_then_facts(door: Door) -> None:
    """Facts come first, each verdict as it is known, and facts once more, since a test may have been what broke something."""
    scripts = {
        "good": b"#!/bin/sh\necho fine\n",
        "bad": b"#!/bin/sh\necho $PROVISIOND_URL $PROVISIOND_AUTHORIZATION; exit 1\n",
    }
    assert ACTIONS["inspect"](inspection(door, scripts)) == {}
    order = [name for name, _ in door.posts if name in ("facts", "test")]
    assert order[0] == order[-1] == "facts" and order.count("test") == 2
    tests = {t["name"]: t for t in door.said("test")}
    assert tests["good"]["verdict"] == "pass" and tests["good"]["id"] == "task-1"
    assert tests["bad"]["verdict"] == "fail" and door.url in tests["bad"]["output"]
    assert "ab" * 32 not in str(tests["bad"])
    told = Facts.model_validate(door.said("facts")[0])
    assert told.cpu.threads and told.memory.mib and told.firmware.mode


def test_without_tests_it_is_facts_only(door: Door) -> None:
    """An inspection without tests tells what there is and is done."""
    assert ACTIONS["inspect"](inspection(door, {})) == {}
    assert door.said("facts") and not door.said("test")


def test_the_controller_is_set_up(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its address comes back with the result; the password goes nowhere else."""
    given: list[Any] = []

    def set_up(username: str, password: str) -> dict[str, Any]:
        given.append((username, password))
        LOG.add(f"the password is {password}")
        return {"address": "10.0.0.9", "mac": None, "username": username}

    monkeypatch.setattr(bmc, "present", lambda told, acpi="": True)
    monkeypatch.setattr(bmc_setup, "set_up", set_up)
    work = inspection(door, {}, {"username": "provisiond", "password": PASSWORD})
    assert ACTIONS["inspect"](work) == {"bmc": {"address": "10.0.0.9", "mac": None, "username": "provisiond"}}
    assert given == [("provisiond", PASSWORD)]
    assert PASSWORD not in LOG.text() and PASSWORD not in str(door.posts)
    assert len(door.said("facts")) >= 2  # what the controller says may be another thing now


def test_a_machine_without_a_controller_says_so(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts were told by then; the rest fails with what to do."""
    monkeypatch.setattr(bmc, "_DEVICES", ("/no/such/device",))
    work = inspection(door, {"good": b"#!/bin/sh\n"}, {"username": "provisiond", "password": PASSWORD})
    with pytest.raises(Failed, match="no controller"):
        ACTIONS["inspect"](work)
    assert door.said("facts") and not door.said("test")
    facts.refresh()
