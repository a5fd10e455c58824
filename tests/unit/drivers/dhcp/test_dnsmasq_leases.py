"""dnsmasq's lease file and the feed of events."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisiond.drivers.dhcp import Lease, LeaseEvent
from provisiond.drivers.dhcp.dnsmasq_leases import LeaseFeed, drop_leases, read_leases

FILE = """1700000000 52:54:00:00:00:01 10.0.0.5 web01 01:52:54:00:00:00:01
0 52:54:00:00:00:02 10.0.0.6 * *
duid 00:01:00:01:2c
1700000000 1234 fd00::5 web01 00:01
rubbish
"""


def test_the_lease_file_is_read(tmp_path: Path) -> None:
    """IPv4 leases, one without an end; other lines are passed over; no file is no lease."""
    path = tmp_path / "leases"
    assert read_leases(path) == []
    path.write_text(FILE)
    assert read_leases(path) == [
        Lease("52:54:00:00:00:01", "10.0.0.5", "web01", datetime.fromtimestamp(1700000000, UTC)),
        Lease("52:54:00:00:00:02", "10.0.0.6", "", None),
    ]


def test_leases_are_dropped_by_mac_and_by_address(tmp_path: Path) -> None:
    """Only the lines meant go."""
    path = tmp_path / "leases"
    drop_leases(path, {"52:54:00:00:00:01"}, set())
    path.write_text(FILE)
    drop_leases(path, {"52:54:00:00:00:01"}, set())
    assert path.read_text() == "".join(FILE.splitlines(keepends=True)[1:])
    drop_leases(path, set(), {"10.0.0.6"})
    assert path.read_text() == "".join(FILE.splitlines(keepends=True)[2:])


@pytest.mark.parametrize("pieces", [1, 7, 1000])
async def test_events_come_in_order_whatever_the_pieces(tmp_path: Path, pieces: int) -> None:
    """Lines cut anywhere, rubbish between them, a lease named again at dnsmasq's start: four events."""
    (tmp_path / "leases").write_text("1700000000 52:54:00:00:00:09 10.0.0.9 old *\n")
    seen: list[LeaseEvent] = []

    async def take(event: LeaseEvent) -> None:
        seen.append(event)
        if event.kind == "renewed":
            raise RuntimeError("no room")

    feed = LeaseFeed(tmp_path / "fifo", tmp_path / "leases", take)
    feed.open()
    text = (
        b"old|52:54:00:00:00:09|10.0.0.9|old|1700000000\n"
        b"add|52:54:00:00:00:01|10.0.0.5|web01|1700000000\n\xff|\nadd|x|fd00::1||1\ntftp|1|2|3|\n"
        b"old|52:54:00:00:00:01|10.0.0.5|web01|1700000600\n"
        b"del|52:54:00:00:00:01|10.0.0.5|web01|1700000600\ndel|52:54:00:00:00:01|10.0.0.5|web01|\n"
        b"add|52:54:00:00:00:02|10.0.0.5||\n"
    )
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    for at in range(0, len(text), pieces):
        os.write(writer, text[at : at + pieces])
        await asyncio.sleep(0)
    os.close(writer)
    await feed.close()
    assert [(e.kind, e.mac) for e in seen] == [
        ("added", "52:54:00:00:00:01"),
        ("renewed", "52:54:00:00:00:01"),
        ("removed", "52:54:00:00:00:01"),
        ("added", "52:54:00:00:00:02"),
    ]
    assert {lease.mac for lease in feed.by_ip.values()} == {"52:54:00:00:00:09", "52:54:00:00:00:02"}


async def test_a_listener_that_hangs_drops_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events beyond the limit are counted, and neither reading nor closing waits for the listener."""
    monkeypatch.setattr(LeaseFeed, "LIMIT", 3)

    async def hang(event: LeaseEvent) -> None:
        await asyncio.sleep(60)

    feed = LeaseFeed(tmp_path / "fifo", tmp_path / "leases", hang)
    feed.open()
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    for last in range(10):
        os.write(writer, f"add|52:54:00:00:00:0{last}|10.0.0.{last}||\n".encode())
    os.close(writer)
    await asyncio.sleep(0.05)
    assert feed.dropped == 7
    assert len(feed.by_ip) == 10
    await asyncio.wait_for(feed.close(), 30)
