"""Neighbours: real frames on a veth pair in a namespace are heard, and frames of switches are read."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramdisk_agent.facts.lldp import Listener, parse_frame
from tests.lab.kit.fixtures import need
from tests.lab.kit.netns import Netns

TO = bytes.fromhex("0180c200000e")
FROM = bytes.fromhex("020000000001")


def tlv(kind: int, value: bytes) -> bytes:
    """IEEE 802.1AB 8.4: 7 bits of type, 9 of length."""
    return (kind << 9 | len(value)).to_bytes(2, "big") + value


def frame(*tlvs: bytes, tag: bytes = b"") -> bytes:
    return TO + FROM + tag + b"\x88\xcc" + b"".join(tlvs) + tlv(0, b"")


CHASSIS_MAC = tlv(1, b"\x04" + bytes.fromhex("44f4771a2b3c"))
CISCO = frame(
    CHASSIS_MAC,
    tlv(2, b"\x05Gi1/0/24"),
    tlv(3, (120).to_bytes(2, "big")),
    tlv(4, b"GigabitEthernet1/0/24"),
    tlv(5, b"rack12-tor1.example.org"),
    tlv(6, b"Cisco IOS Software"),
    tlv(127, b"\x00\x80\xc2\x01" + (77).to_bytes(2, "big")),
    tlv(127, b"\x00\x12\x0f\x01\x03\x6c\x03\x00\x10"),
)
SAID = {
    "chassis": "44:f4:77:1a:2b:3c",
    "port": "Gi1/0/24",
    "port_description": "GigabitEthernet1/0/24",
    "system": "rack12-tor1.example.org",
    "vlan": 77,
}


def test_a_frame_of_a_switch() -> None:
    """Identifiers, name, description and the port's VLAN; a frame inside a VLAN says the same."""
    assert parse_frame(CISCO) == SAID
    tagged = CISCO[:12] + b"\x81\x00\x00\x01" + CISCO[12:]
    assert parse_frame(tagged) == SAID
    assert parse_frame(CISCO + bytes(40)) == SAID  # padding after the end


@pytest.mark.parametrize(
    ("chassis", "port", "names"),
    [
        (b"\x04" + FROM, b"\x03" + FROM, ("02:00:00:00:00:01", "02:00:00:00:00:01")),
        (b"\x05\x01\x0a\x00\x00\x07", b"\x07swp3", ("10.0.0.7", "swp3")),
        (b"\x05\x02" + bytes(15) + b"\x01", b"\x04\x01\x0a\x00\x00\x08", ("::1", "10.0.0.8")),
        (b"\x07leaf-01", b"\x01Ethernet48", ("leaf-01", "Ethernet48")),
        (b"\x07a\x1b[31m\nb", b"\x05\xff\xfex", ("a[31mb", "\ufffd\ufffdx")),
    ],
)
def test_kinds_of_identifiers(chassis: bytes, port: bytes, names: tuple[str, str]) -> None:
    """MACs, addresses and names (IEEE 802.1AB tables 8-2 and 8-3); what a terminal would obey is left out."""
    said = parse_frame(frame(tlv(1, chassis), tlv(2, port)))
    assert said is not None and (said["chassis"], said["port"]) == names


@given(st.binary(max_size=200))
def test_no_frame_makes_it_raise(tail: bytes) -> None:
    """Whatever comes from the wire is read or ignored."""
    for begin in (b"", TO + FROM + b"\x88\xcc", TO + FROM + b"\x88\xcc" + CHASSIS_MAC, CISCO[:60]):
        said = parse_frame(begin + tail)
        assert said is None or (said["chassis"] and said["port"])


LISTEN = """
    import json, sys, time
    sys.path.insert(0, {path!r})
    from ramdisk_agent.facts import lldp, nics
    nics.bring_up(["near0"])
    listener = lldp.Listener()
    listener.start(["near0", "gone0"])
    print("listening", flush=True)
    listener.wait(["near0"], 60)
    print(json.dumps(listener.heard()), flush=True)
"""


def test_a_switch_on_the_wire_is_heard() -> None:
    """A real frame from the other end of a cable, on a card that was down, to the group that cards filter by default."""
    need("ip")
    agent = str(Path(__file__).parents[2] / "pxe/ramdisk")
    with Netns(bridge="", addresses=()) as ns:
        ns.ip("link", "add", "near0", "type", "veth", "peer", "name", "far0")
        ns.ip("link", "set", "far0", "up")
        inside = ["ip", "netns", "exec", ns.name, sys.executable, "-I", "-c"]
        listening = subprocess.Popen(
            [*inside, textwrap.dedent(LISTEN.format(path=agent))], stdout=subprocess.PIPE, text=True
        )
        try:
            assert listening.stdout is not None and listening.stdout.readline() == "listening\n"
            send = f"""
import socket, time
door = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
door.bind(("far0", 0x88cc))
until = time.monotonic() + 30
while time.monotonic() < until:  # the card may come up only now
    try:
        door.send({CISCO!r})
        break
    except OSError:
        time.sleep(0.05)
"""
            for _ in range(50):
                subprocess.run([*inside, send], check=True)
                try:
                    said, _ = listening.communicate(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if listening.poll() is None:
                listening.kill()
                listening.wait()
    import json

    assert json.loads(said) == {"near0": SAID}


def test_waiting_ends_without_a_switch() -> None:
    """Where nobody speaks, it waits no longer than it was told; where nothing is to be heard, not at all."""
    listener = Listener()
    listener.wait([], 60)
    listener.wait(["eth9"], 0.05)
    assert listener.heard() == {}
