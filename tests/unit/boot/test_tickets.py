"""Tickets of the ramdisk: what they say, and that nothing but the daemon's own is believed."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.boot import tickets
from provisiond.inventory.secrets import SecretBox
from provisiond.templating.quoting import grub, ipxe, kargs, pxelinux

KEYS = [b"k" * 32, b"old" * 11]
NOW = datetime(2026, 11, 22, 5, 0, 0, 123_000, UTC)
MAC = "52:54:00:aa:bb:01"
HOST = "0b0e7f3a-5d0c-4a7e-9c7b-3f1f0a9d2c11"
ALPHABET = string.ascii_letters + string.digits + "-_"


@pytest.mark.parametrize(
    ("mac", "host_id"), [(MAC, HOST), (MAC, None), ("", None), ("00:00:00:00:00:01", None)]
)
def test_says_what_was_put_in(mac: str, host_id: str | None) -> None:
    """MAC, host and time come back; two tickets for the same machine have ids of their own."""
    one, two = (tickets.read(KEYS, tickets.issue(KEYS, mac, host_id, NOW)) for _ in range(2))
    assert one is not None and two is not None and one.id != two.id
    assert (one.mac, one.host_id, one.made_at) == (mac, host_id, NOW)
    assert len(one.id) == 36


def test_fits_a_kernel_command_line() -> None:
    """80 characters that every boot loader takes as one word."""
    text = tickets.issue(KEYS, MAC, HOST, NOW)
    assert len(text) == tickets.LENGTH <= 120 and set(text) <= set(ALPHABET)
    assert kargs(text) == ipxe(text) == pxelinux(text) == text and text in grub(text)


@given(st.integers(0, tickets.LENGTH - 1), st.sampled_from(ALPHABET + "+/= \n\u0660"))
def test_any_changed_character_is_refused(place: int, other: str) -> None:
    """No character can be another, not even one that decodes to the same bits."""
    text = tickets.issue(KEYS, MAC, None, NOW)
    changed = text[:place] + other + text[place + 1 :]
    assert (tickets.read(KEYS, changed) is not None) == (changed == text)


@given(st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    """Whatever a machine may send as its ticket, it is refused and breaks nothing."""
    assert tickets.read(KEYS, text) is None


@pytest.mark.parametrize("cut", [0, 1, 79])
def test_parts_and_more_are_refused(cut: int) -> None:
    """A ticket is whole or none."""
    text = tickets.issue(KEYS, MAC, None, NOW)
    assert tickets.read(KEYS, text[:cut]) is None
    assert tickets.read(KEYS, text + "A") is None and tickets.read(KEYS, text + "\n") is None


def test_keys() -> None:
    """The newest key signs, older ones are still believed after a rotation, others never."""
    text = tickets.issue(KEYS[1:], MAC, None, NOW)
    assert tickets.read(KEYS, text) is not None
    assert tickets.read([b"x" * 32], text) is None
    assert tickets.read(KEYS[1:], tickets.issue(KEYS, MAC, None, NOW)) is None


def test_key_is_derived(tmp_path: Path) -> None:
    """The key of tickets is not the one that encrypts, is the same after a restart, and another for another purpose."""
    path = tmp_path / "secret.key"
    key = SecretBox.open(path).derived(tickets.PURPOSE)
    assert key == SecretBox.open(path).derived(tickets.PURPOSE) and [len(k) for k in key] == [32]
    assert key != SecretBox.open(path).derived("another purpose")
    assert key != SecretBox.open(tmp_path / "other.key").derived(tickets.PURPOSE)


@pytest.mark.parametrize(
    ("later", "expired"), [(0, False), (29.9, False), (30.1, True), (-29.9, False), (-30.1, True)]
)
def test_expires(later: float, expired: bool) -> None:
    """After its minutes, and when the clock was set back further than that."""
    ticket = tickets.read(KEYS, tickets.issue(KEYS, MAC, None, NOW))
    assert ticket is not None and ticket.expired(NOW + timedelta(minutes=later), 30) == expired
