"""Tickets: what a boot script gives the ramdisk to prove itself with, once. Nothing is stored when one is handed out.

A ticket is 60 bytes in base64url (80 characters, RFC 4648 section 5, no padding), so it stands in any kernel command line: a random
id, the MAC that asked, the host's id, when it was made, and HMAC-SHA-256 of these cut to 128 bits (RFC 2104 section 5) under a
key derived from the daemon's encryption keys. That it is used once only is seen to where it is claimed (sessions.py).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

PURPOSE = "provisiond agent ticket 1"
LENGTH = 80  # characters
_ID, _MAC, _HOST, _TIME, _MARK = (
    16,
    6,
    16,
    6,
    16,
)  # bytes, 60 together: a multiple of 3, so no bit of the text is idle
_BODY = _ID + _MAC + _HOST + _TIME
_TEXT = re.compile(rf"[A-Za-z0-9_-]{{{LENGTH}}}")


@dataclass(frozen=True)
class Ticket:
    """What a ticket says. ``mac`` '': the loader did not say which card asked; ``host_id`` None: no host had this MAC then."""

    id: str
    mac: str
    host_id: str | None
    made_at: datetime

    def expired(self, now: datetime, minutes: float) -> bool:
        """Whether it was made more than ``minutes`` ago, or (clocks set back) as far in the future."""
        return abs(now - self.made_at) > timedelta(minutes=minutes)


def issue(keys: Sequence[bytes], mac: str, host_id: str | None, now: datetime) -> str:
    """A new ticket, 80 characters of base64url. ``keys`` are SecretBox.derived(PURPOSE): the first signs.

    ``mac`` as aa:bb:cc:dd:ee:ff or ''; ``host_id`` a UUID.
    """
    host = UUID(host_id).bytes if host_id else bytes(_HOST)
    card = bytes.fromhex(mac.replace(":", "")) if mac else bytes(_MAC)
    time = int(now.timestamp() * 1000).to_bytes(_TIME, "big")
    body = secrets.token_bytes(_ID) + card + host + time
    return base64.urlsafe_b64encode(body + _mark(keys[0], body)).decode()


def read(keys: Sequence[bytes], text: str) -> Ticket | None:
    """What the ticket says; None when it was not made with one of these keys. Its age is for the caller to judge."""
    if not _TEXT.fullmatch(text):
        return None
    raw = base64.urlsafe_b64decode(text)
    body, mark = raw[:_BODY], raw[_BODY:]
    if not any(hmac.compare_digest(mark, _mark(key, body)) for key in keys):
        return None
    card, host = body[_ID : _ID + _MAC], body[_ID + _MAC : -_TIME]
    return Ticket(
        id=str(UUID(bytes=body[:_ID])),
        mac=card.hex(":") if any(card) else "",
        host_id=str(UUID(bytes=host)) if any(host) else None,
        made_at=datetime.fromtimestamp(int.from_bytes(body[-_TIME:], "big") / 1000, UTC),
    )


def _mark(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_MARK]
