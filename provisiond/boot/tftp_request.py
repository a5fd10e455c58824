"""A TFTP request as it comes off the wire: decoded by tftpy's codec behind a guard, its options negotiated. Pure functions.

Sources: RFC 1350 (TFTP), 2347 (options), 2348 (blksize), 2349 (timeout, tsize), 7440 (windowsize).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tftpy.TftpPacketFactory import TftpPacketFactory
from tftpy.TftpPacketTypes import TftpPacketERR, TftpPacketOACK, TftpPacketRRQ, TftpPacketWRQ
from tftpy.TftpShared import TftpException

NOT_FOUND, ACCESS, ILLEGAL, UNKNOWN_ID, OPTIONS_REFUSED = 1, 2, 4, 5, 8  # error codes, RFC 1350 and 2347
BLKSIZE = 512  # where none is asked for
MAX_BLKSIZE = 65464  # RFC 2348
MAX_WINDOW = 64  # blocks
MAX_FLIGHT = 128 << 10  # bytes sent and not acknowledged: what a socket's default buffer holds
_MAX_REQUEST = 1500

_factory = TftpPacketFactory()


@dataclass(frozen=True)
class Request:
    """What a client asks to read: ``path`` relative and without ``..``; ``options`` by name in lower case."""

    path: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Refused(Exception):
    """The request is answered with error ``code`` and ``message``."""

    code: int
    message: str


@dataclass(frozen=True)
class Terms:
    """How a transfer runs. ``accepted`` are the options the server confirms (OACK); ``timeout`` None: the server's own."""

    blksize: int = BLKSIZE
    window: int = 1
    timeout: float | None = None
    accepted: tuple[tuple[str, int], ...] = ()


def parse(data: bytes) -> Request | None:
    """The read request in a datagram; None for what deserves no answer. Raises Refused for what gets an error.

    Mode ``netascii`` is served like ``octet``: boot programs are binary, and their configuration needs no carriage returns.
    """
    if len(data) > _MAX_REQUEST or data[:2] not in (b"\0\1", b"\0\2"):
        return None  # acknowledgements, data and errors belong to the port of a transfer
    try:
        # some ROMs pad a request with zeros
        packet = _factory.parse(data.rstrip(b"\0") + b"\0")
    except (TftpException, ValueError, struct.error):
        raise Refused(ILLEGAL, "malformed request") from None
    if isinstance(packet, TftpPacketWRQ):
        raise Refused(ACCESS, "this server is read-only")
    assert isinstance(packet, TftpPacketRRQ)
    if packet.mode not in ("octet", "netascii"):
        raise Refused(ILLEGAL, "mode must be octet")
    options = tuple((str(name).lower(), str(value)) for name, value in packet.options.items())
    return Request(clean_path(packet.filename), options)


def clean_path(name: str) -> str:
    """A file name as a relative path: backslashes turned, empty and ``.`` parts dropped. Raises Refused for ``..``."""
    if not name.isprintable():
        raise Refused(ACCESS, "the file name has control characters")
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(ACCESS, "the file name leads out of the tree")
    if not parts:
        raise Refused(NOT_FOUND, "no file name")
    return "/".join(parts)


def negotiate(request: Request, size: int) -> Terms:
    """The terms for a file of ``size`` bytes. A value out of its range is as if not asked for (RFC 2347 allows that)."""
    asked = dict(request.options)
    accepted: dict[str, int] = {}
    blksize = window = 0
    if (wanted := _number(asked.get("blksize"))) >= 8:
        blksize = accepted["blksize"] = min(wanted, MAX_BLKSIZE)
    if "tsize" in asked and size:  # curl takes a size of 0 for malformed and gives up
        accepted["tsize"] = size
    if 1 <= (seconds := _number(asked.get("timeout"))) <= 255:
        accepted["timeout"] = seconds
    if (wanted := _number(asked.get("windowsize"))) >= 1:
        fits = max(1, MAX_FLIGHT // (blksize or BLKSIZE))
        window = accepted["windowsize"] = min(wanted, MAX_WINDOW, fits)
    return Terms(
        blksize=blksize or BLKSIZE,
        window=window or 1,
        timeout=accepted.get("timeout"),
        accepted=tuple((name, accepted[name]) for name in asked if name in accepted),
    )


def oack(terms: Terms) -> bytes:
    """The datagram that confirms the options."""
    packet = TftpPacketOACK()
    packet.options = {name: str(value) for name, value in terms.accepted}
    return bytes(packet.encode().buffer)


def error(code: int, message: str) -> bytes:
    """An error datagram."""
    packet = TftpPacketERR()
    packet.errorcode, packet.errmsgs = code, {code: message.encode("ascii", "replace")}
    return bytes(packet.encode().buffer)


def _number(text: str | None) -> int:
    """``text`` as a number, -1 if it is none."""
    return int(text) if text and len(text) <= 10 and text.isascii() and text.isdigit() else -1
