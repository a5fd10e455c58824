"""Neighbours: which switch and port each card is plugged into, as the switches announce it (IEEE 802.1AB).

Switches announce every 30 s, longer than a report may wait. So the listener goes on in its thread, and the agent reports
anew when it has heard somebody (`facts.stale`).
"""

import socket
import struct
import threading
from typing import Any

ETHERTYPE = 0x88CC
# destinations of 802.1AB, table 7-1: nearest bridge, nearest non-TPMR bridge, nearest customer bridge
_GROUPS = (b"\x01\x80\xc2\x00\x00\x0e", b"\x01\x80\xc2\x00\x00\x03", b"\x01\x80\xc2\x00\x00\x00")
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0  # linux/if_packet.h
_IEEE_8021 = b"\x00\x80\xc2"
_PACKET_OUTGOING = 4


def parse_frame(frame: bytes) -> dict[str, Any] | None:
    """What an Ethernet frame announces: {chassis, port, port_description, system, vlan}; None for other and broken frames."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):  # some switches send them inside a VLAN
        at += 4
    if frame[at : at + 2] != ETHERTYPE.to_bytes(2, "big"):
        return None
    at += 2
    said: dict[str, Any] = dict.fromkeys(("chassis", "port", "port_description", "system", "vlan"))
    while at + 2 <= len(frame):
        head = int.from_bytes(frame[at : at + 2], "big")
        kind, size = head >> 9, head & 0x1FF  # 8.4.1: 7 bits of type, 9 of length
        value = frame[at + 2 : at + 2 + size]
        at += 2 + size
        if kind == 0 or len(value) < size:
            break
        if kind == 1 and size > 1:  # 8.5.2; subtype 4 is a MAC, 5 a network address
            said["chassis"] = _identifier(value, 4, 5)
        elif kind == 2 and size > 1:  # 8.5.3; subtype 3 is a MAC, 4 a network address
            said["port"] = _identifier(value, 3, 4)
        elif kind == 4:
            said["port_description"] = _text(value)
        elif kind == 5:
            said["system"] = _text(value)
        elif kind == 127 and value[:3] == _IEEE_8021 and value[3:4] == b"\x01" and size >= 6:
            said["vlan"] = int.from_bytes(value[4:6], "big") or None  # 802.1Q D.2.1: port VLAN, 0 is none
    return said if said["chassis"] and said["port"] else None


def _identifier(value: bytes, mac: int, network: int) -> str | None:
    subtype, name = value[0], value[1:]
    if subtype == mac and len(name) == 6:
        return name.hex(":")
    if subtype == network and len(name) in (5, 17):  # IANA's address family number, then the address
        import ipaddress

        return str(ipaddress.ip_address(name[1:]))
    return _text(name)


def _text(value: bytes) -> str | None:
    return "".join(c for c in value.decode("utf-8", "replace") if c.isprintable()).strip() or None


class Listener:
    """Hears announcements on cards, in a thread that ends with the process."""

    def __init__(self) -> None:
        self._heard: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._news = threading.Event()
        self._socket: socket.socket | None = None

    def start(self, names: list[str]) -> None:
        """Begin to listen on cards; further ones may be named later. Quiet where the kernel cannot (no AF_PACKET)."""
        if self._socket is None:
            try:
                self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
            except OSError:
                return
            threading.Thread(target=self._listen, args=(self._socket,), name="lldp", daemon=True).start()
        for name in names:
            try:
                index = socket.if_nametoindex(name)
                for group in _GROUPS:
                    wanted = struct.pack("=iHH8s", index, _PACKET_MR_MULTICAST, 6, group)
                    self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)
            except OSError:
                continue

    def heard(self) -> dict[str, dict[str, Any]]:
        """The newest announcement by name of the card."""
        with self._lock:
            return dict(self._heard)

    def wait(self, names: list[str], seconds: float) -> None:
        """Wait until each of the cards has heard somebody, `seconds` at most."""
        import time

        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not set(names) <= set(self.heard()):
            self._news.wait(left)
            self._news.clear()

    def _listen(self, door: socket.socket) -> None:
        while True:
            try:
                frame, address = door.recvfrom(2048)
            except OSError as error:
                if error.errno == 100:  # ENETDOWN: a card went down, the others are still heard
                    continue
                return
            neighbour = parse_frame(frame) if address[2] != _PACKET_OUTGOING else None
            if neighbour:
                with self._lock:
                    self._heard[address[0]] = neighbour
                self._news.set()
