"""UDP sockets of the TFTP server: heard on one address, answered from the same."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from provisiond.boot.tftp_request import error

SocketFactory = Callable[[int], socket.socket]

_IP_PKTINFO = 8  # linux/in.h; Python has no name for it before 3.12
_LISTEN_BUFFER = 1 << 20  # bytes: the requests of a rack that is switched on


def udp(family: int) -> socket.socket:
    """A UDP socket where the process is."""
    return socket.socket(family, socket.SOCK_DGRAM)


def listening(address: str, port: int, new_socket: SocketFactory) -> socket.socket:
    """A socket that hears requests and for which address they were meant. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = new_socket(family)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LISTEN_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.bind((address, port))
    except OSError:
        sock.close()
        raise
    return sock


def connected(local: str, peer: Any, new_socket: SocketFactory) -> socket.socket:
    """A socket on a free port of ``local`` that hears ``peer`` alone. Raises OSError."""
    sock = new_socket(socket.AF_INET6 if ":" in local else socket.AF_INET)
    try:
        sock.setblocking(False)
        sock.bind((local, 0, 0, peer[3]) if ":" in local else (local, 0))
        sock.connect(peer)
    except OSError:
        sock.close()
        raise
    return sock


def asked(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, Any]:
    """The local address that a datagram was sent to, and the ancillary data that makes an answer come from it."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _card, local, _ = struct.unpack("@i4s4s", data[:12])
            return socket.inet_ntoa(local), [(level, kind, struct.pack("@i4s4s", 0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            return socket.inet_ntop(socket.AF_INET6, data[:16]), [(level, kind, data[:20])]
    raise AssertionError("the kernel always says which address was asked")


def reply(sock: socket.socket, peer: Any, source: Any, code: int, words: str) -> None:
    """Answer a request with an error, from the address it was sent to."""
    with suppress(OSError):
        sock.sendmsg([error(code, words)], source, 0, peer)
