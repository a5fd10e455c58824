"""Records of erased disks over the API: listed, made into a certificate that shows any change, and there when the host is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.tables import Host, utcnow
from provisiond.lifecycle import erasures, task_signals
from tests.integration.doors import Doors, open_doors
from tests.ramdisk_tasks import end_task, open_task

SUBNET = {"name": "lab", "cidr": "192.0.2.0/24", "pools": [["192.0.2.10", "192.0.2.20"]]}


async def host_with_records(doors: Doors) -> str:
    """A host of which two disks were tried: one by a format, one by a secure erase that failed and an overwrite; and one test."""
    await doors.call("POST", "/subnets", SUBNET)
    host = {"name": "web01", "mac": "52:54:00:00:00:01", "subnet": "lab", "serial": "SN-1"}
    status, made = await doors.call("POST", "/hosts", host)
    assert status == 201, made
    task = await open_task(doors.deps.store, "web01", "erase", {"mode": "auto"}, actor="user:ann")
    begun = utcnow() - timedelta(minutes=10)
    tried = [
        ("nvme0n1", "nvme-format", True, ""),
        ("sda", "ata-secure-erase", False, "hdparm failed: it is frozen"),
        ("sda", "overwrite", True, "ata-secure-erase: hdparm failed"),
    ]
    for number, (name, method, verified, message) in enumerate(tried):
        disk = {
            "name": name,
            "path": f"/dev/{name}",
            "model": "EXAMPLE",
            "serial": f"S-{name}",
            "wwn": "",
            "size": 960 * 10**9,
        }
        since = begun + timedelta(minutes=number)
        await task_signals.record_erasure(
            doors.deps.store, task, disk, method=method, started=since, ended=since + timedelta(seconds=30), verified=verified, message=message
        )  # fmt: skip
    await task_signals.record_test(
        doors.deps.store, task, "smart", "degraded", "12 sectors reallocated\n", 2.5
    )
    await end_task(doors.deps.store, "web01")
    return str(made["id"])


async def test_certificate_of_a_host_that_is_gone(tmp_path: Path) -> None:
    """Each try is in it with its category, it is genuine, and it stays when the host is deleted."""
    async with open_doors(tmp_path) as doors:
        host_id = await host_with_records(doors)
        async with doors.deps.store.write() as session:
            await session.execute(update(Host).values(state="ready"))
        assert (await doors.call("DELETE", "/hosts/web01"))[0] == 204
        for name in ("web01", host_id):
            status, listed = await doors.call("GET", f"/erasures?host={name}")
            assert status == 200 and len(listed["items"]) == 3
        found = [(e["disk_name"], e["method"], e["category"]) for e in listed["items"]]
        assert found == [
            ("sda", "overwrite", "Clear"),
            ("sda", "ata-secure-erase", "none"),
            ("nvme0n1", "nvme-format", "Purge"),
        ]
        status, certificate = await doors.call("GET", "/hosts/web01/certificate")
        assert status == 200 and certificate["host"] == {"name": "web01", "id": host_id, "serial": "SN-1"}
        assert [e["disk"]["name"] for e in certificate["erasures"]] == ["nvme0n1", "sda", "sda"]
        assert await verdict(doors, certificate) == (True, "")
        assert (await doors.call("GET", "/hosts/nobody/certificate"))[0] == 404


async def verdict(doors: Doors, certificate: dict[str, Any]) -> tuple[bool, str]:
    status, said = await doors.call("POST", "/erasures/verify", {"certificate": certificate})
    assert status == 200
    return said["valid"], said["why"]


async def test_a_changed_certificate_is_found_out(tmp_path: Path) -> None:
    """Whatever is changed, with the digest made anew or not, and a certificate of another daemon; a rotated key still verifies."""
    async with open_doors(tmp_path) as doors:
        await host_with_records(doors)
        _, certificate = await doors.call("GET", "/hosts/web01/certificate")
        changes: tuple[Callable[[Any], object], ...] = (
            lambda c: c["erasures"][1].update(verified=True),
            lambda c: c["erasures"].pop(1),
            lambda c: c["host"].update(name="web02"),
            lambda c: c.update(issued_at="2020-01-01T00:00:00+00:00"),
            lambda c: c.update(more="words"),
        )
        for change in changes:
            changed = copy.deepcopy(certificate)
            change(changed)
            assert (await verdict(doors, changed))[
                1
            ] == "its content is not what its digest was made of: it was changed"
        for lacking in ("version", "signature", "erasures"):
            assert not (await verdict(doors, {k: v for k, v in certificate.items() if k != lacking}))[0]
        other = SecretBox.open(tmp_path / "other.key")
        foreign = await erasures.certificate(doors.deps.store, other, "web01")
        assert "keys did not sign it" in (await verdict(doors, foreign))[1]
        assert erasures.verify(other, foreign) == ""


async def test_tests_of_a_host(tmp_path: Path) -> None:
    """With their output, and who asked."""
    async with open_doors(tmp_path) as doors:
        await host_with_records(doors)
        _, found = await doors.call("GET", "/hosts/web01/tests")
        assert [(t["name"], t["verdict"], t["seconds"], t["actor"]) for t in found["items"]] == [
            ("smart", "degraded", 2.5, "user:ann")
        ]
        assert "reallocated" in found["items"][0]["output"]


@pytest.mark.parametrize(
    ("verb", "body", "fields"),
    [
        (
            "release",
            {"erase": "gently", "method": "image", "keys": ["x"]},
            {"erase", "method", "keys", "keys.0"},
        ),
        ("inspect", {"tests": ["no-such-test", "memory", "also-none"]}, {"tests.0", "tests.2"}),
        ("lock", {"erase": "full"}, {"erase"}),
        ("rescue", {}, {"keys"}),
    ],
)
async def test_what_is_said_beside_a_verb(
    tmp_path: Path, verb: str, body: dict[str, Any], fields: set[str]
) -> None:
    """Every wrong field is in one answer."""
    async with open_doors(tmp_path) as doors:
        await host_with_records(doors)
        async with doors.deps.store.write() as session:
            await session.execute(update(Host).values(state="active" if verb == "rescue" else "ready"))
        status, problem = await doors.call("POST", f"/hosts/web01/actions/{verb}", body)
        assert status == 422, problem
        assert {error["field"] for error in problem["errors"]} == fields
