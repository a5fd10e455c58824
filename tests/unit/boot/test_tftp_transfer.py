"""A transfer without a network: a client of a few lines, and a wire that loses, doubles and reorders."""

from __future__ import annotations

import os
import random
from collections import deque
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisiond.boot.tftp_request import Terms
from provisiond.boot.tftp_transfer import TRIES, Content, Transfer


class Wire:
    """The server's end of a connected socket: what was sent is in ``out``, what shall be received in ``into``."""

    def __init__(self) -> None:
        self.out: deque[bytes] = deque()
        self.into: deque[bytes | OSError] = deque()
        self.full = False

    def send(self, data: bytes) -> int:
        return self.sendmsg([data])

    def sendmsg(self, parts: Any) -> int:
        if self.full:
            raise BlockingIOError
        self.out.append(b"".join(bytes(part) for part in parts))
        return len(self.out[-1])

    def recv(self, size: int) -> bytes:
        if not self.into:
            raise BlockingIOError
        data = self.into.popleft()
        if isinstance(data, OSError):
            raise data
        return data[:size]

    def close(self) -> None:
        pass


def transfer_of(content: bytes | Path, terms: Terms) -> tuple[Transfer, Wire]:
    wire = Wire()
    transfer = Transfer(cast(Any, wire), Content(content), terms, "f", "10.0.0.1")
    transfer.begin()
    return transfer, wire


def ack(transfer: Transfer, wire: Wire, number: int) -> list[bytes]:
    """Acknowledge, and return what is sent then."""
    wire.out.clear()
    wire.into.append(b"\0\4" + number.to_bytes(2, "big"))
    transfer.readable()
    return list(wire.out)


def data(number: int, content: bytes) -> bytes:
    return b"\0\3" + number.to_bytes(2, "big") + content


def test_lockstep_word_for_word() -> None:
    """Without options: block after block, a short one at the end."""
    transfer, wire = transfer_of(b"a" * 512 + b"bc", Terms())
    assert list(wire.out) == [data(1, b"a" * 512)]
    assert transfer.untouched
    assert ack(transfer, wire, 1) == [data(2, b"bc")]
    assert not transfer.untouched
    assert ack(transfer, wire, 2) == []
    assert (transfer.done, transfer.failure, transfer.sent, transfer.repeats) == (True, "", 514, 0)


def test_a_multiple_of_the_block_ends_with_an_empty_one() -> None:
    """The client knows the end by a block that is not full."""
    transfer, wire = transfer_of(b"a" * 512, Terms())
    assert ack(transfer, wire, 1) == [data(2, b"")]


def test_the_oack_is_acknowledged_first() -> None:
    """With options the OACK comes first, repeated until acknowledged as block 0."""
    transfer, wire = transfer_of(b"abc", Terms(8, 1, None, (("blksize", 8),)))
    assert list(wire.out) == [b"\0\6blksize\x008\0"]
    assert ack(transfer, wire, 1) == []
    transfer.overdue()
    assert list(wire.out) == [b"\0\6blksize\x008\0"]
    assert ack(transfer, wire, 0) == [data(1, b"abc")]
    ack(transfer, wire, 1)
    assert transfer.done and transfer.failure == ""


def test_a_doubled_acknowledgement_sends_nothing_twice() -> None:
    """The sorcerer's apprentice stays out."""
    transfer, wire = transfer_of(b"a" * 2000, Terms())
    assert len(ack(transfer, wire, 1)) == 1
    assert ack(transfer, wire, 1) == []
    assert ack(transfer, wire, 0) == []
    assert ack(transfer, wire, 9) == []
    assert ack(transfer, wire, 2) == [data(3, b"a" * 512)]


def test_a_window_goes_on_behind_what_arrived() -> None:
    """Blocks 3 and 4 of a window of four got lost: from 3 on, once, however often the client says so."""
    transfer, wire = transfer_of(bytes(range(100)), Terms(8, 4))
    assert [packet[3] for packet in wire.out] == [1, 2, 3, 4]
    assert [packet[3] for packet in ack(transfer, wire, 2)] == [3, 4, 5, 6]
    assert ack(transfer, wire, 2) == []
    assert [packet[3] for packet in ack(transfer, wire, 6)] == [7, 8, 9, 10]
    assert [packet[3] for packet in ack(transfer, wire, 6)] == [7, 8, 9, 10]  # 7 got lost
    assert ack(transfer, wire, 6) == []
    assert [packet[3] for packet in ack(transfer, wire, 10)] == [11, 12, 13]
    ack(transfer, wire, 13)
    assert transfer.done and transfer.repeats == 6


def test_repetitions_back_off_and_end() -> None:
    """Silence: sent again with growing pauses, then given up."""
    transfer, wire = transfer_of(b"abc", Terms())
    pauses = []
    while not transfer.done:
        transfer.overdue()
        pauses.append(transfer._pause)
    assert pauses[:-1] == [2, 4, 8, 8, 8, 8]
    assert len(wire.out) == TRIES
    assert transfer.failure == "the client no longer answers"


def test_the_asked_timeout_is_the_first_pause() -> None:
    """RFC 2349: the client names the seconds."""
    transfer, _ = transfer_of(b"abc", Terms(512, 1, 20, (("timeout", 20),)))
    assert transfer._pause == 20
    transfer.overdue()
    assert transfer._pause == 20


@pytest.mark.parametrize(
    ("acks", "packet", "failure"),
    [
        ([], b"\0\5\0\x08tsize only\0", ""),
        ([1], b"\0\5\0\3disk \xff\n full\0rest", "the client gave up: disk \ufffd? full"),
        ([1], b"\0\5\0\0", "the client gave up: no reason given"),
        ([1], ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        ([1, 2], ConnectionRefusedError(111, "Connection refused"), ""),
        ([1], OSError(113, "No route to host"), "No route to host"),
    ],
)
def test_how_a_client_ends_a_transfer(acks: list[int], packet: bytes | OSError, failure: str) -> None:
    """An error at the beginning is a question for the size; a client that is gone after the last block has it all."""
    transfer, wire = transfer_of(b"a" * 1100, Terms())
    for number in acks:
        ack(transfer, wire, number)
    wire.into.append(packet)
    transfer.readable()
    assert transfer.done and transfer.failure == failure


def test_rubbish_on_a_transfers_port_is_passed_over() -> None:
    """Neither short nor foreign datagrams move it."""
    transfer, wire = transfer_of(b"a" * 1100, Terms())
    wire.into.extend([b"", b"\0", b"\0\4\0", b"\1\4\0\1", b"\0\1a\0octet\0", b"\0\3\0\1xx", b"\0\6a\0b\0"])
    for _ in range(7):
        transfer.readable()
    assert not transfer.done and len(wire.out) == 1


def test_a_full_socket_counts_as_loss() -> None:
    """What the socket does not take is sent again after the pause."""
    transfer, wire = transfer_of(b"a" * 1100, Terms())
    wire.full = True
    assert ack(transfer, wire, 1) == []
    wire.full = False
    transfer.overdue()
    assert list(wire.out) == [data(2, b"a" * 512)]


def test_a_file_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """The client is not told that a half file is a whole one."""
    path = tmp_path / "f"
    path.write_bytes(bytes(300_000))
    transfer, wire = transfer_of(path, Terms(65464))
    path.write_bytes(b"")
    ack(transfer, wire, 1)
    assert transfer.done and "became shorter" in transfer.failure
    transfer.close()


@pytest.mark.parametrize("what", ["directory", "fifo", "absent"])
def test_only_regular_files_are_content(tmp_path: Path, what: str) -> None:
    """A directory or a FIFO is an OSError, at once."""
    path = tmp_path / "x"
    if what == "directory":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    with pytest.raises(OSError):
        Content(path)


class Client:
    """A receiver as in RFC 1350 and 7440: acknowledges a whole window, its end, or the last block in order at a gap."""

    def __init__(self, terms: Terms) -> None:
        self.terms, self.got, self.count, self.since = terms, bytearray(), 0, 0
        self.ended = False

    def take(self, packet: bytes) -> bytes | None:
        if packet[:2] == b"\0\6":
            return b"\0\4\0\0" if self.count == 0 else None
        number = int.from_bytes(packet[2:4], "big")
        if number != (self.count + 1) & 0xFFFF:
            self.since = 0
            return self.ack()
        self.got += packet[4:]
        self.count += 1
        self.since += 1
        self.ended = len(packet) - 4 < self.terms.blksize
        if self.ended or self.since == self.terms.window:
            self.since = 0
            return self.ack()
        return None

    def ack(self) -> bytes:
        return b"\0\4" + (self.count & 0xFFFF).to_bytes(2, "big")


def carry(content: bytes | Path, terms: Terms, chance: random.Random, loss: float) -> tuple[bytes, Transfer]:
    """Run a whole transfer over a bad wire; time passes when nothing is on it."""
    transfer, wire = transfer_of(content, terms)
    client = Client(terms)
    while not transfer.done:
        if not wire.out:
            if client.ended and chance.random() < 0.5:
                wire.into.append(ConnectionRefusedError(111, "Connection refused"))
                transfer.readable()
            else:
                transfer.overdue()
            continue
        packet = wire.out.popleft()
        for _ in range(0 if chance.random() < loss else 2 if chance.random() < loss else 1):
            answer = client.take(packet)
            if answer is not None and chance.random() >= loss:
                wire.into.append(answer)
                transfer.readable()
    transfer.close()
    return bytes(client.got), transfer


@given(
    st.integers(0, 3000),
    st.sampled_from([8, 16, 100, 512]),
    st.sampled_from([1, 2, 4, 16]),
    st.booleans(),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.02, 0.1]),
)
@settings(max_examples=300, deadline=None)
def test_what_arrives_is_what_was_sent(
    size: int, blksize: int, window: int, options: bool, seed: int, loss: float
) -> None:
    """Over a wire that loses and doubles, the client has the very bytes, or the transfer says that it failed."""
    content = random.Random(seed).randbytes(size)
    terms = Terms(blksize, window, None, (("blksize", blksize),) if options else ())
    got, transfer = carry(content, terms, random.Random(seed), loss)
    if not transfer.failure:
        assert got == content
    if loss == 0:
        assert (transfer.failure, transfer.repeats, transfer.sent) == ("", 0, size)


@pytest.mark.parametrize("window", [1, 4, 16])
@pytest.mark.parametrize("loss", [0.0, 0.01])
def test_block_numbers_roll_over(tmp_path: Path, window: int, loss: float) -> None:
    """More than 65,535 blocks, from a file, also with losses around the turn."""
    path = tmp_path / "big"
    content = random.Random(1).randbytes(70_000 * 8 + 3)
    path.write_bytes(content)
    got, transfer = carry(path, Terms(8, window), random.Random(2), loss)
    assert transfer.failure == "" and got == content
